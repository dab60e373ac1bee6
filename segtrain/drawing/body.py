"""A car's bodywork: one shell swept along its length, with windows, closed at both ends.

A cross-section's width, belt line and top follow the car's plan and side profile. Positions along the car are fractions
`s` of its length behind the nose.
"""

from typing import NamedTuple

import numpy as np

from segtrain.drawing.quads import SHELL, Colour, Floats, Quads, cells, joined, make_quads, unit

BLACK: Colour = (16, 16, 18)
GLASS: Colour = (30, 36, 38)
PAINT_GLOSS, GLASS_GLOSS = 0.16, 0.30

KEEL_POINTS, SIDE_POINTS, ROOF_POINTS = 15, 8, 8
"""Points of half a cross-section: keel to belt line, belt line to roof rail, roof rail to the roof's middle."""


class Style(NamedTuple):
    """Proportions of a body type: ranges in metres, or fractions of the length behind the nose."""

    length: tuple[float, float]
    width: tuple[float, float]
    height: tuple[float, float]
    clearance: float
    cowl: float  # foot of the windscreen
    roof: tuple[float, float]  # front and rear end of the roof
    tail: float  # foot of the rear window
    hood: float  # hood's height as a fraction of the car's
    deck: float  # height of the tail as a fraction of the car's
    glass_end: float  # where the side windows stop


class Body(NamedTuple):
    """The numbers that the parts of one car share; lengths in metres."""

    style: Style
    length: float
    width: float
    height: float
    paint: Colour
    axles: tuple[float, float]  # x of the front and the rear wheels
    wheel: float  # radius


def shell(body: Body) -> Quads:
    """Bodywork and glass."""
    style = body.style
    edges = [style.cowl, *style.roof, style.tail, style.glass_end, *pillars(style)]
    ends = np.array([0, 0.004, 0.01, 0.018, 0.03, 0.045, 0.062, 0.08])
    s = np.unique(np.concatenate([np.linspace(0.1, 0.9, 44), ends, 1 - ends, edges]))
    y, z, cabin = _section(body, s)
    y, z = np.hstack([y, -y[:, -2::-1]]), np.hstack([z, z[:, -2::-1]])  # the left half, then the right
    x = nose_curve(np.broadcast_to(body.length * (0.5 - s)[:, None], y.shape), y, body)
    points = np.stack([x, y, z], axis=-1)
    # Smooth normals: the mean of the cell's corners, not the flat cell's own.
    normals = cells(unit(np.cross(np.gradient(points, axis=0), np.gradient(points, axis=1)))).mean(axis=2)
    colours, gloss = _materials(body, (s[:-1] + s[1:]) / 2, (cabin[:-1] + cabin[1:]) / 2)
    hull = make_quads(cells(points).reshape(-1, 4, 3), colours.reshape(-1, 3), gloss.reshape(-1), SHELL)
    return joined([hull._replace(normals=unit(normals.reshape(-1, 3))), _cap(body, points[0]), _cap(body, points[-1])])


def _cap(body: Body, section: Floats) -> Quads:
    """The face that closes the shell at a cross-section (V, 3)."""
    left, right = section[: len(section) // 2], section[: len(section) // 2 : -1]
    grid = left[:, None] + np.linspace(0, 1, 9)[:, None] * (right - left)[:, None]
    middle = section[len(section) // 2, 0]
    grid[..., 0] = nose_curve(np.full(grid.shape[:2], middle), grid[..., 1], body)
    return make_quads(cells(grid).reshape(-1, 4, 3), body.paint, PAINT_GLOSS, SHELL)


def top(body: Body, s: Floats) -> Floats:
    """Height of the side profile at `s`."""
    style, h = body.style, body.height
    hood, deck = style.hood * h, style.deck * h
    knots = [
        (-0.1, 0.70 * hood), (0.0, 0.74 * hood), (0.025, 0.84 * hood), (0.08, 0.91 * hood), (style.cowl, hood),
        (style.roof[0], h - 0.035), (sum(style.roof) / 2, h), (style.roof[1], h - 0.045),
        (style.tail, deck), (max(style.tail + 0.01, 0.975), deck - 0.02), (1.0, deck - 0.10), (1.1, deck - 0.12),
    ]  # fmt: skip
    grid = np.linspace(-0.1, 1.1, 601)
    line = np.interp(grid, *np.transpose(knots))
    for _ in range(2):  # rounds the corners over about 2 % of the length
        line = np.convolve(np.pad(line, 4, mode="edge"), np.full(9, 1 / 9), "valid")
    return np.asarray(np.interp(s, grid, line), np.float64)


def _section(body: Body, s: Floats) -> tuple[Floats, Floats, Floats]:
    """The left half of the cross-sections at `s`, from the keel up to the roof's middle.

    Returns y and z, both (S, 31), and the cabin's height above the belt line (S,).
    """
    style = body.style
    roof_line = top(body, s)
    to_end = np.minimum(s, 1 - s) * body.length
    round_off = np.sqrt(np.clip(1 - (1 - np.minimum(to_end / 0.55, 1)) ** 2, 0, 1))
    width = body.width / 2 * (0.84 + 0.16 * round_off) * (1 - 0.035 * np.abs(2 * s - 1) ** 2)
    keel = style.clearance + 0.10 * (1 - round_off) ** 2
    belt = body.height * np.interp(s, [0, style.cowl, 1], [style.hood, style.hood + 0.005, style.deck + 0.02])
    belt = np.minimum(belt, roof_line - 0.05)
    cabin = np.maximum(roof_line - 0.05 - belt, 0.0)

    knots = np.arange(8)
    t = np.concatenate([[0.0], np.linspace(1, 7, KEEL_POINTS - 1)])
    y_low = width[:, None] * np.interp(t, knots, [0.0, 0.86, 0.955, 0.99, 1.0, 0.99, 0.955, 0.90])
    z_low = keel[:, None] + (belt - keel)[:, None] * np.interp(t, knots, [0, 0, 0.12, 0.32, 0.55, 0.75, 0.92, 1.0])
    u = np.array([0.05, 0.20, 0.36, 0.52, 0.68, 0.84, 0.93, 1.0])  # belt line to roof rail; glass from 0.05 to 0.84
    lean = 0.20 * np.minimum(cabin / 0.45, 1.2)
    y_side = width[:, None] * (0.90 - lean[:, None] * (u + 0.35 * u**2) / 1.35)
    z_side = belt[:, None] + cabin[:, None] * u
    v = np.linspace(0.95, 0, ROOF_POINTS)
    z_roof = (belt + cabin)[:, None] + 0.05 * (1 - v**3)
    return np.hstack([y_low, y_side, y_side[:, -1:] * v]), np.hstack([z_low, z_side, z_roof]), cabin


def nose_curve(x: Floats, y: Floats, body: Body) -> Floats:
    """Positions x with the bumpers bent back towards the corners."""
    near_end = np.exp(-(body.length / 2 - np.abs(x)) / 0.45)
    return x - np.sign(x) * 0.17 * (2 * np.abs(y) / body.width) ** 2.5 * near_end


def pillars(style: Style) -> list[float]:
    """Where the pillars between the side windows begin and end."""
    first, last = style.roof[0] + 0.09, style.glass_end - 0.16
    return [first, first + 0.022] + ([last, last + 0.022] if last > first + 0.12 else [])


def _materials(body: Body, s: Floats, cabin: Floats) -> tuple[Floats, Floats]:
    """Colours (S, V, 3) and gloss (S, V) of the shell's cells whose middles lie at `s`."""
    style = body.style
    belt, rail, roof = KEEL_POINTS, KEEL_POINTS + 5, KEEL_POINTS + SIDE_POINTS
    half = KEEL_POINTS + SIDE_POINTS + ROOF_POINTS - 1
    column = np.minimum(np.arange(2 * half), np.arange(2 * half)[::-1])  # both halves alike
    starts, ends = np.reshape(pillars(style), (-1, 2)).T
    in_pillar = ((s[:, None] > starts) & (s[:, None] < ends)).any(axis=1)
    beside_windows = (s > style.cowl + 0.03) & (s < style.glass_end) & (cabin > 0.06)
    windscreen = (s > style.cowl) & (s < style.roof[0] - 0.012)
    below = (0.30 if style.deck < 0.7 else 0.12) * (style.tail - style.roof[1])  # a hatch has metal under its window
    rear = (s > style.roof[1] + 0.008) & (s < style.tail - below)

    window = (column >= belt) & (column < rail)
    glass = window & (beside_windows & ~in_pillar)[:, None] | (column >= roof) & (windscreen | rear)[:, None]
    trim = window & (beside_windows & in_pillar)[:, None] | (column == belt - 1) & beside_windows[:, None]
    sill = (column < 3) & ((s > 0.06) & (s < 0.94))[:, None]
    colours = np.full((len(s), 2 * half, 3), body.paint)
    gloss = np.full((len(s), 2 * half), PAINT_GLOSS)
    for where, colour, shine in ((trim, BLACK, 0.08), (glass, GLASS, GLASS_GLOSS), (sill, BLACK, 0.02)):
        colours[where], gloss[where] = colour, shine
    return colours, gloss


def on_side(body: Body, outline: Floats, side: float, lift: float) -> Floats:
    """Outlines (N, 4, 2) in x and z laid on the bodywork of one side, `lift` metres proud of it: (N, 4, 3)."""
    x, z = outline[..., 0], outline[..., 1]
    widths, heights, _ = _section(body, 0.5 - x.ravel() / body.length)
    y = [np.interp(at, h[1:KEEL_POINTS], w[1:KEEL_POINTS]) for at, h, w in zip(z.ravel(), heights, widths, strict=True)]
    return np.stack([x, side * (np.reshape(y, x.shape) + lift), z], axis=-1)

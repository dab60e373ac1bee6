"""Parts fixed to a car's bodywork: wheels, lamps, plates, door gaps, mirrors, the antenna."""

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from segtrain.drawing.body import BLACK, Body, nose_curve, on_side, pillars, top
from segtrain.drawing.quads import (
    INNER,
    MARK,
    OUTER,
    PLATE,
    RIM,
    SPOKE,
    TYRE,
    WELL,
    Colour,
    Floats,
    Quads,
    cells,
    make_quads,
)

RUBBER: Colour = (26, 26, 28)
CHROME: Colour = (168, 170, 174)
LAMP: Colour = (206, 212, 216)
TAIL_LAMP: Colour = (142, 20, 22)
PLATES: tuple[Colour, ...] = ((222, 220, 208), (222, 220, 208), (214, 186, 60))


def wheels(body: Body, rng: np.random.Generator) -> list[Quads]:
    """Wells, tyres, rims and spokes of four wheels."""
    radius = body.wheel
    spokes = _spokes(radius, int(rng.integers(5, 11)), rng.uniform(0, 1))
    bright = np.concatenate([_ring(radius * 0.62, radius * 0.69, 24), spokes, _ring(0.0, radius * 0.16, 12)])
    well, disc, rim = _ring(0.0, radius * 1.15, 28), _ring(0.0, radius, 28), _ring(0.0, radius * 0.68, 24)
    metal = np.asarray(CHROME) * rng.uniform(0.75, 1.15)
    parts = []
    for side in (-1.0, 1.0):
        face = side * (body.width / 2 - 0.035)
        for axle in body.axles:
            hub = np.array([axle, radius])
            arch = well + hub
            arch[..., 1] = np.maximum(arch[..., 1], body.style.clearance + 0.012)  # the bodywork ends there
            inside = np.array([axle, face - side * 0.1, radius])
            outer, inner = _upright(disc + hub, face), _upright(disc + hub, face - side * 0.21)
            tread = np.stack([inner[:, 3], inner[:, 2], outer[:, 2], outer[:, 3]], axis=1)
            parts += [
                make_quads(on_side(body, arch, side, 0.004), BLACK, 0.0, WELL),
                make_quads(tread, RUBBER, 0.0, INNER, inside=inside),
                make_quads(outer, RUBBER, 0.03, TYRE, inside=inside),
                make_quads(_upright(rim + hub, face + side * 0.004), (46, 46, 48), 0.1, RIM, inside=inside),
                make_quads(_upright(bright + hub, face + side * 0.006), metal, 0.25, SPOKE, inside=inside),
            ]
    return parts


def _ring(inner: float, outer: float, count: int) -> Floats:
    """Outlines (count, 4, 2) in x and z of an annulus around 0."""
    angle = np.linspace(0, 2 * np.pi, count + 1)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    return cells(np.stack([circle * inner, circle * outer], axis=1))[:, 0]


def _spokes(radius: float, count: int, twist: float) -> Floats:
    """Outlines (count, 4, 2) in x and z of a wheel's spokes around 0."""
    angle = (np.arange(count) + twist) * 2 * np.pi / count
    out = np.stack([np.cos(angle), np.sin(angle)], axis=-1) * radius * 0.64
    across = np.stack([-np.sin(angle), np.cos(angle)], axis=-1) * radius * (0.42 / count + 0.02)
    return np.stack([across * 1.2, out + across, out - across, -across * 1.2], axis=1)


def _upright(outline: Floats, y: float) -> Floats:
    """Outlines (N, 4, 2) in x and z stood up at `y`: (N, 4, 3)."""
    return np.insert(outline, 1, y, axis=-1)


def fascias(body: Body, rng: np.random.Generator) -> list[Quads]:
    """Grille, lamps, plates and bumper trim of both ends."""
    half, hood, deck = body.width / 2, body.style.hood * body.height, body.style.deck * body.height
    low = body.style.clearance + 0.10
    plate = PLATES[rng.integers(len(PLATES))]
    grille = rng.uniform(0.30, 0.55) * half
    outer = half * 0.84
    lamp = (hood * 0.60, hood * 0.72)
    tail = (min(deck * 0.72, 1.0), min(deck * 0.90, 1.22))
    front, rear = body.length / 2, -body.length / 2
    parts = [
        _on_end(body, 1, (-grille, grille), (lamp[0] - 0.04, lamp[1]), BLACK, 0.05),
        _on_end(body, 1, (-outer * 0.7, outer * 0.7), (low + 0.02, low + 0.11), BLACK, 0.02),
        _on_end(body, 1, (-0.26, 0.26), (low + 0.13, low + 0.24), plate, 0.02, PLATE),
        _on_end(body, -1, (-0.26, 0.26), (tail[0] - 0.06, tail[0] + 0.05), plate, 0.02, PLATE),
        _on_end(body, -1, (-outer * 0.8, outer * 0.8), (low + 0.02, low + 0.08), BLACK, 0.02),
    ]
    for side in (-1.0, 1.0):
        parts += [
            _on_end(body, 1, (side * outer, side * outer * 0.62), lamp, LAMP, 0.45),
            _round_corner(body, side, (front - 0.42, front - 0.02), lamp, LAMP),
            _on_end(body, -1, (side * outer, side * outer * 0.66), tail, TAIL_LAMP, 0.25),
            _round_corner(body, side, (rear + 0.02, rear + 0.30), tail, TAIL_LAMP),
        ]
    return parts


def _on_end(
    body: Body,
    end: float,
    across: tuple[float, float],
    heights: tuple[float, float],
    colour: Colour,
    gloss: float,
    layer: int = MARK,
) -> Quads:
    """A patch on the nose (`end` 1) or the tail (-1) between two y and two z."""
    y, z = np.meshgrid(np.linspace(*across, 7), np.array(heights), indexing="ij")
    x = nose_curve(np.full(y.shape, end * body.length / 2), y, body) + end * 0.006
    return make_quads(cells(np.stack([x, y, z], axis=-1)).reshape(-1, 4, 3), colour, gloss, layer)


def _round_corner(
    body: Body, side: float, along: tuple[float, float], heights: tuple[float, float], colour: Colour
) -> Quads:
    """A lamp's part on the car's side, between two x and two z."""
    outline = cells(np.stack(np.meshgrid(np.linspace(*along, 7), np.array(heights), indexing="ij"), axis=-1))
    corners = on_side(body, outline.reshape(-1, 4, 2), side, 0.0)
    corners[..., 0] = nose_curve(corners[..., 0], corners[..., 1], body)
    corners[..., 1] += side * 0.008
    return make_quads(corners, colour, 0.4, MARK)


def seams(body: Body) -> list[Quads]:
    """Door gaps and handles."""
    style = body.style
    keel, belt = style.clearance + 0.10, style.hood * body.height - 0.03
    doors = [style.cowl + 0.045, pillars(style)[0] + 0.01]
    if style.glass_end - doors[1] > 0.2:
        doors.append(min(doors[1] + 0.20, 0.5 - body.axles[1] / body.length - 0.06))
    dark = np.asarray(body.paint)
    parts = []
    for s in doors:
        x = body.length * (0.5 - s)
        gap = np.concatenate([_rectangle(x - 0.006, x + 0.006, *z) for z in pairwise(np.linspace(keel, belt, 9))])
        handle = _rectangle(x + 0.10, x + 0.29, belt - 0.12, belt - 0.085)
        for side in (-1.0, 1.0):
            parts.append(make_quads(on_side(body, gap, side, 0.003), dark * 0.35, 0.0, MARK))
            if s != doors[0]:
                parts.append(make_quads(on_side(body, handle, side, 0.012), dark * 0.7, 0.3, MARK))
    return parts


def _rectangle(x0: float, x1: float, z0: float, z1: float) -> Floats:
    """One outline (1, 4, 2)."""
    return np.array([[(x0, z0), (x1, z0), (x1, z1), (x0, z1)]])


def mirrors(body: Body) -> list[Quads]:
    """Two rounded mirrors, each with its arm."""
    polar, around = np.meshgrid(np.linspace(0, np.pi, 7), np.linspace(0, 2 * np.pi, 11), indexing="ij")
    ball = np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)], axis=-1)
    case = np.sign(ball) * np.abs(ball) ** 0.7 * (0.075, 0.12, 0.085)
    x, z = body.length * (0.5 - body.style.cowl) - 0.28, body.style.hood * body.height + 0.10
    parts = []
    for side in (-1.0, 1.0):
        out, root = side * (body.width / 2 + 0.07), side * (body.width / 2 - 0.10)
        middle = np.array([x, out, z])
        corners = cells(case + middle).reshape(-1, 4, 3)
        parts.append(make_quads(corners, body.paint, 0.12, OUTER, side=side, inside=middle))
        arm = [(x, root, z - 0.09), (x + 0.08, root, z - 0.09), (x + 0.04, out, z - 0.05), (x - 0.04, out, z - 0.05)]
        for facing in (-1.0, 1.0):  # a plate has two faces
            beyond = middle + np.array([facing, 0.0, 0.0])
            parts.append(make_quads(np.array([arm]), BLACK, 0.02, OUTER, side=side, inside=beyond))
    return parts


def antenna(body: Body, rng: np.random.Generator) -> Quads:
    """A fin on the roof, or a whip 11 mm thin on a front wing or on the roof's front or rear."""
    style, kind = body.style, rng.integers(4)
    if kind == 0:
        return _mast(body, style.roof[1] - 0.03, 0.0, (-0.16, 0.11), (0.28, 0.04), body.paint)
    if kind == 1:
        place, lean, tall = (style.cowl - 0.05, 0.36 * body.width), -0.08, rng.uniform(0.6, 0.8)
    else:
        place = (style.roof[1] - 0.05 if kind == 2 else style.roof[0] + 0.03, 0.0)
        lean, tall = rng.uniform(-0.35, -0.12), rng.uniform(0.3, 0.6)
    return _mast(body, *place, (lean, tall), (0.011, 0.011), RUBBER)


def _mast(
    body: Body, s: float, y: float, tip: tuple[float, float], base: tuple[float, float], colour: ArrayLike
) -> Quads:
    """Four faces from a foot `base` metres long and wide up to a tip as thick as it is wide; `tip` is its (x, z)."""
    foot = np.array([body.length * (0.5 - s), y, float(top(body, np.array([s]))[0]) - 0.03])
    square = np.array([(1.0, 1, 0), (-1, 1, 0), (-1, -1, 0), (1, -1, 0)]) / 2
    end = foot + np.array([tip[0], 0.0, tip[1]])
    low, high = foot + square * (*base, 0), end + square * (base[1], base[1], 0)
    corners = np.stack([low, np.roll(low, -1, axis=0), np.roll(high, -1, axis=0), high], axis=1)
    return make_quads(corners, colour, 0.05, OUTER, side=float(np.sign(y)), inside=(foot + end) / 2)

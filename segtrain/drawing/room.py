"""Synthetic photo studios: a round room of wall panels, a floor, a light, and what stands about in it.

Everything is in metres around the car's turntable at the origin.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from segtrain.drawing.quads import Colour, Floats

WALLS: tuple[Colour, ...] = (
    (222, 222, 220), (196, 198, 200), (150, 152, 156), (96, 98, 104), (58, 60, 66), (186, 176, 158), (140, 152, 168),
    (168, 150, 140),
)  # fmt: skip
FLOORS: tuple[Colour, ...] = (
    (196, 196, 194), (150, 150, 150), (108, 108, 110), (74, 75, 78), (146, 132, 114), (128, 134, 140),
)  # fmt: skip
PROPS: tuple[Colour, ...] = (
    (200, 40, 36), (36, 70, 140), (220, 176, 40), (30, 32, 34), (232, 232, 230), (110, 114, 118), (60, 110, 70),
    (150, 96, 54),
)  # fmt: skip
LAMP = np.array([248.0, 247.0, 242.0])
DARK = np.array([27.0, 27.0, 29.0])
WALL_HEIGHT = 6.5
WALL_LIKE_CAR = 0.06
"""Share of rooms whose walls have the car's own colour; with 0.2 a small U-Net needs twice the demo's time for 0.97."""


class Item(NamedTuple):
    """One upright plate that faces the room's middle."""

    corners: Floats  # (4, 3)
    colour: Floats  # (3,) sRGB
    glow: float = 0.0  # 0 lit by the room, 1 shines by itself


class Studio(NamedTuple):
    """A room and its light."""

    wall: Floats  # (3,) sRGB
    floor: Floats  # (3,) sRGB
    radius: float
    walls: list[Item]
    clutter: list[Item]
    sun: Floats  # (3,) unit vector towards the main light
    light: float  # brightness of the main light
    gloss: float  # share of the car that the floor mirrors
    disc: float  # turntable's radius, 0 for none
    tiles: float  # distance between the floor's joints, 0 for none


def build_studio(rng: np.random.Generator, paint: Colour) -> Studio:
    """A random studio. Some of what stands in it, and in a few rooms the walls, take the car's own colour."""
    wall = np.asarray(WALLS[rng.integers(len(WALLS))]) + rng.normal(0, 6, 3)
    if rng.random() < WALL_LIKE_CAR:
        wall = np.asarray(paint) * rng.choice([0.7, 1.25]) + rng.normal(0, 6, 3)
    wall = np.clip(wall, 34, 238)
    floor = np.clip(np.asarray(FLOORS[rng.integers(len(FLOORS))]) + rng.normal(0, 8, 3), 40, 225)
    radius = rng.uniform(9.5, 13.0)
    colours = np.array([*PROPS, paint, wall * 0.75])
    azimuth = rng.uniform(0, 2 * np.pi)
    sun = np.array([np.cos(azimuth) * 0.45, np.sin(azimuth) * 0.45, 0.9])
    return Studio(
        wall=wall,
        floor=floor,
        radius=radius,
        walls=[*_panels(rng, wall, radius), *_decor(rng, radius, colours)],
        clutter=_clutter(rng, radius, colours),
        sun=sun / np.linalg.norm(sun),
        light=rng.uniform(0.8, 1.15),
        gloss=rng.uniform(0.08, 0.28),
        disc=float(rng.choice([0.0, 2.9, 3.2])),
        tiles=float(rng.choice([0.0, 0.0, 0.6, 1.2])),
    )


def _plate(radius: float, angle: float, width: float, low: float, high: float, lean: float = 0.0) -> Floats:
    """Corners (4, 3) of a plate `radius` from the room's middle; `lean` shifts its top sideways."""
    out = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-out[1], out[0]])
    sideways = np.array([-width / 2, width / 2, width / 2 + lean, -width / 2 + lean])
    return np.column_stack([out * radius + across * sideways[:, None], [low, low, high, high]])


def _panels(rng: np.random.Generator, wall: Floats, radius: float) -> list[Item]:
    """The wall itself: panels, the joints between them, a skirting."""
    count = int(rng.integers(16, 30))
    width = 2 * np.pi * radius / count
    spread, skirting = rng.choice([1.0, 4.0, 12.0]), wall * rng.uniform(0.4, 0.8)
    items = []
    for angle in np.arange(count) * 2 * np.pi / count:
        items += [
            Item(_plate(radius, angle, width * 1.06, 0.0, WALL_HEIGHT), wall + rng.normal(0, spread)),
            Item(_plate(radius - 0.02, angle + np.pi / count, 0.05, 0.0, WALL_HEIGHT), wall * rng.uniform(0.6, 0.9)),
            Item(_plate(radius - 0.03, angle, width * 1.08, 0.0, 0.14), skirting),
        ]
    return items


def _decor(rng: np.random.Generator, radius: float, colours: Floats) -> list[Item]:
    """Doors, windows, lamps, posters and stripes on the wall."""
    items = []
    for _ in range(int(rng.integers(8, 18))):
        angle, colour = rng.uniform(0, 2 * np.pi), rng.choice(colours)
        kind, away = rng.integers(5), radius - 0.05
        if kind == 0:  # a door
            items.append(Item(_plate(away, angle, rng.uniform(0.9, 2.6), 0.0, rng.uniform(2.0, 2.9)), colour))
        elif kind == 1:  # a window
            low = rng.uniform(0.9, 1.8)
            items.append(Item(_plate(away, angle, rng.uniform(0.8, 2.4), low, low + rng.uniform(0.6, 1.8)), LAMP, 1.0))
        elif kind == 2:  # a tube lamp
            low = rng.uniform(3.6, 5.6)
            items.append(Item(_plate(away, angle, rng.uniform(1.0, 4.0), low, low + 0.16), LAMP, 1.0))
        elif kind == 3:  # a poster with a field of another colour
            low, size = rng.uniform(0.6, 1.6), rng.uniform(0.8, 1.6)
            field = _plate(away - 0.01, angle, size * 0.7, low + size * 0.2, low + size * 0.6)
            items += [Item(_plate(away, angle, size, low, low + size), colour), Item(field, rng.choice(colours))]
        else:  # a stripe, bent along the wall
            low, high = np.cumsum([rng.uniform(0.3, 2.2), rng.uniform(0.08, 0.5)])
            bends = angle + np.arange(0, rng.uniform(0.2, 0.9), 0.1)
            items += [Item(_plate(away, bend, 0.104 * radius, low, high), colour) for bend in bends]
    return items


def _clutter(rng: np.random.Generator, radius: float, colours: Floats) -> list[Item]:
    """Poles, cupboards, lamps, ladders and shelves in front of the wall."""
    makers: list[Callable[..., list[Item]]] = [_pole, _cupboard, _soft_box, _ladder, _shelves]
    items = []
    for _ in range(int(rng.integers(9, 20))):
        make = makers[rng.integers(len(makers))]
        items += make(rng, rng.uniform(0.62, 0.95) * radius, rng.uniform(0, 2 * np.pi), colours)
    return items


def _pole(rng: np.random.Generator, away: float, angle: float, colours: Floats) -> list[Item]:
    return [Item(_plate(away, angle, rng.uniform(0.06, 0.35), 0.0, WALL_HEIGHT), rng.choice(colours))]


def _cupboard(rng: np.random.Generator, away: float, angle: float, colours: Floats) -> list[Item]:
    """A front, a darker flank and the gap of a drawer."""
    width, height, colour = rng.uniform(0.5, 1.8), rng.uniform(0.5, 2.1), rng.choice(colours)
    return [
        Item(_plate(away + 0.02, angle + 0.3 * width / away, width, 0.0, height * 0.985), colour * 0.6),
        Item(_plate(away, angle, width, 0.0, height), colour),
        Item(_plate(away - 0.02, angle, width * 0.9, height * 0.7, height * 0.74), colour * 0.5),
    ]


def _soft_box(rng: np.random.Generator, away: float, angle: float, _colours: Floats) -> list[Item]:
    """A bright screen in a dark frame on a stand."""
    size, low = rng.uniform(0.6, 1.3), rng.uniform(1.5, 2.6)
    return [
        Item(_plate(away, angle, 0.05, 0.0, low), DARK),
        Item(_plate(away - 0.01, angle, size * 1.1, low, low + size * 0.86), DARK),
        Item(_plate(away - 0.02, angle, size, low + 0.03, low + size * 0.8), LAMP, 1.0),
    ]


def _ladder(rng: np.random.Generator, away: float, angle: float, colours: Floats) -> list[Item]:
    lean, height, colour = rng.uniform(-0.4, 0.4), rng.uniform(1.6, 3.0), rng.choice(colours)
    rails = [_plate(away, angle + aside / away, 0.05, 0.0, height, lean) for aside in (-0.2, 0.2)]
    steps = np.arange(0.3, height, 0.3)
    rungs = [_plate(away, angle + lean * at / height / away, 0.42, at, at + 0.04) for at in steps]
    return [Item(corners, colour) for corners in (*rails, *rungs)]


def _shelves(rng: np.random.Generator, away: float, angle: float, colours: Floats) -> list[Item]:
    """A back, boards and boxes on the boards."""
    width, height, colour = rng.uniform(0.8, 2.0), rng.uniform(1.2, 2.4), rng.choice(colours)
    items = [Item(_plate(away + 0.02, angle, width, 0.0, height), colour * 0.55)]
    for board in np.arange(0.05, height, 0.45):
        items.append(Item(_plate(away, angle, width, board, board + 0.05), colour))
        for aside in np.arange(-width / 2 + 0.15, width / 2 - 0.1, 0.3):
            box = _plate(away, angle + aside / away, 0.24, board + 0.05, board + rng.uniform(0.15, 0.38))
            items.append(Item(box, rng.choice(colours)))
    return items

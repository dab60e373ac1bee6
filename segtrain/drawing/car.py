"""One drawn car: its body type, size and paint, built into faces."""

from typing import NamedTuple

import numpy as np

from segtrain.drawing.body import Body, Style, shell
from segtrain.drawing.car_parts import antenna, fascias, mirrors, seams, wheels
from segtrain.drawing.quads import Colour, Quads, joined

STYLES = (
    Style((4.5, 5.0), (1.78, 1.90), (1.40, 1.48), 0.19, 0.29, (0.44, 0.69), 0.87, 0.66, 0.73, 0.80),  # saloon
    Style((3.8, 4.3), (1.70, 1.80), (1.44, 1.55), 0.19, 0.25, (0.41, 0.86), 0.97, 0.64, 0.66, 0.90),  # hatchback
    Style((4.5, 5.0), (1.85, 2.00), (1.66, 1.85), 0.26, 0.26, (0.39, 0.90), 0.98, 0.64, 0.65, 0.93),  # off-roader
    Style((4.6, 4.9), (1.78, 1.88), (1.44, 1.52), 0.19, 0.27, (0.42, 0.90), 0.975, 0.65, 0.68, 0.92),  # estate
    Style((4.2, 4.7), (1.80, 1.92), (1.26, 1.36), 0.15, 0.34, (0.49, 0.64), 0.90, 0.66, 0.76, 0.76),  # coupe
    Style((5.1, 5.6), (1.88, 2.02), (1.76, 1.90), 0.30, 0.26, (0.37, 0.57), 0.605, 0.62, 0.62, 0.585),  # pickup
    Style((4.7, 5.2), (1.88, 2.00), (1.85, 2.05), 0.22, 0.16, (0.31, 0.955), 0.985, 0.60, 0.55, 0.95),  # van
)

PAINTS: tuple[Colour, ...] = (
    (226, 227, 228), (214, 214, 210), (168, 172, 176), (140, 143, 147), (88, 92, 98), (52, 54, 58), (30, 31, 34),
    (120, 22, 26), (168, 36, 32), (34, 52, 96), (58, 86, 128), (46, 72, 62), (126, 112, 92), (182, 168, 142),
    (92, 62, 48), (206, 164, 52), (196, 92, 40),
)  # fmt: skip


class Car(NamedTuple):
    """A car's faces, and the numbers that they were built from."""

    quads: Quads
    body: Body


def build_car(rng: np.random.Generator, style: Style) -> Car:
    """One car of a body type, of random size and paint."""
    length, width, height = (rng.uniform(*size) for size in (style.length, style.width, style.height))
    red, green, blue = np.clip(np.asarray(PAINTS[rng.integers(len(PAINTS))]) + rng.normal(0, 8, 3), 20, 232).tolist()
    wheel = 0.31 + 0.11 * (height - 1.4) + rng.uniform(-0.01, 0.02)
    front = length * (0.5 - rng.uniform(0.175, 0.20))
    axles = (front, front - length * rng.uniform(0.57, 0.60))
    body = Body(style, length, width, height, (red, green, blue), axles, wheel)
    parts = [shell(body), *wheels(body, rng), *fascias(body, rng), *seams(body), *mirrors(body), antenna(body, rng)]
    return Car(joined(parts), body)

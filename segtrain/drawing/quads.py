"""Flat coloured faces in space, the stuff that drawn cars are made of.

Axes: x points to the car's nose, y to its left, z up, in metres; the origin lies on the floor under the car's middle.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Colour = tuple[float, float, float]
"""sRGB, 0..255."""

INNER, SHELL, MARK, PLATE, WELL, TYRE, RIM, SPOKE, OUTER = range(9)
"""Painting order of a car's parts, before distance. OUTER parts of the far side count as INNER."""

INSIDE = np.array([0.0, 0.0, 0.6])
"""A point inside every car: what sits on the bodywork faces away from it."""


class Quads(NamedTuple):
    """Faces with four corners; row i of every array describes face i."""

    corners: Floats  # (N, 4, 3) metres
    normals: Floats  # (N, 3) outward, unit length
    colours: Floats  # (N, 3) sRGB 0..255 before light
    gloss: Floats  # (N,) share of the surroundings mirrored at a right angle, 0..1
    layer: NDArray[np.int64]  # (N,) painting order, INNER..OUTER
    side: Floats  # (N,) +1 left, -1 right: on which side an OUTER part stands


def make_quads(
    corners: Floats, colour: ArrayLike, gloss: ArrayLike, layer: int, *, side: float = 0.0, inside: Floats = INSIDE
) -> Quads:
    """Faces from corners (N, 4, 3); colour and gloss are one for all or one a face; normals turn away from `inside`."""
    normals = unit(np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1]))
    inward = (normals * (corners.mean(axis=1) - inside)).sum(axis=1) < 0
    count = len(corners)
    return Quads(
        corners,
        np.where(inward[:, None], -normals, normals),
        np.broadcast_to(np.asarray(colour, np.float64), (count, 3)),
        np.broadcast_to(np.asarray(gloss, np.float64), (count,)),
        np.full(count, layer),
        np.full(count, side),
    )


def joined(parts: list[Quads]) -> Quads:
    """All faces of `parts` in one."""
    return Quads(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def cells(grid: Floats) -> Floats:
    """Corners (S-1, V-1, 4, D) of the cells of a grid of points (S, V, D)."""
    return np.stack([grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]], axis=2)


def unit(vectors: Floats) -> Floats:
    """Vectors (..., 3) of length 1; those of no length stay zero."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9), np.float64)

"""A pinhole camera."""

from typing import NamedTuple, Self

import numpy as np

from segtrain.drawing.quads import Floats

NEAR_M = 0.3
"""Nothing nearer to the camera than this is drawn."""


class Camera(NamedTuple):
    """Position, axes and lens; pixels count from a picture's top left corner, (0, 0)."""

    position: Floats  # (3,) metres
    axes: Floats  # (3, 3) rows: right, down, forward
    focal: float  # pixels
    centre: tuple[float, float]  # pixel that lies straight ahead

    def project(self, points: Floats) -> tuple[Floats, Floats]:
        """Pixel positions (..., 2) and depths (...) in metres of points (..., 3)."""
        seen = (points - self.position) @ self.axes.T
        depth = seen[..., 2]
        return seen[..., :2] / np.maximum(depth, 1e-6)[..., None] * self.focal + self.centre, depth

    def scaled(self, scale: float) -> Self:
        """The same camera for a picture `scale` times the size."""
        return self._replace(focal=self.focal * scale, centre=(self.centre[0] * scale, self.centre[1] * scale))


def look_at(position: Floats, target: Floats, focal: float) -> Camera:
    """A level camera at `position` that shows `target` at pixel (0, 0)."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    return Camera(position, np.stack([right, np.cross(forward, right), forward]), focal, (0.0, 0.0))

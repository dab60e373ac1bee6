"""Drawn cars: whole shapes, exact masks, the same scene at any size."""

import numpy as np
import pytest

from segtrain.drawing.body import Style
from segtrain.drawing.camera import Camera, look_at
from segtrain.drawing.car import STYLES, Car, build_car
from segtrain.drawing.quads import OUTER
from segtrain.drawing.rendering import render_scene
from segtrain.drawing.room import build_studio


def _camera(car: Car, angle: float, width: int) -> Camera:
    position = np.array([7 * np.cos(angle), 7 * np.sin(angle), 1.5])
    camera = look_at(position, np.array([0.0, 0.0, car.body.height / 2]), width * 0.9)
    return camera._replace(centre=(width / 2, width / 3))


@pytest.mark.parametrize("style", STYLES)
def test_normals_are_unit_vectors_and_the_car_stands_on_the_floor(style: Style) -> None:
    car = build_car(np.random.default_rng(0), style)
    corners = car.quads.corners
    area = np.linalg.norm(np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1]), axis=1)
    assert np.isfinite(corners).all()
    np.testing.assert_allclose(np.linalg.norm(car.quads.normals[area > 1e-8], axis=1), 1)
    assert corners[..., 2].min() == pytest.approx(0, abs=0.01)
    assert np.ptp(corners[..., 0]) == pytest.approx(car.body.length, abs=0.03)


def test_a_smaller_picture_shows_the_same_scene() -> None:
    rng = np.random.default_rng(1)
    car = build_car(rng, STYLES[0])
    studio = build_studio(rng, car.body.paint)
    large, large_mask = render_scene(car, studio, _camera(car, 0.7, 480), (480, 320))
    small, small_mask = render_scene(car, studio, _camera(car, 0.7, 240), (240, 160))
    shrunk = large.reshape(160, 2, 240, 2, 3).mean(axis=(1, 3))
    shrunk_mask = large_mask.reshape(160, 2, 240, 2).mean(axis=(1, 3)) >= 0.5
    assert np.abs(shrunk - small).mean() < 6
    assert 2 * (shrunk_mask & (small_mask == 1)).sum() / (shrunk_mask.sum() + small_mask.sum()) > 0.97


def test_the_mask_is_where_the_car_hides_the_studio() -> None:
    """The car's paint shows inside the mask only, though its reflection and shadow lie outside."""
    rng = np.random.default_rng(2)
    car = build_car(rng, STYLES[0])
    studio = build_studio(rng, car.body.paint)._replace(gloss=0.0)
    dyed = car._replace(quads=car.quads._replace(colours=255 - car.quads.colours))
    camera = _camera(car, 0.7, 480)
    picture, mask = render_scene(car, studio, camera, (480, 320))
    other, other_mask = render_scene(dyed, studio, camera, (480, 320))
    np.testing.assert_array_equal(mask, other_mask)
    changed = np.abs(picture.astype(int) - other).max(axis=-1) > 0
    assert changed[mask == 1].mean() > 0.9
    padded = np.pad(mask, 1, mode="edge")
    around = np.max([padded[y : y + 320, x : x + 480] for y in range(3) for x in range(3)], axis=0)
    assert not changed[around == 0].any()


def test_a_thin_antenna_is_in_the_mask_at_full_size() -> None:
    cars = (build_car(np.random.default_rng(seed), STYLES[0]) for seed in range(100))
    car = next(c for c in cars if c.quads.corners[c.quads.layer == OUTER][..., 2].max() > c.body.height + 0.25)
    studio = build_studio(np.random.default_rng(0), car.body.paint)
    _, mask = render_scene(car, studio, _camera(car, np.pi / 2, 1918), (1918, 1280))
    top = int(np.flatnonzero(mask.any(axis=1))[0])
    thickness = mask[top + 2 : top + 40].sum(axis=1)
    assert thickness.min() >= 1
    assert thickness.max() <= 6

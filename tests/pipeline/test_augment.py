"""Image and mask move together; photometry leaves masks alone; draws depend on the sample and nothing else."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segtrain.config import AugmentConfig
from segtrain.pipeline.augment import Draws, apply, crop_corner, draw_augmentation, move, recolour, transforms, uniforms

KEYS = np.array([3, 17, 2**62 + 5, 991, 12, 7, 8, 9], np.int64)
HEIGHT, WIDTH = 48, 64


def blobs() -> np.ndarray:
    """Pictures (8, H, W, 4) that are white exactly where their mask is 1: an off-centre L, so that every move shows."""
    masks = np.zeros((len(KEYS), HEIGHT, WIDTH, 1), np.uint8)
    masks[:, 10:38, 12:20] = 1
    masks[:, 30:38, 12:44] = 1
    return np.concatenate([masks * np.uint8(255)] * 3 + [masks], axis=3)


def noise() -> np.ndarray:
    """Pictures (8, H, W, 4) of noise, with masks of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (len(KEYS), HEIGHT, WIDTH, 4), np.uint8)
    pixels[..., 3] //= 128
    return pixels


def augment(
    config: AugmentConfig, seed: int, epoch: int, pixels: np.ndarray, keys: np.ndarray
) -> tuple[tf.Tensor, tf.Tensor]:
    """Draw for pictures (B, H, W, 4), and apply to their images and masks."""
    draws = draw_augmentation(config, seed, epoch, keys, *pixels.shape[1:3])
    return apply(config, pixels[..., :3], pixels[..., 3:], draws)


def to_float(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images and masks as they are without any augmentation."""
    return pixels[..., :3].astype(np.float32) / np.float32(255), pixels[..., 3:].astype(np.float32)


def disagreement(images: tf.Tensor, masks: tf.Tensor) -> np.ndarray:
    """Fraction of pixels of each sample where the white of the image is not the object of the mask."""
    return np.mean((np.asarray(images)[..., :1] >= 0.5) != (np.asarray(masks) >= 0.5), axis=(1, 2, 3))


GEOMETRIES = {
    "flip": AugmentConfig(flip=1.0),
    "rotate": AugmentConfig(flip=0.0, rotate_degrees=90.0),
    "scale": AugmentConfig(flip=0.0, scale=0.4),
    "shift": AugmentConfig(flip=0.0, shift=0.3),
    "all": AugmentConfig(flip=0.5, rotate_degrees=180.0, scale=0.3, shift=0.2),
}


@pytest.mark.parametrize("config", GEOMETRIES.values(), ids=GEOMETRIES)
def test_every_geometric_augmentation_moves_image_and_mask_together(config: AugmentConfig) -> None:
    pixels = blobs()
    images, masks = to_float(pixels)
    moved_images, moved_masks = augment(config, 0, 0, pixels, KEYS)
    assert set(np.unique(moved_masks)) <= {0.0, 1.0}
    # Bilinear and nearest sampling may differ on the outline alone, which is 4 % of the pixels.
    assert disagreement(moved_images, moved_masks).max() < 0.02
    # Had only one of the two moved, this test would see it: the moved mask is far from where the object was.
    assert disagreement(images, moved_masks).mean() > 0.05
    assert disagreement(moved_images, masks).mean() > 0.05


def test_what_comes_in_at_the_edge_is_the_picture_reflected() -> None:
    pixels = np.full((len(KEYS), HEIGHT, WIDTH, 4), 255, np.uint8)
    pixels[..., 3] = 1
    images, masks = augment(GEOMETRIES["all"], 0, 0, pixels, KEYS)
    np.testing.assert_allclose(images, 1.0, atol=1e-5)
    np.testing.assert_array_equal(masks, np.ones((len(KEYS), HEIGHT, WIDTH, 1)))


def test_flips_alone_are_exact_and_equal_to_the_projective_path() -> None:
    pixels = noise()
    images, masks = to_float(pixels)
    config = AugmentConfig(flip=0.5)
    flips = draw_augmentation(config, 0, 0, KEYS, HEIGHT, WIDTH).flips
    assert 0 < flips.sum() < len(KEYS)
    flipped, flipped_masks = augment(config, 0, 0, pixels, KEYS)
    for at, flip in enumerate(flips):
        step = -1 if flip else 1
        np.testing.assert_array_equal(flipped[at], images[at, :, ::step])
        np.testing.assert_array_equal(flipped_masks[at], masks[at, :, ::step])
    # A rotation of next to nothing sends the same draws through the projective transform.
    tiny = AugmentConfig(flip=0.5, rotate_degrees=1e-6)
    projected, projected_masks = augment(tiny, 0, 0, pixels, KEYS)
    np.testing.assert_allclose(projected, flipped, atol=1e-3)
    np.testing.assert_array_equal(projected_masks, flipped_masks)


@pytest.mark.parametrize(
    ("flip", "angle", "scale", "shift_y", "shift_x", "expected"),
    [
        (False, 0.0, 1.0, 5.0, 3.0, (29, 33)),  # 5 down, 3 right
        (True, 0.0, 1.0, 0.0, 0.0, (24, 10)),  # 10 right becomes 10 left
        (False, np.pi / 2, 1.0, 0.0, 0.0, (10, 24)),  # counter-clockwise: right goes up, down goes right
        (False, 0.0, 2.0, 0.0, 0.0, (28, 40)),  # twice as far from the centre
    ],
    ids=["shift", "flip", "quarter turn", "scale"],
)
def test_a_known_transform_puts_a_point_where_it_belongs(
    flip: bool, angle: float, scale: float, shift_y: float, shift_x: float, expected: tuple[int, int]
) -> None:
    # On 41 x 41 pixels the centre is (20, 20); the point stands 4 below it and 10 to the right.
    numbers = (np.full(1, number) for number in (angle, scale, shift_y, shift_x))
    matrices = transforms(np.full(1, flip), *numbers, height=41, width=41)
    pixels = np.zeros((1, 41, 41, 4), np.uint8)
    pixels[0, 24, 30] = 1
    config = AugmentConfig(rotate_degrees=90.0)
    _, moved = move(
        config, pixels[..., :3], pixels[..., 3:], Draws(np.full(1, flip), matrices, np.zeros((1, 2), np.float32))
    )
    assert list(expected) in np.argwhere(np.asarray(moved)[0, :, :, 0]).tolist()


def test_photometry_leaves_masks_bit_identical() -> None:
    pixels = noise()
    images, masks = to_float(pixels)
    recoloured, same = augment(AugmentConfig(flip=0.0, contrast=0.5, brightness=0.3), 0, 0, pixels, KEYS)
    np.testing.assert_array_equal(same, masks)
    assert np.abs(np.asarray(recoloured) - images).mean() > 0.05
    assert np.asarray(recoloured).min() >= 0.0
    assert np.asarray(recoloured).max() <= 1.0


def test_brightness_adds_and_contrast_stretches_about_the_mean() -> None:
    images = np.full((1, 4, 4, 3), 0.4, np.float32)
    images[0, :2] = 0.6
    draws = Draws(np.zeros(1, bool), np.zeros((1, 8), np.float32), np.array([[1.5, 0.1]], np.float32))
    recoloured = recolour(AugmentConfig(contrast=0.5), images, draws)
    np.testing.assert_allclose(np.unique(np.asarray(recoloured).round(5)), [0.45, 0.75], atol=1e-5)


def test_with_every_setting_at_zero_a_picture_stays_as_it_is() -> None:
    pixels = noise()
    same, masks = augment(AugmentConfig(flip=0.0), 0, 0, pixels, KEYS)
    np.testing.assert_array_equal(same, pixels[..., :3].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(masks, pixels[..., 3:].astype(np.float32))


def test_draws_do_not_depend_on_the_batch_a_sample_comes_in() -> None:
    config = GEOMETRIES["all"]
    together = draw_augmentation(config, 5, 2, KEYS, HEIGHT, WIDTH)
    for at in range(len(KEYS)):
        alone = draw_augmentation(config, 5, 2, KEYS[at : at + 1], HEIGHT, WIDTH)
        np.testing.assert_array_equal(alone.transforms[0], together.transforms[at])
        np.testing.assert_array_equal(alone.photometry[0], together.photometry[at])
        assert alone.flips[0] == together.flips[at]


def test_epochs_and_seeds_draw_differently() -> None:
    config = GEOMETRIES["all"]
    drawn = [
        draw_augmentation(config, seed, epoch, KEYS, HEIGHT, WIDTH).transforms
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert not np.allclose(drawn[0], drawn[1])
    assert not np.allclose(drawn[0], drawn[2])


def test_turning_one_setting_on_leaves_the_draws_of_the_others() -> None:
    plain = draw_augmentation(AugmentConfig(flip=0.5), 0, 0, KEYS, HEIGHT, WIDTH)
    more = draw_augmentation(AugmentConfig(flip=0.5, rotate_degrees=10.0, brightness=0.2), 0, 0, KEYS, HEIGHT, WIDTH)
    np.testing.assert_array_equal(plain.flips, more.flips)


def test_uniform_numbers_are_uniform_and_unrelated() -> None:
    numbers = uniforms(0, 0, np.arange(20_000, dtype=np.int64), 7)
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    np.testing.assert_allclose(numbers.mean(axis=0), 0.5, atol=0.01)
    np.testing.assert_allclose(numbers.var(axis=0), 1 / 12, atol=0.002)
    correlation = np.corrcoef(np.concatenate([numbers[:-1], numbers[1:]], axis=1).T) - np.eye(14)
    assert np.abs(correlation).max() < 0.04


def test_crops_fall_everywhere_and_depend_on_seed_epoch_and_sample_alone() -> None:
    corners = np.array([crop_corner(0, 0, key, (12, 9), (10, 9)) for key in range(3000)])
    assert (corners[:, 1] == 0).all()
    counts = np.bincount(corners[:, 0])
    assert len(counts) == 3
    assert np.abs(counts - 1000).max() < 100  # 4 standard deviations
    assert crop_corner(0, 0, 5, (1280, 1918), (512, 512)) == crop_corner(0, 0, 5, (1280, 1918), (512, 512))
    places = {crop_corner(seed, epoch, 5, (1280, 1918), (512, 512)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(places) == 4


def corners(mask, size, *, boundary, count=400):
    return [
        crop_corner(0, 1, key, mask.shape, size, boundary=boundary, mask=lambda: mask) for key in range(1, count + 1)
    ]


def has_edge(mask, corner, size):
    window = mask[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
    return window.min() != window.max()


@given(
    mask=arrays(np.uint8, st.tuples(st.integers(4, 12), st.integers(4, 12)), elements=st.integers(0, 1)),
    key=st.integers(1, 2**62),
    data=st.data(),
)
def test_a_window_on_the_boundary_lies_within_the_picture_and_holds_an_edge_where_there_is_one(mask, key, data):
    size = data.draw(st.integers(2, mask.shape[0])), data.draw(st.integers(2, mask.shape[1]))
    top, left = crop_corner(0, 0, key, mask.shape, size, boundary=1.0, mask=lambda: mask)
    assert 0 <= top <= mask.shape[0] - size[0]
    assert 0 <= left <= mask.shape[1] - size[1]
    assert has_edge(mask, (top, left), size) == (mask.min() != mask.max())


def test_the_asked_share_of_windows_is_placed_on_the_boundary():
    mask = np.zeros((200, 300), np.uint8)
    mask[90:110, 150:170] = 1
    size = (16, 16)
    anywhere = np.mean([has_edge(mask, corner, size) for corner in corners(mask, size, boundary=0.0)])
    half = np.mean([has_edge(mask, corner, size) for corner in corners(mask, size, boundary=0.5)])
    assert anywhere < 0.05
    assert 0.42 < half < 0.62
    assert all(has_edge(mask, corner, size) for corner in corners(mask, size, boundary=1.0))


def test_windows_that_are_not_on_the_boundary_stay_where_they_were_without_it():
    mask = np.zeros((64, 64), np.uint8)
    mask[30:40, 30:40] = 1
    plain, some = corners(mask, (16, 16), boundary=0.0), corners(mask, (16, 16), boundary=0.5)
    assert 0.35 < np.mean([one == other for one, other in zip(plain, some, strict=True)]) < 0.65


def test_an_edge_is_found_anywhere_in_a_window_on_it():
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 1
    places = {31 - left for _, left in corners(mask, (8, 8), boundary=1.0)}
    assert places == set(range(7))

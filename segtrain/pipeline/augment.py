"""Random changes to training pictures: drawn in NumPy on the host, applied on the device inside the step.

What happens to a sample depends on (seed, epoch, sample key) alone, so it is the same on any worker, replica, batch
or retry. Geometry moves image and mask by one transform, in one function; photometry touches the image alone. Pictures
travel to the device as uint8, a quarter of their size as float32.
"""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from segtrain.config import AugmentConfig

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class Draws(NamedTuple):
    """What happens to each of B samples: NumPy arrays as drawn, tensors in the step."""

    flips: Any
    """bool (B,): turned left to right."""
    transforms: Any
    """float32 (B, 8): projective transforms from output to input pixels, the flip included, as
    `ImageProjectiveTransformV3` takes them."""
    photometry: Any
    """float32 (B, 2): contrast as a factor, brightness as an addend."""


def uniforms(seed: int, epoch: int, keys: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """(B, count) numbers in [0, 1) from (seed, epoch, key) alone.

    Each key starts its own SplitMix64 sequence (Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators", 2014): 23 us for a batch of 16, where one Philox generator a sample takes 230 us.
    """
    digest = hashlib.blake2b(f"augment/{seed}/{epoch}".encode(), digest_size=8).digest()
    start = _mix(keys.astype(np.uint64) ^ np.uint64(int.from_bytes(digest, "little")))
    states = start[:, None] + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
    return (_mix(states) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))


def draw_augmentation(
    config: AugmentConfig, seed: int, epoch: int, keys: NDArray[np.int64], height: int, width: int
) -> Draws:
    """Draw for the samples with these keys; every setting has its own number, so turning one on changes no other."""
    number = uniforms(seed, epoch, keys, 7)
    either_way = 2.0 * number - 1.0
    flips = number[:, 0] < config.flip
    angle = np.radians(config.rotate_degrees) * either_way[:, 1]
    scale = 1.0 + config.scale * either_way[:, 2]
    shift_y = config.shift * height * either_way[:, 3]
    shift_x = config.shift * width * either_way[:, 4]
    photometry = np.stack([1.0 + config.contrast * either_way[:, 5], config.brightness * either_way[:, 6]], axis=1)
    return Draws(
        flips=flips,
        transforms=transforms(flips, angle, scale, shift_y, shift_x, height, width),
        photometry=photometry.astype(np.float32),
    )


def transforms(
    flips: NDArray[np.bool_],
    angle: NDArray[np.float64],
    scale: NDArray[np.float64],
    shift_y: NDArray[np.float64],
    shift_x: NDArray[np.float64],
    height: int,
    width: int,
) -> NDArray[np.float32]:
    """(B, 8) maps from output to input: undo the shift, turn and scale about the centre, then mirror.

    An input pixel is `c + F R(angle) / scale (p - c - shift)` for the output pixel p, the centre c and the mirror F.
    """
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    mirror = np.where(flips, -1.0, 1.0)
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    xx, xy = mirror * cosine, -mirror * sine
    yx, yy = sine, cosine
    x0 = centre_x - xx * (centre_x + shift_x) - xy * (centre_y + shift_y)
    y0 = centre_y - yx * (centre_x + shift_x) - yy * (centre_y + shift_y)
    zero = np.zeros_like(angle)
    return np.stack([xx, xy, x0, yx, yy, y0, zero, zero], axis=1).astype(np.float32)


def crop_corner(
    seed: int,
    epoch: int,
    key: int,
    stored: tuple[int, int],
    size: tuple[int, int],
    *,
    boundary: float = 0.0,
    mask: Callable[[], NDArray[np.uint8]] | None = None,
) -> tuple[int, int]:
    """(top, left) of a window of `size` (height, width) in a picture of `stored` (height, width).

    All places are equally likely, but a share `boundary` of the windows holds an object's edge, where `mask()`, uint8
    {0, 1} (H, W), has one. Then all places of the edge are equally likely, and all places of it in the window.
    """
    number = uniforms(seed, epoch, np.array([key], np.int64), 13)[0, 7:]
    # Numbers 7 and 8 place a window anywhere, and did before there were edges to place one on.
    ranges = [(0, have - want) for have, want in zip(stored, size, strict=True)]
    if mask is not None and number[2] < boundary:
        edge = _edge(mask(), number[3])
        if edge is not None:
            ranges = [
                # Both pixels, the one on each side of the edge, within the window, and the window within the picture.
                (max(low, after - want + 1), min(high, before))
                for (low, high), (before, after), want in zip(ranges, edge, size, strict=True)
            ]
            number = number[4:]
    top, left = (low + int(u * (high - low + 1)) for (low, high), u in zip(ranges, number[:2], strict=True))
    return top, left


def _edge(mask: NDArray[np.uint8], number: float) -> list[tuple[int, int]] | None:
    """Two neighbours that differ, as ((row, row), (column, column)); `number` in [0, 1) chooses among all of them.

    Neighbours in a row; those in a column only where no row has any. None where the mask is all of one kind.
    """
    for axis in (1, 0):
        places = np.flatnonzero(np.diff(mask.view(np.bool_), axis=axis))
        if places.size:
            row, column = divmod(int(places[int(number * places.size)]), mask.shape[1] - axis)
            return [(row, row + 1 - axis), (column, column + axis)]
    return None


def apply(config: AugmentConfig, images: tf.Tensor, masks: tf.Tensor, draws: Draws) -> tuple[tf.Tensor, tf.Tensor]:
    """Change pictures as drawn: images uint8 (B, H, W, 3) and masks uint8 {0, 1} (B, H, W, 1).

    Returns images float32 (B, H, W, 3) in [0, 1] and masks float32 {0, 1} (B, H, W, 1).
    """
    images, masks = move(config, images, masks, draws)
    return recolour(config, images, draws), masks


def to_float(images: tf.Tensor) -> tf.Tensor:
    """Images uint8 (B, H, W, 3) as float32 in [0, 1]."""
    return tf.cast(images, tf.float32) / 255.0


def move(config: AugmentConfig, images: tf.Tensor, masks: tf.Tensor, draws: Draws) -> tuple[tf.Tensor, tf.Tensor]:
    """Image and mask under the same geometry, as float32.

    Flips alone are exact. Otherwise images are sampled bilinearly and masks by the nearest pixel; what comes in from
    outside is the picture reflected at its edge, in both.
    """
    if config.rotate_degrees or config.scale or config.shift:
        images, masks = to_float(images), tf.cast(masks, tf.float32)
        return _project(images, draws.transforms, "BILINEAR"), _project(masks, draws.transforms, "NEAREST")
    if config.flip:
        images, masks = _flip(images, draws.flips), _flip(masks, draws.flips)
    return to_float(images), tf.cast(masks, tf.float32)


def _flip(pictures: tf.Tensor, flips: tf.Tensor) -> tf.Tensor:
    # Not pictures[:, :, ::-1]: a strided slice takes more than twice the time of a reversal.
    return tf.where(flips[:, None, None, None], tf.reverse(pictures, [2]), pictures)


def _project(pictures: tf.Tensor, transforms: tf.Tensor, interpolation: str) -> tf.Tensor:
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=pictures,
        transforms=transforms,
        output_shape=tf.shape(pictures)[1:3],
        fill_value=0.0,
        interpolation=interpolation,
        fill_mode="REFLECT",
    )


def recolour(config: AugmentConfig, images: tf.Tensor, draws: Draws) -> tf.Tensor:
    """Images float32 (B, H, W, 3) in [0, 1] with their contrast about the picture's mean, and brightness, changed."""
    if not (config.contrast or config.brightness):
        return images
    contrast, brightness = (draws.photometry[:, at, None, None, None] for at in (0, 1))
    mean = tf.reduce_mean(images, axis=[1, 2, 3], keepdims=True)
    return tf.clip_by_value((images - mean) * contrast + mean + brightness, 0.0, 1.0)

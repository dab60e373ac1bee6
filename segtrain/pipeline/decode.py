"""Stored bytes to pixels at the training size. Every function is safe to call from many threads at once.

TensorFlow's eager ops let go of Python's lock, so a thread pool decodes on every core. A `tf.data` map would not do:
with deterministic ops on, TensorFlow runs a map that a generator feeds one element at a time.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from segtrain.dataset.shards import Row, unpack_mask, unpack_mask_window
from segtrain.errors import DataError
from segtrain.pipeline.batches import DecodedPicture
from segtrain.pipeline.plan import sample_key

_JPEG = b"\xff\xd8\xff"


def decode_picture(row: Row, size: tuple[int, int] | None = None) -> DecodedPicture:
    """Image and mask of a labelled row, resized where a size (height, width) is given.

    Raises `DataError` that names the id where the bytes cannot be decoded.
    """
    height, width = size or (row.height, row.width)
    image, mask = decode_image(row, height, width), decode_mask(row, height, width)
    return DecodedPicture(row.id, sample_key(row.id), image, mask)


def decode_window(row: Row, top: int, left: int, height: int, width: int) -> DecodedPicture:
    """The same window of image and mask of a labelled row, at the picture's own resolution.

    Of an upright JPEG libjpeg decodes only the window's columns, and no row below it (the outermost columns may differ
    from the whole picture's by a few levels of colour). Of the mask only the window's bytes are unpacked.
    Raises `DataError` that names the id where the bytes cannot be decoded.
    """
    assert 0 <= top <= row.height - height, "the window is inside the picture"
    assert 0 <= left <= row.width - width, "the window is inside the picture"
    assert row.mask is not None, f"id {row.id} has no mask"
    window = slice(top, top + height), slice(left, left + width)
    mask = unpack_mask_window(row.mask, row.height, row.width, window)
    if row.image.startswith(_JPEG) and row.orientation == 1:
        image = _decode(row, tf.io.decode_and_crop_jpeg, crop_window=(top, left, height, width), channels=3)
    else:
        image = decode_image(row, row.height, row.width)[window]
    return DecodedPicture(row.id, sample_key(row.id), image, mask)


def decode_image(row: Row, height: int, width: int) -> NDArray[np.uint8]:
    """The image as uint8 RGB (height, width, 3), turned upright. Raises `DataError` where it cannot be decoded.

    A JPEG is decoded at the smallest of libjpeg's scales (1/8 to 1) that still covers the size, and then resized.
    """
    if row.image.startswith(_JPEG):
        decoded = _decode(row, tf.io.decode_jpeg, channels=3, ratio=_jpeg_ratio(row.height, row.width, height, width))
    else:
        decoded = _as_rgb(_decode(row, tf.io.decode_image, expand_animations=False))
    return resize_image(_turn_upright(decoded, row.orientation), height, width)


def _decode(row: Row, operation: Callable[..., tf.Tensor], **options: Any) -> NDArray[np.uint8]:
    """What one of TensorFlow's decoders makes of the image, on the CPU."""
    try:
        with tf.device("/CPU:0"):
            return np.asarray(operation(row.image, **options).numpy())
    except tf.errors.OpError as error:
        raise DataError(f"id {row.id}: the image cannot be decoded: {error.message}") from None


def resize_image(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """An image uint8 (h, w, 3) as (height, width, 3), each pixel the mean over its area."""
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    return np.rint(_resize(image, height, width)).astype(np.uint8)


def decode_mask(row: Row, height: int, width: int) -> NDArray[np.uint8]:
    """The mask as uint8 {0, 1} (height, width): a pixel is object where at least half its area is."""
    assert row.mask is not None, f"id {row.id} has no mask"
    mask = unpack_mask(row.mask, row.height, row.width)
    if mask.shape == (height, width):
        return mask
    fractions = _mean_of_rows(mask, height) if row.height > height else mask
    return (_resize(fractions[..., None], height, width)[..., 0] >= 0.5).astype(np.uint8)


def _mean_of_rows(mask: NDArray[np.uint8], height: int) -> NDArray[np.float32]:
    """uint8 {0, 1} (h, w) with h > height as float32 (height, w): the mean of the rows under each new row.

    The same as `_resize` along one axis, in whole rows of bytes: both together take half the time of `_resize` alone.
    """
    edges = np.arange(height + 1) * (len(mask) / height)
    whole = edges.astype(np.int64)
    count_type = np.uint8 if len(mask) < 255 * height else np.uint32
    counts = np.stack([mask[start:stop].sum(axis=0, dtype=count_type) for start, stop in pairwise(whole)])
    # A row that an edge cuts was counted below the edge; its part above belongs to the new row above.
    above = (edges - whole).astype(np.float32)[:, None] * mask[np.minimum(whole, len(mask) - 1)]
    return np.asarray((counts + above[1:] - above[:-1]) * np.float32(height / len(mask)))


def _jpeg_ratio(stored_height: int, stored_width: int, height: int, width: int) -> int:
    """The largest scale-down that leaves neither side shorter than asked; libjpeg rounds sizes up.

    Both sizes are upright ones: turning by a quarter exchanges the sides of both alike.
    """
    fits = (ratio for ratio in (8, 4, 2) if -(-stored_height // ratio) >= height and -(-stored_width // ratio) >= width)
    return next(fits, 1)


def _as_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey and grey with alpha to three equal channels, RGB with alpha to RGB."""
    return np.repeat(image[..., :1], 3, axis=-1) if image.shape[-1] < 3 else image[..., :3]


def _turn_upright(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo EXIF orientation 1 to 8: 5 to 8 exchange the axes, then 2, 3, 4 and their counterparts mirror them."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


def _resize(image: NDArray[np.uint8] | NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Pixels (h, w, C) as float32 (height, width, C).

    Each new pixel is the mean over its area; where a side grows, bilinear, with antialiasing on a side that shrinks.
    """
    with tf.device("/CPU:0"):
        if image.shape[0] >= height and image.shape[1] >= width:
            resized = tf.raw_ops.ResizeArea(images=image[None], size=(height, width))[0]
        else:
            resized = tf.image.resize(image, (height, width), method="bilinear", antialias=True)
    return np.asarray(resized.numpy())

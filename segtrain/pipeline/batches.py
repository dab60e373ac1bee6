"""What a worker hands to its replicas for one step, and how decoded pictures are laid out in it.

Pictures stay uint8 until they are on the device. A batch is one block of memory a replica, filled once and given to
TensorFlow without a copy. `tf.stack` and `tf.constant` would take 4 to 6 ms for a picture of 1918x1280, which is the
time of decoding it: they fault their memory in page by page, while NumPy asks the kernel for huge pages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from segtrain.pipeline.augment import Draws

if TYPE_CHECKING:  # so that the step can be computed where there is no pyarrow
    from segtrain.dataset.shards import Row

# Eigen's vector instructions want their blocks on such a boundary, and TensorFlow checks it.
ALIGNMENT_BYTES = 64


class ReplicaBatch(NamedTuple):
    """One replica's part of a step: S = accumulation * per_replica slots. What is small is in NumPy until the step."""

    images: tf.Tensor
    """uint8 (S, H, W, 3)."""
    masks: tf.Tensor
    """uint8 {0, 1} (S, H, W, 1)."""
    weights: Any
    """float32 (S,): 1 for a sample, 0 for a slot that holds a repeated picture."""
    keys: Any
    """int64 (S,): `sample_key` of each id; keys dropout and augmentation."""
    draws: Draws
    """How `augment.apply` changes each slot's picture."""


class PackedBatch(NamedTuple):
    """A `ReplicaBatch` on its way to a device: three tensors, because each copy costs the host the same."""

    images: tf.Tensor
    """uint8 (S, H, W, 3)."""
    masks: tf.Tensor
    """uint8 {0, 1} (S, H, W, 1)."""
    numbers: tf.Tensor
    """float64 (S, 13): weight, key (its bits), and the draws."""


@dataclass(frozen=True)
class StepBatch:
    """A worker's part of one global batch."""

    epoch: int
    step: int
    ids: list[str]
    """Of the samples, in slot order; slots of weight 0 are not named."""
    is_whole: bool
    """Whether no slot has weight 0."""
    replicas: list[Any]
    """One `ReplicaBatch` a replica; on the devices, one `PackedBatch`."""


class PictureBatch(NamedTuple):
    """One replica's part of a step of evaluation, on the CPU."""

    images: tf.Tensor
    """uint8 (S, H, W, 3); slots after the last picture hold it again."""
    masks: tf.Tensor
    """uint8 {0, 1} (S, H, W, 1)."""
    sizes: Any
    """int64 (S, 2): rows and columns of the slot that hold the picture, from the top left; 0 after the last one."""


class Scene(NamedTuple):
    """A picture to be scored, and which part of its slot holds it."""

    number: int
    """In the evaluation set."""
    row: "Row"
    height: int
    """Rows of the slot that hold the picture, from the top: all of them where pictures are resized."""
    width: int
    """Likewise, from the left."""


@dataclass(frozen=True)
class EvaluationBatch:
    """A worker's part of one step of evaluation: `evaluation.batch_size` slots on each replica."""

    replicas: list[PictureBatch]
    pictures: list[Scene]
    """In slot order."""
    truths: list[NDArray[np.uint8]]
    """Of each picture the bits of its mask at its own size, (height, ceil(width / 8))."""

    @property
    def bytes(self) -> int:
        """Memory that it takes, with the stored bytes of its pictures."""
        pixels = sum(int(np.prod(part.images.shape) + np.prod(part.masks.shape)) for part in self.replicas)
        stored = sum(len(scene.row.image) + len(scene.row.mask or b"") for scene in self.pictures)
        return pixels + stored + sum(bits.nbytes for bits in self.truths)


@dataclass(frozen=True, slots=True)
class DecodedPicture:
    """A decoded sample."""

    id: str
    key: int
    image: NDArray[np.uint8]
    """(H, W, 3)."""
    mask: NDArray[np.uint8]
    """{0, 1} (H, W)."""


def packed(batch: ReplicaBatch) -> PackedBatch:
    """The same in three tensors."""
    draws = batch.draws
    columns = (batch.weights, np.asarray(batch.keys).view(np.float64), draws.flips, draws.transforms, draws.photometry)
    return PackedBatch(batch.images, batch.masks, np.column_stack(columns))


def unpacked(batch: PackedBatch) -> ReplicaBatch:
    """What `packed` was given, as tensors."""
    numbers = batch.numbers
    drawn = tf.cast(numbers[:, 2:], tf.float32)
    draws = Draws(flips=numbers[:, 2] > 0.0, transforms=drawn[:, 1:9], photometry=drawn[:, 9:])
    keys = tf.bitcast(numbers[:, 1], tf.int64)
    return ReplicaBatch(batch.images, batch.masks, tf.cast(numbers[:, 0], tf.float32), keys, draws)


def blank(height: int, width: int) -> DecodedPicture:
    """What fills a slot before there has been any picture."""
    return DecodedPicture("", 0, np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8))


def stack(pictures: Sequence[DecodedPicture], height: int, width: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Images and masks of at most (height, width), uint8 (S, height, width, 3) and {0, 1} (S, height, width, 1).

    A smaller picture lies at the top left, with zeros around it.
    """
    images = _aligned_block((len(pictures), height, width, 3))
    masks = _aligned_block((len(pictures), height, width, 1))
    for slot, picture in enumerate(pictures):
        rows, columns = picture.mask.shape
        if (rows, columns) != (height, width):
            images[slot], masks[slot] = 0, 0
        images[slot, :rows, :columns] = picture.image
        masks[slot, :rows, :columns, 0] = picture.mask
    return _as_tensor(images), _as_tensor(masks)


def _aligned_block(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    size = int(np.prod(shape))
    block = np.empty(size + ALIGNMENT_BYTES, np.uint8)
    start = -block.ctypes.data % ALIGNMENT_BYTES
    return block[start : start + size].reshape(shape)


def _as_tensor(block: NDArray[np.uint8]) -> tf.Tensor:
    """The tensor that shares the block's memory and keeps it alive; nobody writes to the block afterwards."""
    return tf.experimental.dlpack.from_dlpack(block.__dlpack__())

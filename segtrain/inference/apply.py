"""One trained network on the device: whole pictures where they fit, else tiles."""

import logging
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from segtrain.cluster.failures import device_shortage
from segtrain.config import InferenceConfig
from segtrain.errors import UserError
from segtrain.inference.load_networks import Member
from segtrain.inference.tiles import blend
from segtrain.memory import inference_footprint
from segtrain.pipeline.augment import to_float

log = logging.getLogger(__name__)
LEAST_TILE = 32
"""Pixels; no side of a tile is made shorter, so that what the network sees around a pixel is not all border."""


class FittedNetwork:
    """A member with what it can do at once on this device.

    `device_bytes` bounds that where the network's settings are known (`Member.facts`); out of memory on the device
    bounds it further, for all pictures to come.
    """

    def __init__(self, member: Member, inference: InferenceConfig, device_bytes: int | None) -> None:
        self.member = member
        self._inference = inference
        self._device_bytes = device_bytes
        self._most_pixels: int | None = None
        self._layouts: dict[tuple[int, int], tuple[tuple[int, int], int]] = {}

        # The first size that comes is fixed in the graph; one graph more serves all others, for pictures that go
        # through at their own size may each have another.
        @tf.function(reduce_retracing=True, autograph=False)
        def forward(pictures: tf.Tensor) -> tf.Tensor:
            return tf.cast(member.apply(to_float(pictures)), tf.float32)

        self._forward = forward

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The size at which it sees a picture of (height, width)."""
        return self.member.size or (height, width)

    def logits(self, pictures: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Pictures uint8 (h, w, 3), all of one size, to logits float32 (h, w, 1).

        Out of memory on the device halves the batch, and then the tile, with a warning. Raises `UserError` where the
        smallest tile does not fit.
        """
        height, width = pictures[0].shape[:2]
        while True:
            tile, batch = self.layout(height, width)
            is_whole = tile == (height, width)
            try:
                if is_whole:
                    return self._whole(pictures, batch)
                return [self._tiled(picture, tile, batch) for picture in pictures]
            except tf.errors.OpError as error:
                if device_shortage(str(error), gpus=bool(tf.config.list_logical_devices("GPU"))) is None:
                    raise
                self._take_less(tile, min(batch, len(pictures)) if is_whole else batch)

    def layout(self, height: int, width: int) -> tuple[tuple[int, int], int]:
        """How pictures of this size go through: the tile's (height, width), and how many of them at once.

        The tile is the picture's own size where it goes through whole.
        Raises `UserError` where the smallest tile does not fit.
        """
        if (height, width) not in self._layouts:
            tile = self._tile_asked_for(height, width)
            while not self._fits(1, tile):
                tile = self._smaller(tile)
            batch = self._inference.batch_size
            while not self._fits(batch, tile):
                batch -= 1
            self._layouts[height, width] = tile, batch
        return self._layouts[height, width]

    def _whole(self, pictures: Sequence[NDArray[np.uint8]], batch: int) -> list[NDArray[np.float32]]:
        starts = range(0, len(pictures), batch)
        return [logits for start in starts for logits in self._run(np.stack(pictures[start : start + batch]))]

    def _tiled(self, picture: NDArray[np.uint8], tile: tuple[int, int], batch: int) -> NDArray[np.float32]:
        target = np.empty((*picture.shape[:2], 1), np.float32)
        overlap, multiple = self._inference.overlap, self.member.multiple
        blend(picture, target, tile, overlap, self._run, batch, multiple=multiple)
        return target

    def _run(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(self._forward(tf.constant(pictures)).numpy())

    def _tile_asked_for(self, height: int, width: int) -> tuple[int, int]:
        asked = self._inference.tile_height, self._inference.tile_width
        if asked[0] is None or asked[1] is None or (height <= asked[0] and width <= asked[1]):
            return height, width
        return self._whole_cells(min(asked[0], height)), self._whole_cells(min(asked[1], width))

    def _whole_cells(self, length: int) -> int:
        return -(-length // self.member.multiple) * self.member.multiple

    def _fits(self, batch: int, tile: tuple[int, int]) -> bool:
        if self._most_pixels is not None and batch * tile[0] * tile[1] > self._most_pixels:
            return False
        facts = self.member.facts
        if self._device_bytes is None or facts is None:
            return True
        return inference_footprint(facts.model, *tile, batch=batch).total <= self._device_bytes

    def _smaller(self, tile: tuple[int, int]) -> tuple[int, int]:
        """Half of the longer side, in whole cells."""
        height, width = (self._whole_cells(side) for side in tile)
        half = self._whole_cells(max(height, width) // 2)
        if half < LEAST_TILE or half == max(height, width):
            raise UserError(
                f"{self.member.name} does not fit the device's memory even in tiles of {height}x{width}; use a device "
                f"with more memory, or give cluster.device_bytes the memory that there is"
            )
        return (half, width) if height >= width else (height, half)

    def _take_less(self, tile: tuple[int, int], batch: int) -> None:
        """Half as many pixels at once from now on: this batch ran out of the device's memory."""
        self._most_pixels = batch * tile[0] * tile[1] // 2
        self._layouts.clear()
        log.warning(
            "%s: a batch of %d at %dx%d does not fit the device's memory; going on with half as many pixels at once",
            self.member.name,
            batch,
            *tile,
        )

"""Probabilities at a picture's own size from one trained network or the average of several.

Three stages, so that a caller can overlap one picture's decoding with another's forward pass: `prepare` and `finish`
work on the host, in any thread; `forward` uses the device, one caller at a time.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from segtrain.config import InferenceConfig
from segtrain.inference.apply import FittedNetwork
from segtrain.inference.load_networks import Member
from segtrain.inference.stored_networks import combined_digest, threshold_of
from segtrain.models.probability import upsample_probability

Size = tuple[int, int]
"""(height, width)."""


@dataclass(frozen=True)
class Prepared:
    """A picture at every size at which a network sees it."""

    height: int
    width: int
    images: dict[Size, NDArray[np.uint8]]
    """(h, w) -> (h, w, 3)."""


@dataclass(frozen=True)
class Logits:
    """What the networks make of a picture, and of its mirror image turned back where that was asked for."""

    height: int
    width: int
    maps: list[NDArray[np.float32]]
    """(h, w, 1) each, at the network's size; the mean of their probabilities counts."""


class Predictor:
    """The mean probability of `members`, with test-time augmentation and tiles as `inference` says.

    Pictures go through whole where that fits `device_bytes` (where that is None, they are tried whole), else in tiles.
    """

    def __init__(self, members: Sequence[Member], inference: InferenceConfig, device_bytes: int | None = None) -> None:
        if not members:
            raise ValueError("a predictor needs at least one member")
        self._networks = [FittedNetwork(member, inference, device_bytes) for member in members]
        self._column_steps = (1, -1) if inference.flip else (1,)  # -1 is the mirror image
        trained = threshold_of([member.facts for member in members])
        self.threshold: float = trained if inference.threshold is None else inference.threshold
        """A pixel is object where its probability is at least this."""
        self.digest: str = combined_digest(member.digest for member in members)
        """16 hex digits over the bytes of the models' files."""

    def prepare(self, decode: Callable[[int, int], NDArray[np.uint8]], height: int, width: int) -> Prepared:
        """A picture of (height, width) for `forward`; `decode(h, w)` gives it as uint8 (h, w, 3), once a size."""
        sizes = dict.fromkeys(network.size(height, width) for network in self._networks)
        return Prepared(height, width, {size: decode(*size) for size in sizes})

    def forward(self, prepared: Sequence[Prepared]) -> list[Logits]:
        """Logits of each picture, in order. Those of one size share batches of up to `inference.batch_size`.

        Raises `UserError` where a network does not fit the device even in the smallest tiles.
        """
        maps: list[list[NDArray[np.float32]]] = [[] for _ in prepared]
        for network in self._networks:
            by_size: dict[Size, list[int]] = defaultdict(list)
            for number, picture in enumerate(prepared):
                by_size[network.size(picture.height, picture.width)].append(number)
            for size, numbers in by_size.items():
                for step in self._column_steps:
                    images = [prepared[number].images[size][:, ::step] for number in numbers]
                    for number, logits in zip(numbers, network.logits(images), strict=True):
                        maps[number].append(logits[:, ::step])
        return [Logits(picture.height, picture.width, found) for picture, found in zip(prepared, maps, strict=True)]

    def finish(self, logits: Logits) -> NDArray[np.float32]:
        """Probabilities float32 (height, width): the mean over networks and mirror images, each upsampled first."""
        total = reduce(np.add, (upsample_probability(each, logits.height, logits.width) for each in logits.maps))
        return total / np.float32(len(logits.maps)) if len(logits.maps) > 1 else total

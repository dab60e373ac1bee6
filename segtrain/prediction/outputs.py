"""Masks, overlays and probability maps as files: what the bytes are, and where they go."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segtrain import panels
from segtrain.storage.files import Storage, join

MASKS, OVERLAYS, PROBABILITIES = OUTPUT_FOLDERS = "masks", "overlays", "probabilities"

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_GREY = 0
MASK_LEVEL = 2
"""Of zlib. A mask of 1918x1280 takes 1 ms and 6 KB; level 6 takes 3 ms for 4 KB."""
OVERLAY_QUALITY = 90
"""Of JPEG: an overlay is for looking at, and a PNG of a photo takes seven times as long and ten times the room."""


@dataclass(frozen=True)
class Outputs:
    """What is written of a picture below `dest`, besides its run lengths."""

    dest: str
    overlays: bool = False
    probabilities: bool = False

    def names(self, name: str) -> Iterator[tuple[str, str]]:
        """Folder and name of each file of the picture whose outputs are called `name`."""
        yield MASKS, f"{name}.png"
        if self.probabilities:
            yield PROBABILITIES, f"{name}.png"
        if self.overlays:
            yield OVERLAYS, f"{name}.jpg"

    def present(self, storage: Storage) -> dict[str, set[str]]:
        """Folder -> names of the files that are there."""
        return {folder: set(storage.list(join(self.dest, folder))) for folder, _ in self.names("")}

    def remove(self, storage: Storage, name: str) -> None:
        """Delete the files of the picture whose outputs are called `name`."""
        for folder, file in self.names(name):
            storage.delete(join(self.dest, folder, file))

    def files(
        self,
        name: str,
        mask: NDArray[np.bool_],
        probability: NDArray[np.float32],
        image: NDArray[np.uint8] | None,
    ) -> Iterator[tuple[str, bytes]]:
        """URL and bytes of each file of the picture whose outputs are called `name`, a safe file name.

        `mask` and `probability` are (H, W), `image` is (H, W, 3) and only needed for overlays.
        """
        yield join(self.dest, MASKS, f"{name}.png"), mask_png(mask)
        if self.probabilities:
            yield join(self.dest, PROBABILITIES, f"{name}.png"), probability_png(probability)
        if self.overlays and image is not None:
            yield join(self.dest, OVERLAYS, f"{name}.jpg"), overlay_jpeg(image, mask)


def mask_png(mask: NDArray[np.generic]) -> bytes:
    """A mask (H, W), non-zero for the object, as a PNG of 1 bit a pixel: 0 is background (black), 1 object (white).

    Pillow keeps a byte for each pixel on the way, which takes eight times as long.
    """
    packed = np.packbits(mask.astype(np.bool_, copy=False), axis=1)
    # Each row begins with the number of its filter; 0 is none, which suits bits best (PNG, section 12.7).
    rows = np.zeros((packed.shape[0], packed.shape[1] + 1), np.uint8)
    rows[:, 1:] = packed
    header = struct.pack(">IIBBBBB", mask.shape[1], mask.shape[0], 1, PNG_GREY, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), MASK_LEVEL)), (b"IEND", b""))
    return PNG_SIGNATURE + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def probability_png(probability: NDArray[np.floating]) -> bytes:
    """Probabilities (H, W) in 0..1 as an 8-bit grey PNG: a level is 1/255, rounded to the nearest."""
    levels = np.rint(probability * np.float32(255.0)).astype(np.uint8)
    return panels.file_bytes(Image.fromarray(levels), "PNG", compress_level=MASK_LEVEL)


def overlay_jpeg(image: NDArray[np.uint8], mask: NDArray[np.generic]) -> bytes:
    """A picture (H, W, 3) with its mask (H, W) drawn over it, as a JPEG."""
    return panels.file_bytes(panels.overlay(image, mask), "JPEG", quality=OVERLAY_QUALITY)

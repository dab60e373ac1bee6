"""One picture with its mask: decoded, checked, and turned into a row.

A picture that is not right raises `BadPairError` with the reason in words; `prepare` collects them.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from segtrain import rle
from segtrain.dataset.shards import Row, pack_mask
from segtrain.errors import first_fault, shown
from segtrain.pictures.decodable import MOST_PIXELS
from segtrain.pictures.image_files import check_image
from segtrain.pictures.mask_files import mask_from_file
from segtrain.pictures.pillow_files import BadMaskError, BadPairError
from segtrain.prepare.sources import Picture
from segtrain.storage.checksums import crc32c
from segtrain.storage.files import Storage
from segtrain.storage.ids import check_id, has_control

RULES = 3
"""Of judging a pair: what other rules have found good is looked at again."""


@dataclass(frozen=True, slots=True)
class Checked:
    """Facts about a good pair: enough to place it and to notice that a file has changed since."""

    id: str
    height: int
    width: int
    orientation: int
    foreground: float
    image_bytes: int
    image_crc32c: int
    image_digest: str
    """SHA-256 of the file: equal for equal pictures."""
    mask_bytes: int
    """Of the packed mask, as is `mask_crc32c`."""
    mask_crc32c: int
    mask_source_crc32c: int
    """Of the mask's file or run lengths."""
    packed_in: str = ""
    """Name of the file in which the check kept the packed mask; empty where it did not."""
    packed_at: int = 0
    """Where in that file the packed mask begins."""


FACTS = TypeAdapter(list[Checked])
"""Facts as they are kept in a file, in JSON."""


def read_mask(picture: Picture, storage: Storage) -> bytes:
    """The bytes of the mask's file or run lengths. A file that is gone is a `BadPairError`."""
    return read_source(picture.mask, storage) if picture.mask is not None else (picture.run_lengths or "").encode()


def read_source(url: str, storage: Storage) -> bytes:
    """The bytes of an image's or a mask's file. One that is gone is a `BadPairError`."""
    try:
        return storage.read_bytes(url)
    except FileNotFoundError:
        reason = "is a folder and no file" if storage.exists(url) else "is not there any more"
        raise BadPairError(f"{url} {reason}") from None


def check_pair(picture: Picture, image: bytes, mask: bytes, most_pixels: int = MOST_PIXELS) -> tuple[Checked, bytes]:
    """The facts of a pair and its packed mask. Raises `BadPairError` with the reason for all that can be wrong."""
    reason = check_id(picture.id)
    fault = first_fault(
        (reason is not None, f"the id, which is its name, {reason}; rename image and mask"),
        (not picture.group, "has no group: the grouping of the source gives an empty name"),
        (
            has_control(picture.group),
            f"its group '{shown(picture.group)}' has a control character; give it another name",
        ),
    )
    if fault is not None:
        raise BadPairError(fault)
    height, width, orientation = check_image(image, most_pixels)
    try:
        pixels = _decode_mask_of(picture, mask, height, width, turned=orientation >= 5)
    except BadPairError as error:
        raise BadMaskError(str(error)) from None
    packed = pack_mask(pixels)
    checked = Checked(
        id=picture.id,
        height=height,
        width=width,
        orientation=orientation,
        foreground=float(pixels.mean(dtype=np.float64)),
        image_bytes=len(image),
        image_crc32c=crc32c(image),
        image_digest=hashlib.sha256(image).hexdigest(),
        mask_bytes=len(packed),
        mask_crc32c=crc32c(packed),
        mask_source_crc32c=crc32c(mask),
    )
    return checked, packed


def pack(picture: Picture, checked: Checked, mask: bytes) -> bytes:
    """The packed mask of a checked pair, made again from the mask's file or run lengths."""
    return pack_mask(_decode_mask_of(picture, mask, checked.height, checked.width))


def unchanged(checked: Checked, image: bytes, mask: bytes) -> bool:
    """Whether these are the files that were checked."""
    return (checked.image_crc32c, checked.mask_source_crc32c) == (crc32c(image), crc32c(mask))


def make_row(picture: Picture, checked: Checked, image: bytes, packed: bytes) -> Row:
    """The row of a checked pair, from its image file and its packed mask."""
    return Row(
        id=picture.id,
        group=picture.group,
        height=checked.height,
        width=checked.width,
        orientation=checked.orientation,
        foreground=checked.foreground,
        image=image,
        image_crc32c=checked.image_crc32c,
        mask=packed,
        mask_crc32c=checked.mask_crc32c,
    )


def _decode_mask_of(
    picture: Picture, data: bytes, height: int, width: int, *, turned: bool = False
) -> NDArray[np.uint8]:
    if picture.mask is not None:
        return mask_from_file(data, (height, width), image_is_turned=turned)
    try:
        return rle.decode(data.decode(), height, width)
    except ValueError as error:
        raise BadPairError(f"mask's {error}") from None

"""One picture with its mask: decoded, checked, and turned into a row.

A picture that is not right raises `BadPairError` with the reason in words; `prepare` collects them.
"""

import hashlib
from dataclasses import dataclass

import google_crc32c
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from segtrain import rle
from segtrain.data.decodable import MOST_PIXELS, header_reason, png_bit_depth, whole_reason
from segtrain.data.ids import check_id, has_control
from segtrain.data.image_files import BadMaskError, BadPairError, load, open_image, orientation_of
from segtrain.data.masks import decode_mask, kind_of
from segtrain.data.shards import Row, pack_mask
from segtrain.data.sources import Picture
from segtrain.errors import shown
from segtrain.storage import Storage

IMAGE_FORMATS = ("JPEG", "PNG", "BMP")
# Start of a JPEG scan and end of the image: neither can occur within the coded pixels.
JPEG_SCAN, JPEG_END = b"\xff\xda", b"\xff\xd9"
RULES = 3
"""Of judging a pair: what other rules have found good is looked at again."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What is known of a good pair; enough to place it and to notice that a file has changed since."""

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
    rules: int = RULES
    """By which it was judged."""


def read_sources(picture: Picture, storage: Storage) -> tuple[bytes, bytes]:
    """The bytes of the image file, and of the mask's file or run lengths. A file that is gone is a `BadPairError`."""
    return _read(picture.image, storage), read_mask(picture, storage)


def read_mask(picture: Picture, storage: Storage) -> bytes:
    """The bytes of the mask's file or run lengths. A file that is gone is a `BadPairError`."""
    return _read(picture.mask, storage) if picture.mask is not None else (picture.run_lengths or "").encode()


def _read(url: str, storage: Storage) -> bytes:
    try:
        return storage.read_bytes(url)
    except FileNotFoundError:
        reason = "is a folder and no file" if storage.exists(url) else "is not there any more"
        raise BadPairError(f"{url} {reason}") from None


def decode_image(data: bytes, most_pixels: int = MOST_PIXELS) -> tuple[int, int, int]:
    """Decode an image in full and return (height, width, EXIF orientation), height and width after orientation.

    It is refused where TensorFlow, which decodes it for training, could not read it or would read other pixels.
    """
    image = open_image("image", data, IMAGE_FORMATS, most_pixels)
    facts = _facts_of(image, data)
    load("image", image, data)
    if _lacks_end(image, data):
        raise BadPairError(f"image is truncated: the end mark of a {image.format} is missing")
    reason = whole_reason(data, image.height, image.width)
    if reason is not None:
        raise BadPairError(f"image {reason}")
    return facts


def read_header(data: bytes, most_pixels: int = MOST_PIXELS) -> tuple[int, int, int]:
    """What `decode_image` returns, from the header alone; damage behind it is not noticed."""
    return _facts_of(open_image("image", data, IMAGE_FORMATS, most_pixels), data)


def _facts_of(image: ImageFile.ImageFile, data: bytes) -> tuple[int, int, int]:
    width, height = image.size
    reason = header_reason(data, height, width)
    if reason is not None:
        raise BadPairError(f"image {reason}")
    if image.mode not in ("RGB", "L") or png_bit_depth(data) not in (None, 8):
        raise BadPairError(f"image is {kind_of(image, data)}; only 8-bit RGB and grey are taken, convert it")
    orientation = orientation_of("image", image)
    return (height, width, orientation) if orientation < 5 else (width, height, orientation)


def _lacks_end(image: Image.Image, data: bytes) -> bool:
    """Whether the file stops short; Pillow is content once it has every pixel. Phones add data behind the end."""
    return image.format == "JPEG" and data.find(JPEG_END, data.rfind(JPEG_SCAN)) < 0


def check(picture: Picture, image: bytes, mask: bytes, most_pixels: int = MOST_PIXELS) -> tuple[Checked, bytes]:
    """The facts of a pair and its packed mask. Raises `BadPairError` with the reason for all that can be wrong."""
    reason = check_id(picture.id)
    if reason is not None:
        raise BadPairError(f"the id, which is its name, {reason}; rename image and mask")
    if not picture.group:
        raise BadPairError("has no group: the grouping of the source gives an empty name")
    if has_control(picture.group):
        raise BadPairError(f"its group '{shown(picture.group)}' has a control character; give it another name")
    height, width, orientation = decode_image(image, most_pixels)
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
    """The packed mask of a checked pair, from the mask's file or run lengths once more."""
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


def crc32c(data: bytes) -> int:
    """CRC32C (Castagnoli), as in the manifest and in every row."""
    return int(google_crc32c.value(data))


def _decode_mask_of(
    picture: Picture, data: bytes, height: int, width: int, *, turned: bool = False
) -> NDArray[np.uint8]:
    if picture.mask is not None:
        return decode_mask(data, (height, width), image_is_turned=turned)
    try:
        return rle.decode(data.decode(), height, width)
    except ValueError as error:
        raise BadPairError(f"mask's {error}") from None

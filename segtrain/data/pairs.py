"""One picture with its mask: decoded, checked, and turned into a row.

A picture that is not right raises `BadPairError` with the reason in words; `prepare` collects them.
"""

import hashlib
import io
import struct
import zlib
from dataclasses import dataclass

import google_crc32c
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from segtrain import rle
from segtrain.data.shards import Row, pack_mask
from segtrain.data.sources import Picture
from segtrain.storage import Storage

IMAGE_FORMATS = ("JPEG", "PNG", "BMP")
MASK_FORMATS = ("PNG", "GIF", "BMP", "JPEG")
# JPEG blurs the edges of a mask. Of real masks saved at quality 50 at most 0.2 % of the pixels end up between these
# values; a picture that was never a mask has far more.
JPEG_BACKGROUND_BELOW, JPEG_OBJECT_FROM = 64, 192
JPEG_BETWEEN_FRACTION = 0.02
# Start of a JPEG scan and end of the image: neither can occur within the coded pixels.
JPEG_SCAN, JPEG_END = b"\xff\xda", b"\xff\xd9"
PNG_START, PNG_END = b"\x89PNG", b"IEND\xaeB`\x82"


# What Pillow's decoders raise for damaged files, besides OSError.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class BadPairError(Exception):
    """Why a picture or its mask cannot be taken."""


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
        raise BadPairError(f"{url} is not there any more") from None


def decode_image(data: bytes) -> tuple[int, int, int]:
    """Decode an image in full and return (height, width, EXIF orientation), height and width after orientation."""
    image, orientation = _open("image", data, IMAGE_FORMATS)
    facts = _facts_of(image, orientation, data)
    if _lacks_end(image, data):
        raise BadPairError(f"image is truncated: the end mark of a {image.format} is missing")
    return facts


def read_header(data: bytes) -> tuple[int, int, int]:
    """What `decode_image` returns, from the header alone; damage behind it is not noticed."""
    return _facts_of(*_open("image", data, IMAGE_FORMATS, whole=False), data)


def _facts_of(image: Image.Image, orientation: int, data: bytes) -> tuple[int, int, int]:
    if image.mode not in ("RGB", "L") or _png_bit_depth(data) not in (None, 8):
        raise BadPairError(f"image is {_kind(image, data)}; only 8-bit RGB and grey are taken, convert it")
    width, height = image.size if orientation < 5 else image.size[::-1]
    return height, width, orientation


def decode_mask(data: bytes) -> NDArray[np.uint8]:
    """Decode a mask file into (H, W) uint8 {0, 1}, after EXIF orientation.

    Black is background and at most one other value is object. JPEG masks, whose edges are never clean, are cut at
    half, provided that nearly every pixel is close to black or white.
    """
    image, _ = _open("mask", data, MASK_FORMATS)
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise BadPairError(f"mask has {frames} frames; save one of them alone")
    if image.mode not in ("1", "L", "P", "RGB"):
        raise BadPairError(f"mask is {_kind(image, data)}; save it as black and one other value")
    lossy = image.format == "JPEG"
    upright = ImageOps.exif_transpose(image)
    if lossy:
        return _binary_from_jpeg(upright.convert("L"))
    if upright.mode == "RGB":
        return _binary_from_colours(np.asarray(upright))
    return _binary_from_levels(upright)


def _open(what: str, data: bytes, formats: tuple[str, ...], *, whole: bool = True) -> tuple[Image.Image, int]:
    """The picture, decoded in full where it is asked for `whole`, and its EXIF orientation."""
    try:
        if whole and data.startswith(PNG_START):
            # Pillow passes over wrong checksums of chunks unless asked; the libpng in TensorFlow does not.
            Image.open(io.BytesIO(data), formats=["PNG"]).verify()
        image = Image.open(io.BytesIO(data), formats=formats)
        if whole:
            image.load()
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except UnidentifiedImageError:
        raise BadPairError(f"{what} is none of {', '.join(formats)}, or is damaged") from None
    except DAMAGE as error:
        raise BadPairError(f"{what} cannot be decoded: {' '.join(str(error).split())}") from None
    # Viewers take an orientation outside 1 to 8 as none at all.
    return image, orientation if orientation in range(1, 9) else 1


def _lacks_end(image: Image.Image, data: bytes) -> bool:
    """Whether the file stops short; Pillow is content once it has every pixel. Phones add data behind the end."""
    if image.format == "PNG":
        return PNG_END not in data
    # Phones also write MPO: a JPEG with another one behind it.
    return image.format in ("JPEG", "MPO") and data.find(JPEG_END, data.rfind(JPEG_SCAN)) < 0


def _png_bit_depth(data: bytes) -> int | None:
    """Bits a channel from a PNG's header, because Pillow opens 16-bit RGB as 8-bit RGB; None for other formats."""
    return data[24] if data.startswith(PNG_START) else None


def _kind(image: Image.Image, data: bytes) -> str:
    """Name of a picture's kind for a message: `16-bit PNG (RGB)`."""
    depth = _png_bit_depth(data) or (16 if image.mode.startswith("I") else None)
    return f"{f'{depth}-bit ' if depth else ''}{image.format} ({image.mode})"


def _binary_from_levels(image: Image.Image) -> NDArray[np.uint8]:
    """From a mask of one channel. A palette's entries count by colour: Pillow may give white the index 0."""
    levels = image.convert("L") if image.mode == "1" else image
    used = np.flatnonzero(levels.histogram())
    colours: NDArray[np.generic] = used.reshape(-1, 1)
    if image.mode == "P":
        palette = np.frombuffer(bytes(image.getpalette("RGB") or ()), np.uint8).reshape(-1, 3)
        if used[-1] >= len(palette):
            raise BadPairError("mask has pixels outside its palette")
        colours = palette[used]
    is_object = (colours != 0).any(axis=1)
    if len(used) > 2 or (len(used) == 2 and is_object.sum() != 1):
        shown = ", ".join(map(str, used[:4].tolist())) + (", ..." if len(used) > 4 else "")
        raise BadPairError(
            f"mask has {len(used)} values ({shown}); one has to be 0 (black), and one other may be there"
        )
    objects = np.zeros(256, np.uint8)
    objects[used] = is_object
    return np.take(objects, np.asarray(levels, np.uint8))


def _binary_from_colours(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    mask = np.max(pixels, axis=2) > 0
    objects = pixels[mask]
    if len(objects) and (objects != objects[0]).any():
        count = len(np.unique(pixels.reshape(-1, 3), axis=0))
        raise BadPairError(f"mask has {count} colours; it may have black and one other")
    return np.asarray(mask, np.uint8)


def _binary_from_jpeg(image: Image.Image) -> NDArray[np.uint8]:
    levels = np.asarray(image)
    between = np.mean((levels >= JPEG_BACKGROUND_BELOW) & (levels < JPEG_OBJECT_FROM))
    if between > JPEG_BETWEEN_FRACTION or 0 < levels.max() < JPEG_OBJECT_FROM:
        raise BadPairError(f"mask has values other than two: {between:.1%} of this JPEG is neither black nor white")
    return (levels >= 128).astype(np.uint8)


def check(picture: Picture, image: bytes, mask: bytes) -> tuple[Checked, bytes]:
    """The facts of a pair and its packed mask. Raises `BadPairError` with the reason for all that can be wrong."""
    if not picture.group:
        raise BadPairError("has no group: the grouping of the source gives an empty name")
    height, width, orientation = decode_image(image)
    pixels = _decode_mask_of(picture, mask, height, width)
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


def _decode_mask_of(picture: Picture, data: bytes, height: int, width: int) -> NDArray[np.uint8]:
    if picture.mask is None:
        try:
            return rle.decode(data.decode(), height, width)
        except ValueError as error:
            raise BadPairError(f"mask's {error}") from None
    mask = decode_mask(data)
    if mask.shape != (height, width):
        raise BadPairError(f"image is {width}x{height} and mask {mask.shape[1]}x{mask.shape[0]} (width x height)")
    return mask

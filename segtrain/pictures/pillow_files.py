"""Files of images and masks opened with Pillow: of the formats that are asked for, and never larger than is allowed.

The size is read off the header before anything is decoded. The readers of Pillow are called one by one instead of
through `Image.open`, whose own bound is fixed at 178 million pixels and kept in a global.
"""

import io
import struct
import zlib

from PIL import BmpImagePlugin, ExifTags, GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin

from segtrain.errors import first_fault
from segtrain.pictures.decodable import JPEG_START, MOST_PIXELS, PNG_START

READERS: dict[str, tuple[tuple[bytes, ...], type[ImageFile.ImageFile]]] = {
    "JPEG": ((JPEG_START,), JpegImagePlugin.JpegImageFile),
    "PNG": ((PNG_START,), PngImagePlugin.PngImageFile),
    "BMP": ((b"BM",), BmpImagePlugin.BmpImageFile),
    "GIF": ((b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
}
"""Format -> how its files begin, and Pillow's reader."""
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    Image.DecompressionBombError,
)
"""What Pillow's readers raise for damaged files."""


class BadPairError(Exception):
    """Why a picture or its mask cannot be taken."""


class BadMaskError(BadPairError):
    """Why a mask cannot be taken."""


def refuse_for(what: str, reason: str | None) -> None:
    """Raise `BadPairError` where there is a reason against `what`, an image or a mask."""
    if reason is not None:
        raise BadPairError(f"{what} {reason}")


def open_image(what: str, data: bytes, formats: tuple[str, ...], most_pixels: int) -> ImageFile.ImageFile:
    """A picture of which only the header has been read. A reason against it begins with `what`: image or mask."""
    name = next((name for name in formats if data.startswith(READERS[name][0])), None)
    if name is None:
        raise BadPairError(f"{what} is none of {', '.join(formats)}, or is damaged")
    try:
        image = READERS[name][1](io.BytesIO(data))
    except DAMAGE as error:
        raise _undecodable(what, error) from None
    fix = f"{'raise prepare.max_pixels, or ' * (what == 'image' and most_pixels < MOST_PIXELS)}make it smaller"
    reason = first_fault(
        (
            image.width * image.height > most_pixels,
            f"is {image.width}x{image.height}, more than {most_pixels:,} pixels; {fix}",
        ),
        (
            bool(image.tile) and image.tile[0].extents not in (None, (0, 0, *image.size)),
            f"is a {name} whose first frame does not cover all of it; save it again",
        ),
    )
    refuse_for(what, reason)
    return image


def decode_whole(what: str, image: ImageFile.ImageFile, data: bytes) -> None:
    """Decode a picture that `open_image` gave, in full."""
    try:
        if data.startswith(PNG_START):
            # Pillow passes over wrong checksums of chunks unless asked; the libpng in TensorFlow does not.
            PngImagePlugin.PngImageFile(io.BytesIO(data)).verify()
        image.load()
    except DAMAGE as error:
        raise _undecodable(what, error) from None


def orientation_of(what: str, image: ImageFile.ImageFile) -> int:
    """The EXIF orientation, 1 to 8; viewers take any other as none at all, which is 1."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGE as error:
        raise _undecodable(what, error) from None
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _undecodable(what: str, error: Exception) -> BadPairError:
    return BadPairError(
        f"{what} cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}; save it again"
    )

"""Whether an image file can be trained on, and its size: judged as TensorFlow will decode it, without TensorFlow."""

from PIL import ImageFile

from segtrain.pictures.decodable import MOST_PIXELS, header_reason, png_bit_depth, whole_reason
from segtrain.pictures.mask_files import kind_of
from segtrain.pictures.pillow_files import BadPairError, decode_whole, open_image, orientation_of, refuse_for

IMAGE_FORMATS = ("JPEG", "PNG", "BMP")
# Start of a JPEG scan and end of the image: neither can occur within the coded pixels.
JPEG_SCAN, JPEG_END = b"\xff\xda", b"\xff\xd9"


def check_image(data: bytes, most_pixels: int = MOST_PIXELS) -> tuple[int, int, int]:
    """Decode an image in full and return (height, width, EXIF orientation), height and width after orientation.

    It is refused where TensorFlow, which decodes it for training, could not read it or would read other pixels.
    """
    image = open_image("image", data, IMAGE_FORMATS, most_pixels)
    facts = _facts_of(image, data)
    decode_whole("image", image, data)
    # Pillow is content once it has every pixel. Phones add data behind the end.
    if image.format == "JPEG" and data.find(JPEG_END, data.rfind(JPEG_SCAN)) < 0:
        raise BadPairError("image is truncated: the end mark of a JPEG is missing")
    refuse_for("image", whole_reason(data, image.height, image.width))
    return facts


def check_header(data: bytes, most_pixels: int = MOST_PIXELS) -> tuple[int, int, int]:
    """What `check_image` returns, from the header alone; damage behind it is not noticed."""
    return _facts_of(open_image("image", data, IMAGE_FORMATS, most_pixels), data)


def _facts_of(image: ImageFile.ImageFile, data: bytes) -> tuple[int, int, int]:
    width, height = image.size
    refuse_for("image", header_reason(data, height, width))
    if image.mode not in ("RGB", "L") or png_bit_depth(data) not in (None, 8):
        raise BadPairError(f"image is {kind_of(image, data)}; only 8-bit RGB and grey are taken, convert it")
    orientation = orientation_of("image", image)
    return (height, width, orientation) if orientation < 5 else (width, height, orientation)

"""Mask files: which pixels are object, from every way to store two values; whatever leaves that open is refused."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from segtrain.errors import first_fault
from segtrain.pictures.decodable import MOST_PIXELS, png_bit_depth, png_reason
from segtrain.pictures.pillow_files import BadPairError, decode_whole, open_image, orientation_of, refuse_for

MASK_FORMATS = ("PNG", "GIF", "BMP", "JPEG")
# JPEG blurs the edges of a mask. Of real masks saved at quality 50 at most 0.2 % of the pixels end up between these
# values; a picture that was never a mask has far more.
JPEG_BACKGROUND_BELOW, JPEG_OBJECT_FROM = 64, 192
JPEG_BETWEEN_FRACTION = 0.02


def mask_from_file(
    data: bytes, size: tuple[int, int] | None = None, *, image_is_turned: bool = False
) -> NDArray[np.uint8]:
    """Decode a mask file into (H, W) uint8 {0, 1}, after EXIF orientation.

    Black is background and at most one other value is object. JPEG masks, whose edges are never clean, are cut at
    half, provided that nearly every pixel is close to black or white.

    `size` is the image's (height, width): a mask of another size is refused from its header. `image_is_turned` says
    that EXIF turns the image by a quarter, which the reason then mentions.
    """
    image = open_image("mask", data, MASK_FORMATS, MOST_PIXELS)
    _check_kind(image, data)
    if size is not None and image.height * image.width != size[0] * size[1]:  # before the orientation, which may decode
        raise BadPairError(f"image is {size[1]}x{size[0]} and mask {image.width}x{image.height} (width x height)")
    orientation = orientation_of("mask", image)
    shape = (image.height, image.width) if orientation < 5 else (image.width, image.height)
    if size is not None and shape != size:
        turn = "; the image's EXIF orientation turns it: turn its mask, too" if image_is_turned else ""
        raise BadPairError(f"image is {size[1]}x{size[0]} and mask {shape[1]}x{shape[0]} (width x height){turn}")
    decode_whole("mask", image, data)
    if image.format == "PNG":
        refuse_for("mask", png_reason(data, image.height, image.width))
    upright = ImageOps.exif_transpose(image)
    if image.format == "JPEG":
        return _binary_from_jpeg(upright.convert("L"))
    if upright.mode == "RGB":
        return _binary_from_colours(np.asarray(upright))
    return _binary_from_levels(upright)


def _check_kind(image: ImageFile.ImageFile, data: bytes) -> None:
    """Refuse what holds more than one mask, or values of which Pillow drops the lower half."""
    frames = getattr(image, "n_frames", 1)
    reason = first_fault(
        (frames > 1, f"has {frames} frames; save one of them alone"),
        (
            image.mode not in ("1", "L", "P", "RGB") or png_bit_depth(data) == 16,
            f"is {kind_of(image, data)}; save it with 8 bits, as black and one other value",
        ),
    )
    refuse_for("mask", reason)


def kind_of(image: Image.Image, data: bytes) -> str:
    """Name of a picture's kind for a message: `16-bit PNG (RGB)`."""
    depth = png_bit_depth(data) or (16 if image.mode.startswith("I") else None)
    return f"{f'{depth}-bit ' if depth else ''}{image.format} ({image.mode})"


def _binary_from_levels(image: Image.Image) -> NDArray[np.uint8]:
    """From a mask of one channel. A palette's entries count by colour: Pillow may give white the index 0."""
    levels = image.convert("L") if image.mode == "1" else image
    used = np.flatnonzero(levels.histogram())
    colours: NDArray[np.generic] = _palette(image, used) if image.mode == "P" else used.reshape(-1, 1)
    is_object = (colours != 0).any(axis=1)
    if len(used) > 2 or (len(used) == 2 and is_object.sum() != 1):
        shown = ", ".join(map(str, used[:4].tolist())) + (", ..." if len(used) > 4 else "")
        raise BadPairError(
            f"mask has {len(used)} values ({shown}); one has to be 0 (black), and one other may be there"
        )
    objects = np.zeros(256, np.uint8)
    objects[used] = is_object
    return np.take(objects, np.asarray(levels, np.uint8))


def _palette(image: Image.Image, used: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Colours of the used indices. Two of the same colour are refused: the meaning of the second is unclear."""
    palette = np.frombuffer(bytes(image.getpalette("RGB") or ()), np.uint8).reshape(-1, 3)
    if used[-1] >= len(palette):
        raise BadPairError("mask has pixels outside its palette")
    colours: NDArray[np.uint8] = palette[used]
    for colour in colours[:3]:
        same = used[(colours == colour).all(axis=1)]
        if len(same) > 1:
            name = "black" if not colour.any() else f"the colour {tuple(colour.tolist())}"
            raise BadPairError(
                f"mask has {name} twice in its palette, as the values {same[0]} and {same[1]}; "
                "give the object one colour that is not black, and all else black"
            )
    return colours


def _binary_from_colours(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    mask = np.max(pixels, axis=2) > 0
    objects = pixels[mask]
    if len(objects) and (objects != objects[0]).any():
        count = len(np.unique(pixels.reshape(-1, 3), axis=0))
        raise BadPairError(f"mask has {count} colours; it may have black and one other")
    return np.asarray(mask, np.uint8)


def _binary_from_jpeg(image: Image.Image) -> NDArray[np.uint8]:
    levels = np.asarray(image)
    brightest = levels.max()
    if 0 < brightest < JPEG_BACKGROUND_BELOW:
        raise BadPairError(
            f"mask is a JPEG with values other than two, from 0 to {brightest} of 255: what is object cannot be told "
            "after JPEG's loss; save it as PNG, or with 255 for the object"
        )
    between = np.mean((levels >= JPEG_BACKGROUND_BELOW) & (levels < JPEG_OBJECT_FROM))
    if between > JPEG_BETWEEN_FRACTION or 0 < brightest < JPEG_OBJECT_FROM:
        raise BadPairError(f"mask has values other than two: {between:.1%} of this JPEG is neither black nor white")
    return (levels >= 128).astype(np.uint8)

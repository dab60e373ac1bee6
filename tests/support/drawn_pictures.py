"""Folders of small pictures and masks, sound and odd, and an independent opinion on what a mask means."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

HEIGHT, WIDTH = 12, 17
ORIENTATION = 0x0112

Encode = Callable[[NDArray[np.uint8]], bytes]


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _rgb(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.stack([pixels, pixels // 2, 255 - pixels], axis=-1))


def _turned(pixels: NDArray[np.uint8], orientation: int) -> bytes:
    image = _rgb(pixels)
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    return _saved(image, "JPEG", exif=exif.tobytes())


def _bmp(bits: int, compression: int, header_bytes: int = 40) -> bytes:
    """A bitmap of one row, of kinds that Pillow and TensorFlow read differently or not at all."""
    width, height = 4, 4
    row = b"\0" * (-(-width * bits // 32) * 4)
    head = struct.pack("<IiiHHIIiiII", header_bytes, width, height, 1, bits, compression, len(row) * height, 0, 0, 0, 0)
    if header_bytes == 12:
        head = struct.pack("<IHHHH", 12, width, height, 1, bits)
    masks = struct.pack("<III", 0xFF, 0xFF00, 0xFF0000) if compression == 3 else b""
    start = 14 + len(head) + len(masks)
    body = head + masks + row * height
    return b"BM" + struct.pack("<IHHI", start + len(row) * height, 0, 0, start) + body


def _png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0) + b"\0" * 8


IMAGES: dict[str, Encode] = {
    "png": lambda pixels: _saved(_rgb(pixels), "PNG"),
    "jpg": lambda pixels: _saved(_rgb(pixels), "JPEG", quality=90),
    "grey": lambda pixels: _saved(Image.fromarray(pixels), "PNG"),
    "bmp": lambda pixels: _saved(_rgb(pixels), "BMP"),
    "turned": lambda pixels: _turned(pixels, 3),
    "on its side": lambda pixels: _turned(pixels.T.copy(), 6),
    "progressive": lambda pixels: _saved(_rgb(pixels), "JPEG", progressive=True),
    "cmyk": lambda pixels: _saved(_rgb(pixels).convert("CMYK"), "JPEG"),
    "rgba": lambda pixels: _saved(_rgb(pixels).convert("RGBA"), "PNG"),
    "palette": lambda pixels: _saved(_rgb(pixels).convert("P"), "PNG"),
    "16 bits": lambda pixels: _saved(Image.fromarray(pixels.astype(np.uint16) * 257), "PNG"),
    "gif": lambda pixels: _saved(Image.fromarray(pixels), "GIF"),
    "bmp 16": lambda pixels: _bmp(16, 0),
    "bmp fields": lambda pixels: _bmp(32, 3),
    "bmp os2": lambda pixels: _bmp(24, 0, header_bytes=12),
    "cut": lambda pixels: _saved(_rgb(pixels), "PNG")[:-30],
    "empty": lambda pixels: b"",
    "text": lambda pixels: b"not a picture",
    "header alone": lambda pixels: b"\x89PNG\r\n\x1a\n" + b"\0" * 20,
    "huge": lambda pixels: _png_header(2**30, 2**30),
}
SOUND_IMAGES = ("png", "jpg", "grey", "bmp", "turned", "on its side", "progressive")


def _mask_rgb16(mask: NDArray[np.uint8]) -> bytes:
    """A 16-bit RGB PNG of 0 and 1, which Pillow opens as 8-bit and black."""
    height, width = mask.shape
    rows = b"".join(b"\0" + np.repeat(row.astype(">u2"), 3).tobytes() for row in mask)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _palette(mask: NDArray[np.uint8], colours: bytes) -> bytes:
    image = Image.fromarray(mask, "P")
    image.putpalette(colours)
    return _saved(image, "PNG")


MASKS: dict[str, Encode] = {
    "1 bit": lambda mask: _saved(Image.fromarray(mask * 255).convert("1"), "PNG"),
    "0 and 255": lambda mask: _saved(Image.fromarray(mask * np.uint8(255)), "PNG"),
    "0 and 1": lambda mask: _saved(Image.fromarray(mask), "PNG"),
    "gif": lambda mask: _saved(Image.fromarray(mask * np.uint8(255)), "GIF"),
    "colour": lambda mask: _saved(Image.fromarray(np.stack([mask * 200, mask * 10, mask * 0], axis=-1)), "PNG"),
    "palette": lambda mask: _palette(mask, b"\0\0\0\xff\0\0"),
    "white first": lambda mask: _palette(1 - mask, b"\xff\xff\xff\0\0\0"),
    "two blacks": lambda mask: _palette(mask, b"\0\0\0\0\0\0"),
    "jpg": lambda mask: _saved(Image.fromarray(mask * np.uint8(255)), "JPEG", quality=95),
    "jpg of 0 and 1": lambda mask: _saved(Image.fromarray(mask), "JPEG", quality=95),
    "three levels": lambda mask: _saved(Image.fromarray(mask * np.tri(*mask.shape, dtype=np.uint8) + mask), "PNG"),
    "black": lambda mask: _saved(Image.fromarray(mask * np.uint8(0)), "PNG"),
    "white": lambda mask: _saved(Image.fromarray(mask * np.uint8(0) + np.uint8(255)), "PNG"),
    "too small": lambda mask: _saved(Image.fromarray(mask[1:] * np.uint8(255)), "PNG"),
    "on its side": lambda mask: _saved(Image.fromarray(mask.T.copy() * np.uint8(255)), "PNG"),
    "rgb of 16 bits": _mask_rgb16,
    "grey of 16 bits": lambda mask: _saved(Image.fromarray(mask.astype(np.uint16)), "PNG"),
    "cut": lambda mask: _saved(Image.fromarray(mask), "PNG")[:-20],
    "text": lambda mask: b"0 1",
}
SOUND_MASKS = ("1 bit", "0 and 255", "0 and 1", "gif", "colour", "palette", "white first")
NAMES = (
    "a", "b", "c", "car_01", "car_02", "bus_01", "bus_02", "A", "x y", "é", "e\u0301", "=1+1", "-d", "#", "a'b", 'q"',
    "ü" * 60, "n" * 190, "n" * 250, "back\\slash", "line\nbreak", "tab\t", "..x", "...", "p00_mask", "\udcff", "\x01",
    "%2e", "~", "$HOME", "名",
)  # fmt: skip
SUFFIX = {"jpg": ".jpg", "turned": ".JPG", "on its side": ".jpeg", "progressive": ".jpg", "cmyk": ".jpg", "gif": ".gif"}


@dataclass(frozen=True)
class Drawn:
    """A pair as it is to be written."""

    name: str
    image: str
    mask: str | None
    seed: int

    def write(self, raw: Path) -> None:
        random = np.random.default_rng(self.seed)
        pixels = random.integers(0, 256, (HEIGHT, WIDTH), np.uint8)
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[2 : 3 + self.seed % 8, 3 : 4 + self.seed % 11] = 1
        suffix = SUFFIX.get(self.image, ".bmp" if self.image.startswith("bmp") else ".png")
        _write(raw / "images", self.name + suffix, IMAGES[self.image](pixels))
        if self.mask is not None:
            turned = mask.T if self.image == "on its side" and self.seed % 2 else mask
            suffix = {"gif": ".gif", "jpg": ".jpg", "jpg of 0 and 1": ".jpg"}.get(self.mask, ".png")
            _write(raw / "masks", self.name + suffix, MASKS[self.mask](turned.copy()))


def _write(folder: Path, name: str, data: bytes) -> None:
    folder.mkdir(exist_ok=True)
    if len(os.fsencode(name)) <= 255:
        (folder / name).write_bytes(data)


def _drawn(names: st.SearchStrategy[str], images: tuple[str, ...], masks: tuple[str | None, ...]):
    return st.builds(
        Drawn, name=names, image=st.sampled_from(images), mask=st.sampled_from(masks), seed=st.integers(0, 2**20)
    )


SOUND = _drawn(st.sampled_from(NAMES[:8]), SOUND_IMAGES, SOUND_MASKS)
ANY = _drawn(st.sampled_from(NAMES), tuple(IMAGES), (*MASKS, None))
pairs = st.lists(st.one_of(SOUND, SOUND, SOUND, ANY), max_size=7, unique_by=lambda pair: pair.name)


def meaning(file: Path) -> NDArray[np.bool_]:
    """What a mask's file says, by Pillow alone: everything that is not black is object (JPEG: at least half)."""
    image = ImageOps.exif_transpose(Image.open(file))
    if image.format == "JPEG" or file.suffix == ".jpg":
        return np.asarray(image.convert("L")) >= 128
    if image.mode == "1":
        image = image.convert("L")
    pixels = np.asarray(image.convert("RGB") if image.mode == "P" else image)
    return pixels.reshape(*pixels.shape[:2], -1).any(axis=-1)

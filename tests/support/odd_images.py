"""Image files that Pillow cannot write: BMPs and PNGs put together field by field, and JPEGs of rare kinds."""

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np

PNG_START = b"\x89PNG\r\n\x1a\n"
BGR = (0xFF0000, 0xFF00, 0xFF)
GREY_PALETTE = b"".join(bytes([level, level, level, 0]) for level in range(256))
ANIMATION = (b"acTL", struct.pack(">II", 1, 0))

# 8x8 grey, each a few bytes; no program of the test suite can write them.
ARITHMETIC_JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMUFRUVDA8XGBYU"
    "GBIUFRT/yQALCAAIAAgBAREA/8wABgAQEAX/2gAIAQEAAD8A/wCTF+Jsk55zJSHcEcD/2Q=="
)
LOSSLESS_JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALCAAIAAgBAREA/8QAFgABAQEAAAAAAAAAAAAAAAAABAUI/9oACAEBAAEAAM/qUpSlKqKUpSlKqKUpSlKq"
    "KUpSlKqKUpSlKqKUpSlKqKUpSlKqKUpSlK//2Q=="
)


def noise(count: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(count)


def bmp(
    width: int = 5,
    height: int = 3,
    bits: int = 24,
    *,
    compression: int = 0,
    header: int = 40,
    order: Sequence[int] = (),
    palette: bytes = b"",
    top_down: bool = False,
    start: int | None = None,
    data: bytes | None = None,
) -> bytes:
    """A BMP of noise. `header` is its size in bytes, `start` where its pixels are said to begin."""
    data = noise((width * bits + 31) // 32 * 4 * height) if data is None else data
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        signed_height = -height if top_down else height
        info = struct.pack("<IiiHHIIiiII", header, width, signed_height, 1, bits, compression, len(data), 0, 0, 0, 0)
        info = (info + struct.pack(f"<{len(order)}I", *order)).ljust(header, b"\0")
    end = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", end + len(data), 0, 0, start or end) + info + palette + data


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int = 8,
    height: int = 4,
    colours: int = 2,
    depth: int = 8,
    *,
    before: Sequence[tuple[bytes, bytes]] = (),
    rows: bytes | None = None,
    stream: bytes | None = None,
    method: bytes = b"\0\0\0",
) -> bytes:
    """A PNG of noise. `before` are chunks before its pixels, `rows` its bytes before compression, `stream` after it."""
    row_bytes = (width * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours] + 7) // 8
    rows = b"".join(b"\0" + noise(row_bytes, row) for row in range(height)) if rows is None else rows
    header = struct.pack(">IIBB", width, height, depth, colours) + method
    chunks = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(rows) if stream is None else stream), (b"IEND", b"")]
    return PNG_START + b"".join(chunk(*one) for one in chunks)


def interlaced_png(pixels: np.ndarray) -> bytes:
    """Pixels (H, W) or (H, W, 3) in the seven passes of Adam7."""
    rows = b""
    for top, left, down, right in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        part = pixels[top::down, left::right]
        rows += b"".join(b"\0" + row.tobytes() for row in part if row.size)
    colours = 2 if pixels.ndim == 3 else 0
    return png(pixels.shape[1], pixels.shape[0], colours, rows=rows, method=b"\0\0\1")


def frame_control(width: int, height: int) -> tuple[bytes, bytes]:
    """The chunk before an animation's first frame."""
    return b"fcTL", struct.pack(">IIIIIHHBB", 0, width, height, 0, 0, 1, 10, 0, 0)


def with_right_checksums(data: bytes) -> bytes:
    """A PNG with the checksums of its chunks made to hold, as far as its chunks can be told apart."""
    fixed, at = data[:8], 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        fixed += data[at:end] + struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return fixed + data[at:]

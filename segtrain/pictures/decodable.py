"""Does TensorFlow's decoder, which training reads pictures with, see in a file what Pillow sees?

Pillow reads more kinds of files, and some otherwise. The rules here are those of the decoder in TensorFlow 2.21, read
off the file's own bytes so that preparing needs no TensorFlow; `tests/pictures/test_decodable.py` compares the two.
Each function returns the reason against a file, in words that follow "image", or None.
"""

import struct
import zlib

from segtrain.errors import counted, first_fault

MOST_PIXELS = 2**29 - 1
"""TensorFlow decodes no larger picture, whatever the format."""
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_SIDE = 1_000_000
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By the colour type of its header."""
PNG_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""Of an interlaced one: first row, first column, and the steps between rows and between columns."""
PNG_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
INFLATE_BYTES = 2**20
BMP_BYTES = 2**30
BMP_FILE_HEADER = 14
BMP_HEADERS = (40, 52, 56, 108, 124)
"""Sizes of Windows' headers; 12 and 64 are those of OS/2."""
BMP_RLE, BMP_BITFIELDS = (1, 2), 3
BMP_ORDER = (0xFF0000, 0xFF00, 0xFF)
JPEG_START = b"\xff\xd8\xff"
JPEG_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
"""Markers of baseline, extended and progressive frames, in Huffman or arithmetic coding."""
JPEG_ALL_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_ALONE = {0x01, *range(0xD0, 0xD9)}
"""Markers that no length follows."""


def header_reason(data: bytes, height: int, width: int) -> str | None:
    """The reason against a JPEG, PNG or BMP of this size, from its beginning."""
    if height * width > MOST_PIXELS:
        return f"is {width}x{height}, and TensorFlow decodes {MOST_PIXELS:,} pixels at most; make it smaller"
    if data.startswith(PNG_START):
        return _png_header_reason(data, height, width)
    if data.startswith(JPEG_START):
        return _jpeg_reason(data)
    return _bmp_header_reason(data, height, width) if data.startswith(b"BM") else None


def whole_reason(data: bytes, height: int, width: int) -> str | None:
    """The reason against a file from all of it, after `header_reason` has found none."""
    if data.startswith(PNG_START):
        return png_reason(data, height, width)
    return _bmp_reason(data, height, width) if data.startswith(b"BM") else None


def png_bit_depth(data: bytes) -> int | None:
    """Bits a channel from a PNG's header, because Pillow opens 16-bit RGB as 8-bit RGB; None for other formats."""
    return data[24] if data.startswith(PNG_START) and len(data) > 24 else None


def _jpeg_reason(data: bytes) -> str | None:
    """A frame of another process, such as lossless; Pillow's libjpeg reads more of them than TensorFlow's."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF or data[at + 1] == 0xFF:
            at += 1
            continue
        marker = data[at + 1]
        if marker in JPEG_ALL_FRAMES:
            if marker in JPEG_FRAMES:
                return None
            return "is a lossless or hierarchical JPEG, which TensorFlow cannot decode; save it as an ordinary one"
        at += 2 if marker in JPEG_ALONE else 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def _png_header_reason(data: bytes, height: int, width: int) -> str | None:
    return first_fault(
        (
            max(height, width) > PNG_SIDE,
            f"is {width}x{height}, and TensorFlow decodes PNGs with sides of {PNG_SIDE:,} pixels at most; cut it",
        ),
        (
            data[26:29] not in (b"\0\0\0", b"\0\0\1"),
            "is a PNG of an unknown compression, filter or interlace method; save it again",
        ),
    )


def png_reason(data: bytes, height: int, width: int) -> str | None:
    """What is wrong with a PNG of images or masks that Pillow has read; it fills in missing rows with black."""
    at, length, name, pixels = len(PNG_START), 0, b"", []
    once: set[bytes] = set()
    while at + 8 <= len(data) and name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, at)
        if not name.isalpha() or (name[:1].isupper() and name not in PNG_CRITICAL):
            return f"is a PNG with an unknown chunk {name.decode('latin-1')!r}; save it again"
        if name in once:
            return f"is a PNG with two chunks {name.decode()}; save it again"
        if name in (b"IHDR", b"PLTE"):
            once.add(name)
        if name == b"IDAT":
            pixels.append(memoryview(data)[at + 8 : at + 8 + length])
        at += 12 + length
    if name != b"IEND" or zlib.crc32(data[at - 8 - length : at - 4]) != int.from_bytes(data[at - 4 : at], "big"):
        return "is truncated: the end mark of a PNG is missing"
    return _wrong_pixels(pixels, _png_bytes(data, height, width))


def _png_bytes(data: bytes, height: int, width: int) -> int:
    """How many bytes the pixels of a PNG take before they are compressed: each row begins with one for its filter."""
    depth, colours, interlace = data[24], data[25], data[28]
    bits = depth * PNG_CHANNELS.get(colours, 1)
    passes = PNG_PASSES if interlace else ((0, 0, 1, 1),)
    sizes = [(-(-(height - top) // down), -(-(width - left) // right)) for top, left, down, right in passes]
    return sum(rows * (1 + (columns * bits + 7) // 8) for rows, columns in sizes if rows > 0 and columns > 0)


def _wrong_pixels(parts: list[memoryview], wanted_bytes: int) -> str | None:
    """What is wrong with a zlib stream that should unpack to `wanted_bytes`; the output is not kept."""
    stream, got = zlib.decompressobj(), 0
    try:
        for part in parts:
            waiting: bytes | memoryview = part
            while waiting and not stream.eof and got <= wanted_bytes + INFLATE_BYTES:
                got += len(stream.decompress(waiting, INFLATE_BYTES))
                waiting = stream.unconsumed_tail
    except zlib.error:
        return "is a PNG with damaged pixels; save it again"
    return first_fault(
        (got < wanted_bytes, f"is truncated: its pixels need {wanted_bytes} bytes and {got} are there"),
        (
            not stream.eof and got > wanted_bytes,
            f"is a PNG with more bytes of pixels than the {wanted_bytes} that its size needs; save it again",
        ),
        (not stream.eof, "is a PNG whose pixels lack the checksum at their end; save it again"),
    )


def _bmp_header_reason(data: bytes, height: int, width: int) -> str | None:
    if len(data) < BMP_FILE_HEADER + BMP_HEADERS[0] or struct.unpack_from("<I", data, 14)[0] not in BMP_HEADERS:
        return "is a BMP with a header of OS/2; save it as an ordinary BMP, or as PNG"
    start, header_bytes, bits, compression, colours = struct.unpack_from("<II10xHI12xI", data, 10)
    order = struct.unpack_from("<III", data[:66].ljust(66, b"\0"), 54)
    palette = 4 * (colours or 256) if bits == 8 else 0
    return first_fault(
        (
            bits not in (8, 24, 32),
            f"is a BMP with {counted(bits, 'bit')} a pixel, which TensorFlow cannot decode; save it with 24, or as PNG",
        ),
        (
            compression == BMP_BITFIELDS and order != BMP_ORDER,
            "is a BMP whose colours are not in the order blue, green, red; save it with 24 bits a pixel, or as PNG",
        ),
        (
            compression not in (0, BMP_BITFIELDS),
            f"is a BMP compressed{' with RLE' * (compression in BMP_RLE)}, which TensorFlow cannot decode; "
            "save it uncompressed, or as PNG",
        ),
        (
            start < BMP_FILE_HEADER + header_bytes + palette,
            "is a BMP whose pixels begin within its header; save it again",
        ),
        (
            height * _bmp_row_bytes(width, bits) >= BMP_BYTES,
            "is a BMP of 1 GiB or more, which TensorFlow does not decode; save it as PNG",
        ),
    )


def _bmp_reason(data: bytes, height: int, width: int) -> str | None:
    start, bits = struct.unpack_from("<I14xH", data, 10)
    spare = len(data) - start - height * _bmp_row_bytes(width, bits)
    what = f"{spare} bytes behind its last pixel" if spare > 0 else f"{-spare} bytes too few"
    return first_fault(
        (spare != 0, f"is a BMP with {what}, which TensorFlow does not decode; save it again, or as PNG")
    )


def _bmp_row_bytes(width: int, bits: int) -> int:
    return (width * bits // 8 + 3) // 4 * 4

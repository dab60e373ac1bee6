"""What preparing takes for an image, the decoder that trains reads, and it reads the same pixels as Pillow."""

import io
import struct
import zlib

import google_crc32c
import numpy as np
import pytest
from PIL import Image

from segtrain.dataset.shards import Row
from segtrain.pictures.image_files import check_image
from segtrain.pictures.pillow_files import BadPairError
from segtrain.pipeline import decode
from tests.support.odd_images import (
    ANIMATION,
    ARITHMETIC_JPEG,
    BGR,
    GREY_PALETTE,
    LOSSLESS_JPEG,
    bmp,
    chunk,
    frame_control,
    interlaced_png,
    noise,
    png,
    with_right_checksums,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (19, 23, 3), np.uint8)
SMOOTH = np.add.outer(np.arange(19) * 5, np.arange(23) * 4)[..., None].repeat(3, axis=-1).astype(np.uint8)
JPEG_LEVELS = 10
"""Two libjpegs, one with the faster transform, differ by so much."""
STREAM = zlib.compress(b"".join(b"\0" + noise(24, row) for row in range(4)))


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


TAKEN = {
    "bmp 24": bmp(),
    "bmp 24 from the top": bmp(top_down=True),
    "bmp 32": bmp(bits=32),
    "bmp 8 grey": bmp(bits=8, palette=GREY_PALETTE),
    "bmp 24 v4": bmp(header=108),
    "bmp 24 v5": bmp(header=124),
    "bmp 32 bitfields": bmp(bits=32, compression=3, order=BGR),
    "bmp 32 v5 bitfields": bmp(bits=32, compression=3, header=124, order=(*BGR, 0)),
    "bmp with a gap": bmp(palette=b"gap!"),
    "bmp of Pillow": encoded(PIXELS, "BMP"),
    "bmp of Pillow, grey": encoded(PIXELS[..., 0], "BMP"),
    "png rgb": png(),
    "png grey": png(colours=0),
    "png with a transparent colour": png(before=[(b"tRNS", b"\0\1\0\2\0\3")]),
    "png with a transparent grey": png(colours=0, before=[(b"tRNS", b"\0\7")]),
    "png with a gamma": png(before=[(b"gAMA", struct.pack(">I", 20000))]),
    "png with a proposed palette": png(before=[(b"PLTE", noise(768))]),
    "png with an unknown chunk": png(before=[(b"abCD", b"x")]),
    "png of one frame": png(before=[ANIMATION, frame_control(8, 4)]),
    "png with bytes behind it": png() + b"more",
    "png with too many rows": png(rows=b"\0" * 500),
    "png interlaced": interlaced_png(PIXELS),
    "png interlaced, grey": interlaced_png(PIXELS[..., 0]),
    "png of Pillow": encoded(PIXELS, "PNG"),
    "jpeg": encoded(PIXELS, "JPEG"),
    "jpeg grey": encoded(PIXELS[..., 0], "JPEG"),
    "jpeg progressive": encoded(PIXELS, "JPEG", progressive=True),
    "jpeg 4:4:4": encoded(PIXELS, "JPEG", subsampling=0, quality=95),
    "jpeg 4:2:2": encoded(SMOOTH, "JPEG", subsampling=1),
    "jpeg rgb": encoded(PIXELS, "JPEG", keep_rgb=True),
    "jpeg with restarts": encoded(PIXELS, "JPEG", restart_marker_blocks=1),
    "jpeg of lowest quality": encoded(SMOOTH, "JPEG", quality=1),
    "jpeg arithmetic": ARITHMETIC_JPEG,
}
REFUSED = {
    "bmp 16": (bmp(bits=16), "16 bits a pixel"),
    "bmp 16 bitfields": (bmp(bits=16, compression=3, order=(0xF800, 0x7E0, 0x1F)), "16 bits a pixel"),
    "bmp 1": (bmp(bits=1, palette=b"\0\0\0\0\xff\xff\xff\0"), "1 bit a pixel"),
    "bmp rle": (bmp(4, 2, 8, compression=1, palette=GREY_PALETTE, data=b"\4\7\0\0\2\1\2\3\0\1"), "with RLE"),
    "bmp os/2": (bmp(header=12), "OS/2"),
    "bmp os/2 v2": (bmp(header=64), "OS/2"),
    "bmp red first": (bmp(bits=32, compression=3, order=(0xFF000000, 0xFF0000, 0xFF00)), "order"),
    "bmp mixed": (bmp(bits=32, compression=3, order=(0xFF000000, 0xFF00, 0xFF)), "order"),
    "bmp palette": (bmp(bits=8, palette=GREY_PALETTE[::-1]), r"BMP \(P\)"),
    "bmp without a start": (bmp(start=20), "begin within its header"),
    "bmp with a hidden palette": (bmp(bits=8, palette=GREY_PALETTE, start=54), "begin within its header"),
    "bmp with bytes behind": (bmp() + b"\0\0", "2 bytes behind its last pixel"),
    "bmp without its last byte": (bmp()[:-1], "1 bytes too few"),
    "png 16": (png(depth=16), "16-bit PNG"),
    "png palette": (png(colours=3, before=[(b"PLTE", noise(768))]), r"PNG \(P\)"),
    "png alpha": (png(colours=6), r"PNG \(RGBA\)"),
    "png without its checksum": (png(stream=STREAM[:-4]), "lack the checksum"),
    "png of many more rows": (png(rows=bytes(2**21 + 200)), "more bytes of pixels than the 100 that"),
    "png with too few rows": (png(rows=b"".join(b"\0" + noise(24) for _ in range(2))), "is truncated"),
    "png with a critical chunk": (png(before=[(b"ABCD", b"x")]), "unknown chunk 'ABCD'"),
    "png with two palettes": (png(before=[(b"PLTE", noise(768))] * 2), "two chunks PLTE"),
    "png of a frame in a corner": (png(before=[ANIMATION, frame_control(8, 2)]), "does not cover all of it"),
    "png of another compression": (png(method=b"\1\0\0"), "unknown compression"),
    "png with a damaged end": (png()[:-12] + chunk(b"IEND", b"")[:-1] + b"?", "is truncated|cannot be decoded"),
    "png that is too wide": (png(1_000_001, 1, 0, rows=bytes(1_000_002)), "sides of 1,000,000"),
    "jpeg lossless": (LOSSLESS_JPEG, "lossless"),
    "png of Pillow with alpha": (encoded(PIXELS[..., [0, 1, 2, 0]], "PNG"), "RGBA"),
}


def as_trained_on(data: bytes) -> np.ndarray:
    """The pixels that training sees; `DataError` where it cannot see any."""
    height, width, orientation = check_image(data)
    row = Row("a", "g", height, width, orientation, 0.0, data, google_crc32c.value(data), None, None)
    return decode.decode_image(row, height, width)


def as_seen(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def difference(data: bytes) -> int:
    trained, seen = as_trained_on(data), as_seen(data)
    assert trained.shape == seen.shape
    return int(np.abs(trained.astype(int) - seen).max())


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_trains_on_the_pixels_that_people_see(name: str) -> None:
    assert difference(TAKEN[name]) <= (JPEG_LEVELS if name.startswith("jpeg") else 0)


@pytest.mark.parametrize("name", REFUSED)
def test_what_training_cannot_read_is_refused_with_its_reason(name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(BadPairError, match=reason):
        check_image(data)


def test_no_file_that_differs_by_some_bytes_is_taken_and_then_cannot_be_trained_on() -> None:
    draws = np.random.default_rng(0)
    names = [name for name in TAKEN if not name.startswith("jpeg")]
    taken = 0
    for number in range(4000):
        name = names[number % len(names)]
        data = bytearray(TAKEN[name])
        for at in draws.integers(min(len(data), 140), size=1 + number % 3):
            data[at] = draws.choice([0, 1, 255, draws.integers(256)])
        cut = bytes(data[: draws.integers(len(data))] if number % 11 == 0 else data + noise(number % 7 // 6))
        changed = with_right_checksums(cut) if name.startswith("png") and number % 4 else cut
        try:
            check_image(changed, 2**20)
        except BadPairError:
            continue
        taken += 1
        assert difference(changed) == 0, (name, changed)
    assert taken > 500


@pytest.mark.parametrize("field", ["sof", "app", "components"])
def test_no_header_of_a_jpeg_is_taken_and_then_cannot_be_trained_on(field: str) -> None:
    data = encoded(PIXELS, "JPEG")
    start, end = {"sof": (158, 177), "app": (2, 20), "components": (609, 623)}[field]
    for at in range(start, min(end, len(data))):
        for value in (0, 1, 2, 3, 17, 34, 193, 194, 195, 199, 201, 202, 255):
            changed = data[:at] + bytes([value]) + data[at + 1 :]
            try:
                check_image(changed, 2**16)
            except BadPairError:
                continue
            as_trained_on(changed)

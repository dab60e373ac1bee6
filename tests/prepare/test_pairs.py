"""What a picture and its mask must be; each way of being wrong has its reason."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtrain.dataset.shards import unpack_mask
from segtrain.pictures.image_files import check_header, check_image
from segtrain.pictures.mask_files import mask_from_file
from segtrain.pictures.pillow_files import BadPairError
from segtrain.prepare.pairs import check_pair, make_row, pack, read_mask, read_source, unchanged
from segtrain.prepare.sources import Picture
from segtrain.storage.files import Storage
from tests.support.odd_images import png

MASK = np.zeros((6, 8), np.uint8)
MASK[1:4, 2:7] = 1
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
PICTURE = Picture("a", "g", "a.jpg", mask="a.png")


def read_sources(picture: Picture) -> tuple[bytes, bytes]:
    return read_source(picture.image, Storage()), read_mask(picture, Storage())


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def image_bytes(pixels: np.ndarray = PIXELS, kind: str = "JPEG", **options: object) -> bytes:
    return encode(Image.fromarray(pixels), kind, **options)


def mask_bytes(values: np.ndarray, kind: str = "PNG", mode: str | None = None, **options: object) -> bytes:
    image = Image.fromarray(values)
    return encode(image.convert(mode) if mode else image, kind, **options)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def palette_mask(indices: np.ndarray, colours: list[int], kind: str) -> bytes:
    image = Image.fromarray(indices, "L").copy()
    image.putpalette(colours)
    return encode(image, kind)


def small_frame(gif: bytes) -> bytes:
    """A GIF of a larger screen than its frame."""
    return gif[:6] + b"\x20\0\x20\0" + gif[10:]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
@pytest.mark.parametrize("pixels", [PIXELS, PIXELS[..., 0]], ids=["rgb", "grey"])
def test_rgb_and_grey_images_are_taken(kind: str, pixels: np.ndarray) -> None:
    assert check_image(image_bytes(pixels, kind)) == (6, 8, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_height_and_width_are_those_after_exif_orientation(orientation: int) -> None:
    size = (6, 8) if orientation < 5 else (8, 6)
    assert check_image(image_bytes(exif=exif(orientation))) == (*size, orientation)
    assert check_header(image_bytes(exif=exif(orientation))) == (*size, orientation)


def test_a_header_is_read_without_what_comes_behind_it() -> None:
    data = image_bytes()
    assert check_header(data[:-20]) == (6, 8, 1)
    with pytest.raises(BadPairError, match="none of JPEG, PNG, BMP"):
        check_header(b"no picture")


def test_an_orientation_that_does_not_exist_counts_as_upright() -> None:
    assert check_image(image_bytes(exif=exif(9))) == (6, 8, 1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encode(Image.new("CMYK", (8, 6)), "JPEG"), r"JPEG \(CMYK\); only 8-bit RGB and grey"),
        (encode(Image.new("I;16", (8, 6)), "PNG"), "16-bit PNG"),
        (png(8, 6, depth=16), r"16-bit PNG \(RGB\)"),
        (encode(Image.new("RGBA", (8, 6)), "PNG"), "RGBA"),
        (encode(Image.new("P", (8, 6)), "PNG"), r"PNG \(P\)"),
        (encode(Image.new("L", (8, 6)), "TIFF"), "none of JPEG, PNG, BMP"),
        (b"", "none of JPEG, PNG, BMP, or is damaged"),
        (b"not a picture at all", "none of JPEG, PNG, BMP, or is damaged"),
    ],
    ids=["cmyk", "grey-16", "rgb-16", "alpha", "palette", "tiff", "nothing", "text"],
)
def test_other_kinds_of_images_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(BadPairError, match=reason):
        check_image(data)


@pytest.mark.parametrize("missing", [2, 3, 20, 200, 2000])
def test_a_truncated_jpeg_is_refused_even_where_only_its_end_mark_is_missing(missing: int) -> None:
    data = image_bytes(np.random.default_rng(1).integers(0, 256, (90, 90, 3), np.uint8))
    assert check_image(data) == (90, 90, 1)
    assert check_image(data + b"trailer of a phone") == (90, 90, 1)
    with pytest.raises(BadPairError, match=r"truncated|cannot be decoded|damaged"):
        check_image(data[:-missing])


def test_a_truncated_or_damaged_png_is_refused() -> None:
    data = image_bytes(np.random.default_rng(1).integers(0, 256, (90, 90, 3), np.uint8), "PNG")
    for missing in (1, 12, 100):
        with pytest.raises(BadPairError, match=r"truncated|cannot be decoded"):
            check_image(data[:-missing])
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 255
    with pytest.raises(BadPairError, match="cannot be decoded"):
        check_image(bytes(damaged))


@pytest.mark.parametrize(
    "data",
    [
        mask_bytes(MASK * 255),
        mask_bytes(MASK),
        mask_bytes(MASK * 7, "BMP"),
        mask_bytes(MASK * 255, "GIF"),
        mask_bytes(MASK * 255, mode="1"),
        mask_bytes(MASK * 255, mode="RGB"),
        mask_bytes(MASK * 255, "BMP", mode="RGB"),
        mask_bytes(np.stack([MASK * 200, MASK * 0, MASK * 30], axis=-1)),
        palette_mask(MASK, [0, 0, 0, 255, 255, 255], "GIF"),
        palette_mask(1 - MASK, [255, 255, 255, 0, 0, 0], "PNG"),
        palette_mask(1 - MASK, [255, 255, 255, 0, 0, 0], "GIF"),
        mask_bytes(np.rot90(MASK * 255), exif=exif(6)),
    ],
    ids=[
        "255",
        "1",
        "bmp-7",
        "gif",
        "1-bit",
        "rgb",
        "bmp-rgb",
        "colour",
        "kaggle-gif",
        "white-0",
        "white-0-gif",
        "exif",
    ],
)
def test_every_way_to_store_two_values_gives_the_same_mask(data: bytes) -> None:
    mask = mask_from_file(data)
    np.testing.assert_array_equal(mask, MASK)
    assert mask.dtype == np.uint8


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "JPEG"])
@pytest.mark.parametrize("value", [0, 255])
def test_a_mask_may_be_empty_or_full(kind: str, value: int) -> None:
    mask = mask_from_file(mask_bytes(np.full((6, 8), value, np.uint8), kind))
    np.testing.assert_array_equal(mask, np.full((6, 8), value > 0))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("quality", [60, 95])
def test_a_jpeg_mask_loses_its_blurred_edges(mode: str, quality: int) -> None:
    rows, columns = np.ogrid[:200, :300]
    disc = ((rows - 90) ** 2 + (columns - 140) ** 2 < 70**2).astype(np.uint8)
    np.testing.assert_array_equal(mask_from_file(mask_bytes(disc * 255, "JPEG", mode, quality=quality)), disc)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (mask_bytes(np.array([[0, 1, 2]], np.uint8)), r"3 values \(0, 1, 2\)"),
        (mask_bytes(np.array([[1, 2]], np.uint8)), r"2 values \(1, 2\); one has to be 0"),
        (mask_bytes(np.arange(256, dtype=np.uint8).reshape(16, 16), "GIF"), r"256 values \(0, 1, 2, 3, \.\.\.\)"),
        (mask_bytes(np.eye(3, dtype=np.uint8)[None] * 255), "3 colours"),
        (mask_bytes(np.tile(np.arange(256, dtype=np.uint8), (64, 1)), "JPEG"), "values other than two"),
        (mask_bytes(np.full((16, 16), 20, np.uint8), "JPEG"), "values other than two"),
        (mask_bytes(MASK * 255, mode="LA"), r"PNG \(LA\)"),
        (palette_mask(MASK, [0, 0, 0, 0, 0, 0], "PNG"), "black twice in its palette, as the values 0 and 1"),
        (encode(Image.new("L", (8, 6)), "TIFF"), "none of PNG, GIF, BMP, JPEG"),
        (mask_bytes(MASK * 255, "GIF", save_all=True, append_images=[Image.fromarray(255 - MASK)]), "2 frames"),
        (mask_bytes(MASK * 255)[:-20], "cannot be decoded"),
        (png(8, 6, depth=16, rows=(b"\0" + bytes(47) + b"\1") * 6), r"16-bit PNG \(RGB\); save it with 8 bits"),
        (png(8, 6, 0, rows=bytes(18)), "is truncated: its pixels need 54 bytes and 18 are there"),
        (small_frame(mask_bytes(MASK * 255, "GIF")), "first frame does not cover all of it"),
        (
            mask_bytes(np.kron(MASK, np.ones((9, 9), np.uint8)), "JPEG"),
            "values other than two, from 0 to . of 255.*save it as PNG",
        ),
        (palette_mask(MASK, [0, 0, 0, 0, 0, 0], "GIF"), "black twice"),
    ],
    ids=[
        "three",
        "no-black",
        "gif-grey",
        "colours",
        "jpeg-grey",
        "jpeg-dark",
        "alpha",
        "two-blacks",
        "tiff",
        "frames",
        "truncated",
        "rgb-16",
        "missing rows",
        "part of a gif",
        "jpeg of 0 and 1",
        "two-blacks-gif",
    ],
)
def test_masks_of_more_than_two_values_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(BadPairError, match=reason):
        mask_from_file(data)


def test_sizes_that_differ_are_refused() -> None:
    with pytest.raises(BadPairError, match=r"image is 8x6 and mask 6x8 \(width x height\)"):
        check_pair(PICTURE, image_bytes(), mask_bytes(MASK.T))


def test_sizes_are_compared_after_exif_orientation() -> None:
    turned = image_bytes(exif=exif(6))
    checked, _ = check_pair(PICTURE, turned, mask_bytes(np.ascontiguousarray(MASK.T) * 255))
    assert (checked.height, checked.width, checked.orientation) == (8, 6, 6)
    with pytest.raises(BadPairError, match=r"image is 6x8 and mask 8x6 .*EXIF orientation turns it: turn its mask"):
        check_pair(PICTURE, turned, mask_bytes(MASK))


def test_a_picture_is_judged_by_the_size_in_its_header_before_anything_is_decoded() -> None:
    bomb = png(16_000, 16_000, 0, rows=b"")
    with pytest.raises(BadPairError, match="image is 16000x16000, more than 1,000,000 pixels"):
        check_image(bomb, 10**6)
    with pytest.raises(BadPairError, match="image is 8x6 and mask 16000x16000"):
        check_pair(PICTURE, image_bytes(), bomb)
    with pytest.raises(BadPairError, match="image is 40000x40000, more than"):
        check_image(png(40_000, 40_000, 0, rows=b""))


@pytest.mark.parametrize("name", ["..", "a\\b", "a\nb", "a\x00b", "\udcff", "x" * 201])
def test_a_name_that_cannot_be_an_id_is_refused(name: str) -> None:
    with pytest.raises(BadPairError, match=r"the id, which is its name, .*rename image and mask"):
        check_pair(dataclasses.replace(PICTURE, id=name), image_bytes(), mask_bytes(MASK))


def test_an_empty_group_is_refused() -> None:
    with pytest.raises(BadPairError, match="has no group"):
        check_pair(dataclasses.replace(PICTURE, group=""), image_bytes(), mask_bytes(MASK))


def test_a_row_holds_the_original_bytes_and_the_packed_mask() -> None:
    image, mask = image_bytes(exif=exif(1)), mask_bytes(MASK, "GIF")
    checked, packed = check_pair(PICTURE, image, mask)
    assert pack(PICTURE, checked, mask) == packed
    row = make_row(PICTURE, checked, image, packed)
    assert row.image == image
    assert row.foreground == pytest.approx(MASK.mean())
    assert row.mask is not None
    np.testing.assert_array_equal(unpack_mask(row.mask, 6, 8), MASK)


def test_run_lengths_are_checked_against_the_images_size() -> None:
    picture = Picture("a", "g", "a.jpg", run_lengths="1 2 48 1")
    checked, _ = check_pair(picture, image_bytes(), b"1 2 48 1")
    assert checked.foreground == pytest.approx(3 / 48)
    with pytest.raises(BadPairError, match="mask's run lengths end at pixel 49; the picture has 48"):
        check_pair(picture, image_bytes(), b"1 2 48 2")


def test_a_file_that_changed_is_noticed_and_one_that_went_is_named(tmp_path: Path) -> None:
    picture = Picture("a", "g", str(tmp_path / "a.jpg"), mask=str(tmp_path / "a.png"))
    (tmp_path / "a.jpg").write_bytes(image_bytes())
    (tmp_path / "a.png").write_bytes(mask_bytes(MASK))
    checked, _ = check_pair(picture, *read_sources(picture))
    assert unchanged(checked, *read_sources(picture))
    (tmp_path / "a.png").write_bytes(mask_bytes(1 - MASK))
    assert not unchanged(checked, *read_sources(picture))
    (tmp_path / "a.png").unlink()
    with pytest.raises(BadPairError, match=r"a\.png is not there"):
        read_sources(picture)

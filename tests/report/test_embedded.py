"""Panels inside a page: whole and small."""

import base64
import io

import pytest
from PIL import Image

from segtrain.report.embedded import (
    ALL_THUMBNAILS_BYTES,
    SHOWN_WIDTH,
    THUMBNAIL_BYTES,
    Thumbnail,
    bytes_each,
    panel_url,
    thumbnail,
)
from tests.support.made_runs import draw_panel


def opened(small: Thumbnail | None) -> tuple[Image.Image, int]:
    assert small is not None
    head, _, data = small.url.partition(",")
    assert head == "data:image/jpeg;base64"
    jpeg = base64.b64decode(data)
    return Image.open(io.BytesIO(jpeg)), len(jpeg)


def test_a_thumbnail_is_the_right_half_of_a_panel() -> None:
    small = thumbnail(draw_panel(0, off_by=0, size=(80, 120)), THUMBNAIL_BYTES)
    picture, _ = opened(small)
    assert small is not None
    assert small.height == round(SHOWN_WIDTH * picture.height / picture.width)
    assert picture.width == 360
    assert picture.width / picture.height == pytest.approx(2 * 120 / 80, rel=0.06)
    red, _, blue = picture.getpixel((100, picture.height // 2))
    assert blue > red + 30  # the object, tinted, in the middle of the prediction
    corner = picture.getpixel((picture.width - 8, 8))
    assert max(corner) - min(corner) < 12  # the difference's background is grey


@pytest.mark.parametrize("most", [9000, 4000, 2500])
def test_a_thumbnail_is_as_small_as_asked(most: int) -> None:
    _, size = opened(thumbnail(draw_panel(1, size=(266, 392)), most))
    assert size <= most


def test_what_cannot_be_small_enough_or_is_no_picture_is_left_out() -> None:
    png = draw_panel(1)
    assert thumbnail(png, 100) is None
    assert thumbnail(b"no picture", THUMBNAIL_BYTES) is None
    assert panel_url(png[:300]) is None


def test_thumbnails_share_what_a_page_may_hold() -> None:
    assert bytes_each(0) == bytes_each(12) == THUMBNAIL_BYTES
    assert 200 * bytes_each(200) <= ALL_THUMBNAILS_BYTES

"""A data set in words, numbers and pictures."""

import dataclasses
import shutil
from typing import Any

import numpy as np
import pytest

from segtrain.dataset.describe import overview, preview, statistics
from segtrain.dataset.manifest import read_index
from segtrain.errors import DataError, UserError
from segtrain.storage.files import Storage
from tests.support.odd_images import png


def test_the_overview_names_what_is_in_the_manifest(tiny: Any) -> None:
    text = "\n".join(overview(tiny.manifest, tiny.root))
    for part in (tiny.root, tiny.manifest.fingerprint, "47 pictures in 24 groups", "3 shards", "16 row groups"):
        assert part in text
    assert text.count("\n") == 7


def test_the_statistics_count_sizes_and_empty_masks(tiny: Any) -> None:
    index = read_index(Storage(), tiny.root, tiny.manifest)
    text = "\n".join(statistics(index))
    assert "1 sizes (width x height): 32x24 (47)" in text
    assert "masks without any object: 0" in text


def test_the_preview_shows_as_many_pictures_as_asked_for(tiny: Any) -> None:
    index = read_index(Storage(), tiny.root, tiny.manifest)
    one, four = (preview(Storage(), tiny.root, tiny.manifest, index, count) for count in (1, 4))
    assert four.width > 3 * one.width
    assert np.asarray(four).std() > 0
    many = preview(Storage(), tiny.root, tiny.manifest, index, 1000)
    assert many.height > 10 * one.height
    with pytest.raises(UserError, match="--pictures is 0"):
        preview(Storage(), tiny.root, tiny.manifest, index, 0)


def test_a_turned_picture_is_shown_upright(make_row: Any, make_data_set: Any) -> None:
    import io

    from PIL import Image

    tags = Image.Exif()
    tags[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("L", (40, 20)).save(buffer, "JPEG", exif=tags)
    row = make_row(buffer.getvalue(), np.ones((40, 20), np.uint8), orientation=6)
    data_set = make_data_set([[[row]]])
    index = read_index(Storage(), data_set.root, data_set.manifest)
    sheet = preview(Storage(), data_set.root, data_set.manifest, index, 1)
    assert sheet.height > sheet.width


def test_a_damaged_picture_is_named_instead_of_shown(tiny: Any, make_data_set: Any) -> None:
    good, other = tiny.rows[:2]
    bad = dataclasses.replace(other, image_crc32c=1)
    data_set = make_data_set([[[good, bad]]])
    index = read_index(Storage(), data_set.root, data_set.manifest)
    with pytest.raises(DataError, match=f"row group 0, id {bad.id}: the image differs from its own checksum"):
        preview(Storage(), data_set.root, data_set.manifest, index, 2)


def test_a_picture_that_is_none_or_of_another_size_is_named_instead_of_shown(make_row: Any, make_data_set: Any) -> None:
    for number, image in enumerate([b"no picture", png(20_000, 20_000, 0, rows=b""), png(8, 4)]):
        row = make_row(image, np.ones((24, 32), np.uint8), name=f"p{number}")
        data_set = make_data_set([[[row]]])
        index = read_index(Storage(), data_set.root, data_set.manifest)
        with pytest.raises(DataError, match=f"a picture cannot be shown: id p{number}: image is "):
            preview(Storage(), data_set.root, data_set.manifest, index, 1)
        shutil.rmtree(data_set.root)

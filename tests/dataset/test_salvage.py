"""What is said of single rows; `tests/dataset/test_damage.py` has whole row groups that are damaged."""

import dataclasses

import pytest

from segtrain.dataset.salvage import LostRow, damage_of, row_of
from segtrain.dataset.soundness import MOST_PIXELS
from tests.support.data_sets import DataSet


def test_a_row_that_is_gone_or_is_another_one_is_lost_under_the_name_that_the_index_has(tiny: DataSet) -> None:
    row = tiny.rows[0]
    assert row_of(row.id, row) is row
    assert row_of("p000", None) == LostRow("p000", "its bytes in storage are damaged")
    assert row_of("other", row) == LostRow("other", "its shard holds another picture in its place")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"mask": None, "mask_crc32c": None}, None),
        ({"image_crc32c": 1}, "the image differs from its own checksum"),
        ({"image_crc32c": 1, "mask_crc32c": 1}, "the image differs from its own checksum and the mask differs from "),
        ({"id": "../p000"}, "its id "),
        ({"height": 0}, "its size of 32x0 is not possible"),
        ({"width": MOST_PIXELS}, f"its size of {MOST_PIXELS}x24 is not possible"),
    ],
)
def test_what_a_row_says_against_itself(tiny: DataSet, changes: dict[str, object], reason: str | None) -> None:
    found = damage_of(dataclasses.replace(tiny.rows[0], **changes))
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert found.reason.startswith(reason)

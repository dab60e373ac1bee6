"""Part files come back as they were written, or are refused."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segtrain.errors import DataError
from segtrain.inference.parts import Part, PredictedMask, index, read_part, write_part
from segtrain.storage import Storage

TWO = Part((PredictedMask("a_01", 2, 3, "1 2 5 1"), PredictedMask("b_01", 4, 4, "")), {"c_01": "no JPEG"})
MASKS = st.builds(
    PredictedMask,
    st.text(max_size=8),
    st.integers(1, 2000),
    st.integers(1, 2000),
    st.text("0123456789 ", max_size=30),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(st.lists(MASKS, max_size=4), st.dictionaries(st.text(max_size=4), st.text(max_size=8), max_size=2))
def test_a_part_comes_back(tmp_path: Path, masks: list[PredictedMask], unreadable: dict[str, str]) -> None:
    url = str(tmp_path / "p.part")
    write_part(Storage(), url, Part(masks, unreadable))
    assert read_part(Storage(), url) == Part(tuple(masks), unreadable)


def test_a_mask_is_found_without_looking_at_the_others(tmp_path: Path) -> None:
    url = tmp_path / "p.part"
    write_part(Storage(), str(url), TWO)
    data = url.read_bytes()
    places, unreadable = index(data, str(url))
    assert [(place.id, data[place.start : place.end]) for place in places] == [("a_01", b"1 2 5 1"), ("b_01", b"")]
    assert unreadable == {"c_01": "no JPEG"}


def test_whatever_bit_is_damaged_or_missing_it_is_noticed(tmp_path: Path) -> None:
    url = tmp_path / "p.part"
    write_part(Storage(), str(url), TWO)
    data = url.read_bytes()
    flipped = [data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :] for at in range(len(data))]
    for damaged in [*flipped, *(data[:end] for end in range(len(data))), data + b"1"]:
        with pytest.raises(DataError, match=r"p\.part is (damaged or no part file; delete it|of format version)"):
            index(damaged, str(url))


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    url = tmp_path / "p.part"
    write_part(Storage(), str(url), TWO)
    url.write_bytes(url.read_bytes().replace(b"version 1", b"version 2"))
    with pytest.raises(DataError, match=r"p\.part is of format version 2; this segtrain reads version 1"):
        read_part(Storage(), str(url))

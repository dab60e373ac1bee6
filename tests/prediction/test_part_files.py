"""Part files come back as they were written, or are refused."""

import json
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segtrain.errors import DataError, UserError
from segtrain.prediction.part_files import Part, PredictedMask, Seen, parse_part, read_part, write_part
from segtrain.storage.files import Storage

TWO = Part(
    (PredictedMask("a_01", 2, 3, "1 2 5 1"), PredictedMask("b_01", 4, 4, "")),
    {"c_01": "no JPEG"},
    {"a_01": Seen("1", "ab", "a_01")},
)
MASKS = st.builds(
    PredictedMask,
    st.text(max_size=8),
    st.integers(1, 2000),
    st.integers(1, 2000),
    st.text("0123456789 ", max_size=30),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=15)
@given(st.lists(MASKS, max_size=4), st.dictionaries(st.text(max_size=4), st.text(max_size=8), max_size=2))
def test_a_part_comes_back(tmp_path: Path, masks: list[PredictedMask], unreadable: dict[str, str]) -> None:
    url = str(tmp_path / "p.part")
    write_part(Storage(), url, Part(masks, unreadable))
    assert read_part(Storage(), url) == Part(tuple(masks), unreadable)


def test_each_mask_has_its_own_run_lengths(tmp_path: Path) -> None:
    url = tmp_path / "p.part"
    write_part(Storage(), str(url), TWO)
    data = url.read_bytes()
    found = parse_part(data, str(url))
    assert [(mask.id, mask.rle) for mask in found.masks] == [("a_01", "1 2 5 1"), ("b_01", "")]
    assert found.unreadable == {"c_01": "no JPEG"}
    assert found.seen == TWO.seen


def test_whatever_bit_is_damaged_or_missing_it_is_noticed(tmp_path: Path) -> None:
    url = tmp_path / "p.part"
    write_part(Storage(), str(url), TWO)
    data = url.read_bytes()
    flipped = [data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :] for at in range(len(data))]
    for damaged in [*flipped, *(data[:end] for end in range(len(data))), data + b"1"]:
        with pytest.raises(
            (DataError, UserError), match=r"p\.part is (damaged or no part file; delete it|of format version)"
        ):
            parse_part(damaged, str(url))


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    url = tmp_path / "p.part"
    write_part(Storage(), str(url), TWO)
    url.write_bytes(url.read_bytes().replace(b"version 2", b"version 3"))
    with pytest.raises(UserError, match=r"p\.part is of format version 3; this segtrain reads versions 1 to 2"):
        read_part(Storage(), str(url))


def signed(head: str, rest: bytes = b"") -> bytes:
    """A part file whose checksum holds, whatever is in it."""
    body = head.encode() + b"\n" + rest
    return b"segtrain part, version 2, crc32c %08x\n" % google_crc32c.value(body) + body


def test_a_part_of_version_1_is_read_and_says_not_what_the_pictures_were(tmp_path: Path) -> None:
    body = b'{"masks":[["a_01",2,3,7]],"unreadable":{}}\n1 2 5 1\n'
    (tmp_path / "p.part").write_bytes(b"segtrain part, version 1, crc32c %08x\n" % google_crc32c.value(body) + body)
    assert read_part(Storage(), str(tmp_path / "p.part")) == Part((PredictedMask("a_01", 2, 3, "1 2 5 1"),))


@pytest.mark.parametrize(
    "head",
    [
        "null",
        "[]",
        '{"masks": 1, "unreadable": {}}',
        '{"masks": [["a", 1, 1, -5]], "unreadable": {}}',
        '{"masks": [["a", 1, 1, 1e3]], "unreadable": {}}',
        '{"masks": [["a", 1, 1, 1000000]], "unreadable": {}}',
        '{"masks": [[1, 1, 1, 0]], "unreadable": {}}',
        '{"masks": [], "unreadable": []}',
        '{"masks": [], "unreadable": {}, "seen": {"a": [1]}}',
        '{"masks": [], "unreadable": {}, "seen": {"a": 1}}',
        "[" * 100_000,
        "{",
    ],
    ids=lambda head: head[:40],
)
def test_odd_json_in_a_part_whose_checksum_holds_is_a_damaged_part(head: str) -> None:
    with pytest.raises(DataError, match=r"^p\.part is damaged or no part file; delete it"):
        parse_part(signed(head), "p.part")


def test_a_part_without_some_of_its_pictures_is_the_part_of_the_others() -> None:
    assert TWO.without({"a_01", "c_01"}) == Part([TWO.masks[1]])
    assert TWO.ids == ["a_01", "b_01", "c_01"]
    assert json.loads(json.dumps(TWO.seen)) == {"a_01": ["1", "ab", "a_01"]}

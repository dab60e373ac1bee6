"""Ids and the file names made of them."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segtrain.errors import UserError
from segtrain.storage.ids import MOST_BYTES, check_id, check_relative, file_names, join_inside

FOREIGN = [
    "",
    ".",
    "..",
    "../../../x/pwn",
    "a/b",
    "a\0b",
    "a\nb",
    "a\x7fb",
    "a\x85b",
    "\udcff",
    "x" * 300,
    "ä" * 101,
    "a\\b",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_an_id_that_is_no_file_name_is_refused(name: str) -> None:
    assert check_id(name) is not None


@pytest.mark.parametrize("name", ["a", "...", "x" * 200, "ä" * 100, "=1+1", "a b", "00087_01", "A", "日本"])
def test_any_other_name_is_an_id(name: str) -> None:
    assert check_id(name) is None


@pytest.mark.parametrize("name", FOREIGN)
def test_an_older_set_may_have_long_ids_and_backslashes_and_nothing_else(name: str) -> None:
    assert (check_id(name, older=True) is None) == (len(name) > 100 or name == "a\\b")


def test_ids_are_their_own_file_names_where_these_are_safe() -> None:
    assert file_names(["b", "a", "=1+1"]) == {"a": "a", "b": "b", "=1+1": "=1+1"}


def test_ids_that_differ_in_case_or_unicode_form_alone_get_names_that_differ_in_more() -> None:
    for one, other in [("Car", "car"), ("caf\u00e9", "cafe\u0301"), ("STRASSE", "straße")]:
        names = file_names([one, other])
        compared = {unicodedata.normalize("NFC", name).casefold() for name in names.values()}
        assert len(compared) == 2
        assert names == file_names([other, one])


def test_a_made_name_leaves_the_name_of_another_id_alone() -> None:
    made = file_names(["A", "a"])["a"]
    names = file_names(["A", "a", made])
    assert names[made] == made
    assert len(set(names.values())) == 3


@given(st.sets(st.text(st.characters(exclude_categories=()), max_size=300), max_size=8))
def test_whatever_the_ids_are_their_names_are_distinct_and_stay_inside(ids: set[str]) -> None:
    names = file_names(ids)
    assert names.keys() == ids
    assert len({name.casefold() for name in names.values()}) == len(ids)
    for name in names.values():
        assert check_id(name) is None
        assert len(f"{name}.png".encode()) <= MOST_BYTES + 4
        assert join_inside("/folder", f"{name}.png") == f"/folder/{name}.png"


@pytest.mark.parametrize("path", ["", "/etc/x", "../x", "a/../../x", "a//b", "./a", "a\\b", "s3://b/x", "a\0"])
def test_a_path_that_leads_out_of_its_folder_is_refused(path: str) -> None:
    assert check_relative(path) is not None
    with pytest.raises(UserError, match="nothing outside /set is read or written"):
        join_inside("/set", path)


def test_a_path_below_its_folder_is_joined() -> None:
    assert join_inside("s3://bucket/set/", "fold=0/part.parquet") == "s3://bucket/set/fold=0/part.parquet"

"""Cells of CSV files that a spreadsheet must not compute."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segtrain.storage.csv_cells import cell, csv_bytes, text_of


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1"])
def test_a_formula_is_quoted(text: str) -> None:
    assert cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["00087_01", "a=1", "'tis", "", -1, -0.5, None])
def test_everything_else_stays_as_it_is(value: object) -> None:
    assert cell(value) == value


@given(st.text("'=+-@a", max_size=6))
def test_what_was_written_is_read_back(text: str) -> None:
    assert text_of(str(cell(text))) == text


def test_a_file_has_a_line_a_row_and_escapes_what_is_no_utf8() -> None:
    rows = [("=1", 2), ("a\ud800", None), ('"b", c', 0.5)]
    assert csv_bytes(("id", "number"), rows) == b'id,number\n\'=1,2\na\\ud800,\n"""b"", c",0.5\n'

"""CSV files that segtrain writes, such that a spreadsheet shows their text and never takes it for a formula."""

import csv
import io
from collections.abc import Iterable
from itertools import chain

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What makes a spreadsheet compute a cell, or look further for a reason to."""
QUOTE = "'"
"""Before the text, it makes spreadsheets show the rest as it is."""


def csv_bytes(header: Iterable[object], rows: Iterable[Iterable[object]]) -> bytes:
    """A CSV file with a line feed after each row. Text that is no UTF-8 is escaped."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(cell, row) for row in chain([header], rows))
    return text.getvalue().encode(errors="backslashreplace")


def cell(value: object) -> object:
    """What to write for a value: text that would be a formula gets a quote before it, all else stays (numbers, too).

    Text that begins with quotes and then like a formula gets one more, so that `text_of` can take it back.
    """
    return QUOTE + value if isinstance(value, str) and _starts_formula(value) else value


def text_of(written: str) -> str:
    """The text that `cell` made this of."""
    return written[1:] if written.startswith(QUOTE) and _starts_formula(written) else written


def _starts_formula(text: str) -> bool:
    return text.lstrip(QUOTE).startswith(FORMULA_STARTS)

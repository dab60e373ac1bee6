"""CSV files that come with pictures: every row that has the wanted columns, and a sentence for whatever is no CSV."""

import contextlib
import csv
import io
from collections.abc import Iterator, Sequence

from segtrain.errors import UserError, shown
from segtrain.storage.files import Storage

# A field of the csv module holds 128 KiB by default; a ragged mask's run lengths, or a note, may be longer.
FIELD_LIMIT_BYTES = 2**27
SEPARATORS = {";": "semicolons", "\t": "tabs"}
"""That spreadsheets write in place of commas."""


def read_rows(
    storage: Storage, url: str, columns: Sequence[str], *, field: str = "", fix: str = "save it as UTF-8"
) -> Iterator[tuple[int, list[str]]]:
    """The number of the line where each row ends, and its cells in `columns`; a row that is too short ends with fewer.

    Raises `FileNotFoundError` for a file that is not there, and `UserError`, which begins with the `field` that named
    the file and ends with the `fix`, for one that is no CSV in UTF-8, and where its first line lacks a column or has it
    twice.
    """
    about = f"{field}: {url}" if field else url
    try:
        text = storage.read_bytes(url).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{about} is not UTF-8 text; {fix}") from None
    # Lines may end in a bare carriage return, as old spreadsheets end them.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        with _long_fields():
            header = next(reader, [])
            places = [_place(header, column, about) for column in columns]
            for row in reader:
                if row:
                    yield reader.line_num, [row[place] for place in places if place < len(row)]
    except csv.Error as error:
        raise UserError(f"{about} is no CSV in line {reader.line_num}: {error}; {fix}") from None


def _place(header: Sequence[str], column: str, about: str) -> int:
    if column not in header:
        separator = next((name for sign, name in SEPARATORS.items() if len(header) == 1 and sign in header[0]), None)
        fix = f"; {separator} seem to separate its columns: save it with commas" if separator else ""
        columns = shown(", ".join(header)) or "(none)"
        raise UserError(f"{about} has no column '{column}'; its columns are {columns}{fix}")
    if header.count(column) > 1:
        raise UserError(f"{about} has the column '{column}' {header.count(column)} times; keep one of them")
    return header.index(column)


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Let fields be longer while the block runs; the limit is one for the whole process."""
    before = csv.field_size_limit(FIELD_LIMIT_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)

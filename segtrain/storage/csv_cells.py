"""Text in the CSV files that segtrain writes, such that a spreadsheet shows it and never takes it for a formula."""

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What makes a spreadsheet compute a cell, or look further for a reason to."""
QUOTE = "'"
"""Before the text, it makes spreadsheets show the rest as it is."""


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

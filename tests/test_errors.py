"""How foreign text stands in a message."""

from segtrain.errors import SHOWN_CHARACTERS, shown


def test_foreign_text_is_shown_short_and_on_one_line() -> None:
    assert shown("a\nb\udcff\x1b[0m") == "a\\nb\\udcff\\x1b[0m"
    assert shown("x" * 5000) == "x" * SHOWN_CHARACTERS + "..."

"""How foreign text stands in a message, and which of several faults is told."""

from segtrain.errors import SHOWN_CHARACTERS, first_fault, shown


def test_foreign_text_is_shown_short_and_on_one_line() -> None:
    assert shown("a\nb\udcff\x1b[0m") == "a\\nb\\udcff\\x1b[0m"
    assert shown("x" * 5000) == "x" * SHOWN_CHARACTERS + "..."


def test_of_several_faults_the_first_is_told() -> None:
    assert first_fault((False, "one"), (True, "two"), (True, "three")) == "two"
    assert first_fault((False, "one")) is None

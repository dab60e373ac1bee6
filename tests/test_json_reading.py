"""JSON from anywhere ends in a value or in one kind of error."""

import pytest

from segtrain.json_reading import parse_json


def test_what_is_json_is_read_from_text_and_from_bytes() -> None:
    assert parse_json('{"a": [1, null]}') == parse_json(b'{"a": [1, null]}') == {"a": [1, None]}


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe\xfd", "[" * 100_000, b'{"a":' * 100_000, ""], ids=repr)
def test_what_is_none_or_too_deep_is_one_kind_of_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)

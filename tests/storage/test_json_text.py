"""JSON of foreign files: bounded before anything is built from it."""

import tracemalloc

import pytest

from segtrain.storage.json_text import read_json


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ("[" + "[]," * 3_000_000 + "[]]", "more than 2097152 values"),
        ("1" * 5000, "Exceeds the limit"),
        ("{", "Expecting"),
        (b"\xff\xfe\xfa", "decode"),
    ],
)
def test_what_is_too_much_or_no_json_is_a_value_error(text: str | bytes, told: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=told):
            read_json(text)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def test_what_is_sound_is_read() -> None:
    assert read_json(b'{"a": [1, 2.5, null, "x"]}') == {"a": [1, 2.5, None, "x"]}

"""JSON of files that somebody else may have written: bounded before anything is built from it."""

import json
from typing import Any

MOST_VALUES = 2**21
"""About 200 MB in Python. The scores of a million pictures have fewer."""


def read_json(data: bytes | str, *, most_values: int = MOST_VALUES) -> Any:
    """What the text stands for. Raises `ValueError` for what is no JSON, has too many values, or is nested too deep."""
    raw = data.encode() if isinstance(data, str) else data
    if sum(raw.count(mark) for mark in (b",", b"[", b"{")) > most_values:
        raise ValueError(f"it holds more than {most_values} values")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deep") from None

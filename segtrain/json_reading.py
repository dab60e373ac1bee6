"""JSON that others have written: whatever is in it, parsing ends in a value or in ValueError."""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value that `text` holds.

    Raises ValueError for what is no JSON, bytes that are no text among them, and for what is nested too deeply:
    Python's parser ends that with RecursionError, which nobody expects of a file.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None

"""What a folder of predictions was made with, and which of its tasks are finished.

`prediction.json` is written before the first result, so that nothing made with another network or other settings is
ever mixed with what is there. A task is finished once its part file exists, which is written last of its files.
"""

import json
from collections.abc import Mapping
from typing import Any

from segtrain.errors import ConflictError, UserError
from segtrain.storage import Storage, join

NAME = "prediction.json"
FORMAT_VERSION = 1
PARTS, PART_SUFFIX = "parts", ".part"


def claim(storage: Storage, dest: str, facts: Mapping[str, Any]) -> None:
    """Make `dest` a prediction made with `facts` (plain JSON values), or find that it already is.

    Any number of processes may do so at once. Raises as `check`.
    """
    text = json.dumps({"format_version": FORMAT_VERSION, **facts}, indent=1).encode()
    try:
        storage.write_if_version(join(dest, NAME), text, None)
    except ConflictError:
        check(storage, dest, facts)


def check(storage: Storage, dest: str, facts: Mapping[str, Any]) -> None:
    """Raise UserError where `dest` holds a prediction that differs in one of these facts, and says in which."""
    url = join(dest, NAME)
    try:
        there = json.loads(storage.read_bytes(url))
        version = there["format_version"]
    except FileNotFoundError:
        return
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{url} is not what predicting writes; give another DEST") from None
    if version != FORMAT_VERSION:
        raise UserError(f"{url} has format_version {version}, this segtrain reads {FORMAT_VERSION}; give another DEST")
    # Compared as JSON gives them back, which has no tuples.
    wanted = json.loads(json.dumps(facts))
    differing = [
        f"{name}: {there.get(name)} there, {value} now" for name, value in wanted.items() if there.get(name) != value
    ]
    if differing:
        raise UserError(f"{dest} holds another prediction ({'; '.join(differing)}); give another DEST or delete it")


def part_url(dest: str, task: str) -> str:
    """Where the part file of a task is."""
    return join(dest, PARTS, f"{task}{PART_SUFFIX}")


def finished(storage: Storage, dest: str) -> set[str]:
    """Names of the tasks that are finished."""
    names = storage.list(join(dest, PARTS))
    return {name.removesuffix(PART_SUFFIX) for name in names if name.endswith(PART_SUFFIX)}

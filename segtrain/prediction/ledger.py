"""What a folder of predictions was made with, whose it is, and which of its pictures are finished.

`prediction.json` is written before the first result, so that results of other networks or settings are never mixed.
A task is finished once its part file exists, which is the last of its files. A picture is finished where a part says
so and the picture is still what it was then.
"""

import json
from collections.abc import Mapping
from typing import Any

from segtrain.errors import ConflictError, UserError, shown
from segtrain.runs.ownership import holds_folder, take_folder
from segtrain.storage.files import Storage, join
from segtrain.storage.json_text import read_json

NAME = "prediction.json"
FORMAT_VERSION = 2
PARTS, PART_SUFFIX = "parts", ".part"
OWNER = "prediction.owner"
OLD_FORMAT = 1
"""Its parts do not say what the pictures were; the fingerprint of all of them is kept here instead, under this name:"""
OLD_FINGERPRINT = "pictures"


def claim(storage: Storage, dest: str, facts: Mapping[str, Any]) -> str | None:
    """Make `dest` a prediction made with `facts` (plain JSON values), unless it is one. Raises as `check_prediction`.

    Returns the fingerprint of the pictures that parts of the older format are of; None without such parts.
    """
    url = join(dest, NAME)
    there = check_prediction(storage, dest, facts) or {}
    older = {OLD_FINGERPRINT: str(there[OLD_FINGERPRINT])} if OLD_FINGERPRINT in there else {}
    if there.get("format_version") != FORMAT_VERSION:
        text = json.dumps({"format_version": FORMAT_VERSION, **facts, **older}, indent=1).encode()
        try:
            storage.write_if_version(url, text, storage.read_versioned(url)[1] if there else None)
        except ConflictError:
            check_prediction(storage, dest, facts)
    return older.get(OLD_FINGERPRINT)


def check_prediction(storage: Storage, dest: str, facts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What `dest` was made with; None where it holds no prediction.

    Raises UserError where it holds one that differs in one of `facts`, and says in which.
    """
    url = join(dest, NAME)
    try:
        there = read_json(storage.read_bytes(url))
        version = there["format_version"]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{url} is not what predicting writes; give another DEST") from None
    if not isinstance(there, dict) or version not in (OLD_FORMAT, FORMAT_VERSION):
        raise UserError(
            f"{url} has format_version {shown(version)}, this segtrain reads {OLD_FORMAT} and {FORMAT_VERSION}; "
            f"give another DEST"
        )
    # Compared as JSON gives them back, which has no tuples.
    wanted = json.loads(json.dumps(facts))
    names = [*wanted, *(name for name in there if name not in (*wanted, "format_version", OLD_FINGERPRINT))]
    differing = [
        f"{shown(name)}: {shown(there.get(name))} there, {shown(wanted.get(name))} now"
        for name in names
        if there.get(name) != wanted.get(name)
    ]
    if differing:
        raise UserError(f"{dest} holds another prediction ({'; '.join(differing)}); give another DEST or delete it")
    return there


def own(storage: Storage, dest: str) -> str:
    """Make a folder of predictions the caller's own, whoever had it; returns the token that `check_owner` asks for."""
    return take_folder(join(dest, OWNER), storage)


def check_owner(storage: Storage, dest: str, token: str) -> None:
    """Raise UserError where another process has made `dest` its own since."""
    if not holds_folder(join(dest, OWNER), storage, token):
        raise UserError(
            f"{dest} was taken over by another process, which began later (or was deleted); this one ends, and what it "
            f"has finished counts for the other"
        )


def part_url(dest: str, task: str) -> str:
    """Where the part file of a task is."""
    return join(dest, PARTS, f"{task}{PART_SUFFIX}")


def parts(storage: Storage, dest: str) -> list[str]:
    """Names of the tasks that have a part file, sorted."""
    names = storage.list(join(dest, PARTS))
    return [name.removesuffix(PART_SUFFIX) for name in names if name.endswith(PART_SUFFIX)]

"""What may be the id of a picture, and how ids become file names that stay inside their folder.

An id is the stem of a picture's file, or whatever a data set from somewhere else says it is: nobody may trust it as a
path. New sets get ids of at most `MOST_BYTES`; older ones may have longer ones, or some with a backslash, and are still
read, under file names made for them.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping

from segtrain.errors import UserError, first_fault, shown
from segtrain.storage.files import join

MOST_BYTES = 200
"""Of an id in UTF-8, and of the file name made of it: with a suffix and more it stays below 255."""
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check_id(name: str, *, older: bool = False) -> str | None:
    """Why this cannot be an id, in words that follow "the id"; None where it can.

    With `older`, as in a data set that is there already, it may be longer than `MOST_BYTES` and hold a backslash.
    """
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "is not UTF-8"
    return first_fault(
        (not name, "is empty"),
        (name in (".", ".."), f"is '{name}'"),
        ("/" in name, "has a slash"),
        ("\\" in name and not older, "has a backslash"),
        (has_control(name), "has a control character"),
        (length > MOST_BYTES and not older, f"has {length} bytes, more than {MOST_BYTES}"),
    )


def has_control(text: str) -> bool:
    """Whether there is a control character in it: a line break, a tab, NUL and their like."""
    return CONTROL.search(text) is not None


def file_names(ids: Iterable[str]) -> dict[str, str]:
    """Id -> file name without a suffix, each at most `MOST_BYTES` long; the same for the same set of ids.

    A name is the id itself where that is safe. Ids that differ in case or in Unicode form alone get names that differ
    in more: some file systems take the former for one name. Whatever the ids are, no name leads out of its folder.
    """
    taken: dict[str, str] = {}
    for name in sorted(set(ids)):
        if check_id(name) is None:
            taken.setdefault(_as_file_systems_compare(name), name)
    names = {name: name for name in taken.values()}
    for name in sorted(set(ids) - names.keys()):
        names[name] = _made_name(name, taken)
        taken[_as_file_systems_compare(names[name])] = name
    return names


def _as_file_systems_compare(name: str) -> str:
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def _made_name(name: str, taken: Mapping[str, str]) -> str:
    """A name that begins like the id and ends in a digest of it."""
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
    safe = "".join("_" if one in "/\\" or unicodedata.category(one) in ("Cc", "Cs") else one for one in name)
    for digits in range(8, len(digest) + 1):
        end = f"-{digest[:digits]}"
        made = safe.encode()[: MOST_BYTES - len(end)].decode(errors="ignore") + end
        if _as_file_systems_compare(made) not in taken:
            return made
    raise UserError(f"the id {shown(name)} is made to look like another one; make the data set again")


def check_relative(path: str) -> str | None:
    """Why a path that a foreign file names may lead out of its folder, in words that follow it; None where it stays."""
    leads_out = "\\" in path or has_control(path) or any(part in ("", ".", "..") for part in path.split("/"))
    return first_fault(
        (not path or path.startswith("/") or "://" in path, "is no relative path"),
        (leads_out, "leads out of its folder"),
    )


def join_inside(folder: str, path: str) -> str:
    """The URL of a file that a foreign file names, below `folder`. Raises `UserError` where it would lead out of it."""
    reason = check_relative(path)
    if reason is not None:
        raise UserError(f"'{shown(path)}' {reason}; nothing outside {folder} is read or written for it")
    return join(folder, path)

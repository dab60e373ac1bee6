"""The failures that segtrain tells apart (mistakes of the user, faults of the world), and how foreign text is shown."""

import errno
import os
from collections.abc import Sequence


class UserError(Exception):
    """A mistake that the user can mend: one sentence that names the field, file or key, and the fix.

    Jobs print the message without a traceback and exit with code 2.
    """


class TakenOverError(UserError):
    """Another process has begun to write the same folder, later; the message names the folder, and this one ends."""


class StorageError(OSError):
    """A fault of storage that outlived its retries. The message names the URL and what was tried."""


class NoSpaceError(StorageError):
    """A disk or a quota that is full, or a file that may not grow: another attempt finds no more room."""


class ShortFileError(StorageError):
    """A file that ends before the bytes that were asked for: no other attempt makes it longer."""


class ConflictError(Exception):
    """A file that is no longer the version it was when it was read; the message names the URL."""


class DataError(Exception):
    """Stored bytes that are not what the manifest promises. The message names shard, row group and id."""


class RunError(Exception):
    """A run that lost its workers more often than it may. The message says how to go on."""


def missing_file(url: str) -> FileNotFoundError:
    """The error that names a path or URL where nothing is."""
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url)


SHOWN_CHARACTERS = 200
"""Characters of a foreign text in a message. A mistyped setting may be a whole file."""


def shown(foreign: object) -> str:
    """A foreign text or value for a message of one line: short, with what is no printable character escaped."""
    text = str(foreign)
    return printable(text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}...")


def printable(text: str) -> str:
    """The whole text on one line, without characters that a terminal would act on."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def first_fault(*faults: tuple[bool, str]) -> str | None:
    """The sentence of the first fault that is there, of pairs (whether it is, sentence); None where there is none."""
    return next((sentence for is_there, sentence in faults if is_there), None)


SHOWN_IDS = 5


def some_of(ids: Sequence[str]) -> str:
    """The first few of them, for a message of one line."""
    return ", ".join(ids[:SHOWN_IDS]) + ", ..." * (len(ids) > SHOWN_IDS)


def counted(number: float, one: str, many: str | None = None) -> str:
    """A number with its noun: `1 picture`, `2 pictures`, `2 passes`."""
    return f"{number:.15g} {one if number == 1 else many or one + 's'}"


def gib(count: int) -> str:
    """Bytes for people: `3.62 GiB`, below 1 GiB `512 MiB`."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"

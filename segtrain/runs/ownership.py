"""Who writes a folder that several processes were told to write: the newest driver, and of its own chiefs the newest.

A claim is a word in a file. Nobody waits for it or has to give it back, so a process that was killed stands in nobody's
way; who holds an older one looks before it writes, finds another word there, and ends.
"""

import uuid
from collections.abc import Callable

from segtrain.errors import ConflictError, TakenOverError
from segtrain.runs.run_folder import RunFolder
from segtrain.storage.files import Storage

MOST_CONDITIONAL_BYTES = 96 * 2**20
"""The largest object that goes to a bucket in one request."""


def new_token() -> str:
    """A word that no other process has."""
    return uuid.uuid4().hex


def take_folder(url: str, storage: Storage) -> str:
    """Claim a folder of predictions or scores, whoever had it. `url` is its file with the owner. Returns the token."""
    token = new_token()
    storage.write_bytes(url, token.encode())
    return token


def holds_folder(url: str, storage: Storage, token: str) -> bool:
    """Whether nobody has claimed the folder since `take_folder` returned `token`; False too if it was deleted."""
    return storage.read_if_there(url) == token.encode()


def take_run(folder: str, storage: Storage, check: Callable[[], object] = lambda: None) -> str:
    """Claim a run's folder for a driver that begins now, whoever had it. Returns the driver's token.

    `check` is called right before, and raises where the folder is not to be taken; what others do there in between
    makes it be called again.
    """
    token = new_token()
    # On a condition, although any owner is written over: a plain write could be lost to a chief's that is under way.
    write_while(check, RunFolder(folder).owner, token.encode(), storage)
    return token


class RunClaim:
    """What the driver of a run, or one of its chiefs, knows its claim by."""

    def __init__(self, folder: str, storage: Storage, driver: str) -> None:
        """`driver` is the token that `take_run` returned."""
        self._folder = folder
        self._url = RunFolder(folder).owner
        self._storage = storage
        self._driver = driver.encode()
        self._chief: bytes | None = None
        """What stands in the file once a chief has claimed the folder."""

    def begin_chief(self) -> None:
        """Claim the folder for a chief that begins now. Raises TakenOverError where another driver has it by now."""
        chief = self._driver + b" " + new_token().encode()
        write_while(self.check, self._url, chief, self._storage)
        self._chief = chief

    def check(self) -> None:
        """Raise TakenOverError where the claim stands no more. To be called before anything is written."""
        owner = self._storage.read_bytes(self._url)
        if owner.partition(b" ")[0] != self._driver or self._chief not in (None, owner):
            raise TakenOverError(
                f"{self._folder} is trained by another process by now, which began later; this one ends"
            )


def write_while(owned: Callable[[], object], url: str, data: bytes, storage: Storage) -> None:
    """Write a file over what is there, unless `owned` raises, which it does once another process has the folder.

    The version that is written over is looked up before `owned` is asked, so that a writer that was held up in between
    writes over nothing that its successor has written. What is larger than `MOST_CONDITIONAL_BYTES` goes up in parts,
    which have no condition: of that only `owned` is asked.
    """
    if len(data) > MOST_CONDITIONAL_BYTES:
        owned()
        storage.write_bytes(url, data)
        return
    while True:
        version = version_of(url, storage)
        owned()
        try:
            storage.write_if_version(url, data, version)
            return
        except ConflictError:
            continue


def version_of(url: str, storage: Storage) -> str | None:
    """The version of a small file for `Storage.write_if_version`; None where there is none."""
    try:
        return storage.read_versioned(url)[1]
    except FileNotFoundError:
        return None

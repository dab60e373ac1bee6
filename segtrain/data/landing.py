"""The place that a data set is written to, shared with whoever else writes there: exactly one of them wins.

Writers take no lock, which a kill would leave behind. Each notes the version of the manifest that it starts from, and
its own manifest takes that version's place in one conditional put: of several writers that started from one version,
one wins and the others end. Whatever lands is whole, because of two rules.

1. Names of shards and index end in a token of the version that their writer started from, and no file that the
   manifest of that version names is ever written again. So a file that is not named in a manifest is of use only to
   writers that started from its token's version, all of them with the same bytes in it.
2. Files are deleted only after the version of their token has been replaced, when no such writer can win any more:
   the winner removes what lay there before it won, a loser what it wrote, each but for what the manifest names that is
   there now. A writer that fails before it lands leaves its shards to the others, and to its own next attempt.
"""

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Iterable

import pyarrow as pa

from segtrain.data.manifest import (
    MANIFEST_NAME,
    Manifest,
    read_index,
    read_manifest,
    read_manifest_version,
    write_manifest,
)
from segtrain.errors import ConflictError, DataError, StorageError, UserError
from segtrain.storage import Storage, is_remote, join, local_path

logger = logging.getLogger(__name__)

UNFINISHED = "_prepare-"
FILE_NAMES = re.compile(r"part-\d+-[0-9a-f-]+\.parquet|index-[0-9a-f-]+\.parquet")


class Destination:
    """The folder `url`, as it was when this writer started."""

    def __init__(self, storage: Storage, url: str, folds: int) -> None:
        """Read what is there. Raises `UserError` for a file, a damaged data set, and another number of folds."""
        self.storage, self.url = storage, url
        self.earlier: Manifest | None = None
        self.version: str | None = None
        self.folds_kept: dict[str, int] = {}
        """Fold of each group that is in the earlier data set."""
        if _is_file(storage, url):
            raise UserError(f"{url} is a file; name a folder for the data set")
        if storage.exists(join(url, MANIFEST_NAME)):
            self._read_earlier(folds)
        self.token = _token(self.version)
        self.unfinished = join(url, UNFINISHED + self.token)
        """Folder for what a killed writer has found out and finished, for its next attempt."""

    def _read_earlier(self, folds: int) -> None:
        try:
            self.earlier, self.version = read_manifest_version(self.storage, self.url)
            index = read_index(self.storage, self.url, self.earlier)
        except (UserError, DataError) as error:
            raise UserError(f"{error}; here: delete {self.url} first, or prepare into another folder") from None
        if len(self.earlier.folds) != folds:
            raise UserError(
                f"prepare.folds is {folds} but {self.url} has {len(self.earlier.folds)} folds, which its groups keep; "
                f"set prepare.folds={len(self.earlier.folds)} or prepare into another folder"
            )
        self.folds_kept = dict(zip(index["group"].to_pylist(), index["fold"].to_pylist(), strict=True))

    def land(self, manifest: Manifest) -> None:
        """Let `manifest`, all of whose files are there, take the place of `version`, which it `replaces`.

        Removes what is of no use any more. Raises `UserError` where another writer was first.
        """
        before = self._files()
        try:
            write_manifest(self.storage, self.url, manifest)
        except ConflictError:
            self._leave(_names(manifest))
            raise UserError(
                f"another jobs/prepare.py wrote {self.url} meanwhile; its data set is whole and this one was dropped. "
                "Run the same command again to put this source in its place"
            ) from None
        self._remove(before - _names(manifest))

    def forget(self) -> None:
        """Remove what is kept for the next attempt; shards stay, since another writer may count on them."""
        self._discard(self.unfinished)
        _remove_empty(self.url)

    def _leave(self, written: set[str]) -> None:
        """Remove what a loser has written, but for what the winner wrote as well."""
        try:
            current = read_manifest(self.storage, self.url)
        except UserError as error:
            logger.warning("left the files of this attempt where they are: %s", error)
            return
        self._remove(written - _names(current) | {UNFINISHED + self.token})

    def _files(self) -> set[str]:
        """Everything in the folder that a writer has made, relative to it, but for the manifest and the reports."""
        names = self.storage.list(self.url)
        found = {name for name in names if name.startswith(UNFINISHED) or FILE_NAMES.fullmatch(name)}
        for fold in (name for name in names if name.startswith("fold=")):
            inside = self.storage.list(join(self.url, fold))
            found.update(join(fold, name) for name in inside if FILE_NAMES.fullmatch(name))
        return found

    def _remove(self, paths: Iterable[str]) -> None:
        folders = set()
        for path in sorted(paths):
            self._discard(join(self.url, path))
            folders.add(path.rpartition("/")[0])
        for folder in folders - {""}:
            _remove_empty(join(self.url, folder))

    def _discard(self, url: str) -> None:
        # What stays is only in the way: the next writer removes it.
        try:
            self.storage.delete(url)
        except (StorageError, UserError) as error:
            logger.warning("%s could not be removed and stays for now: %s", url, error)


def _token(version: str | None) -> str:
    """8 hex digits for what starts from this version. Other versions of pyarrow write other bytes for the same rows."""
    return hashlib.sha256(json.dumps([version, pa.__version__]).encode()).hexdigest()[:8]


def _names(manifest: Manifest) -> set[str]:
    return {manifest.index.path, *(shard.path for shard in manifest.shards)}


def _is_file(storage: Storage, url: str) -> bool:
    try:
        storage.size(url)
    except FileNotFoundError:
        return False
    return True


def _remove_empty(url: str) -> None:
    """Remove a local folder that has nothing in it; in object storage there are none."""
    if not is_remote(url):
        with contextlib.suppress(OSError):
            local_path(url).rmdir()

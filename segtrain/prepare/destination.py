"""The place that a data set is written to, shared with whoever else writes there: exactly one of them wins.

Writers take no lock, which a kill would leave behind. Each notes the version of the manifest that it starts from, and
its own manifest takes that version's place in one conditional put: of several writers that started from one version,
one wins and the others end. Whatever lands is whole, because of two rules.

1. Names of shards and index end in a token of the version that their writer started from, and no file that the
   manifest of that version names is ever written again. So a file that no manifest names is of use only to writers
   that started from its token's version, and all of them would write the same bytes into it.
2. Files are deleted only after the version of their token has been replaced, when no such writer can win any more.

   - The winner removes the files that were there before it won, a loser those that it wrote. Both leave the files that
     present manifests name.
   - A writer that fails before it lands leaves its shards to the others, and to its own next attempt.

The manifest that is replaced stays as a copy (`segtrain.dataset.versions`), and with it all files that it names, until
there are more than `keep_versions`. Only files of the version that a writer started from are taken over into its own,
since those of older ones may be about to go.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterable

import pyarrow as pa

from segtrain.dataset.manifest import (
    MANIFEST_NAME,
    Manifest,
    read_index,
    read_manifest,
    read_manifest_version,
    version_name,
    write_manifest,
)
from segtrain.dataset.versions import DATA_FILE, files_of, kept_and_dropped, replaced_versions
from segtrain.errors import ConflictError, DataError, StorageError, UserError
from segtrain.storage.files import Storage, is_remote, join, local_path

logger = logging.getLogger(__name__)

UNFINISHED = "_prepare-"


class Destination:
    """The folder `url`, as it was when this writer started."""

    def __init__(self, storage: Storage, url: str, folds: int, keep_versions: int) -> None:
        """Read what is there.

        Raises `UserError` for a file, a damaged data set, one with pictures that have no mask, and another number of
        folds.
        """
        self.storage, self.url = storage, url
        self.earlier: Manifest | None = None
        self.version: str | None = None
        self.index: pa.Table | None = None
        """The pictures of the earlier data set."""
        self._keep_versions = keep_versions
        with contextlib.suppress(FileNotFoundError):
            storage.size(url)
            raise UserError(f"{url} is a file; name a folder for the data set")
        if storage.exists(join(url, MANIFEST_NAME)):
            self._read_earlier(folds)
        self.token = _token(self.version)
        self.unfinished = join(url, UNFINISHED + self.token)
        """Folder in which a killed writer leaves its facts and its list of finished shards to its next attempt."""

    def _read_earlier(self, folds: int) -> None:
        try:
            self.earlier, self.version = read_manifest_version(self.storage, self.url)
            self.index = read_index(self.storage, self.url, self.earlier)
        except (UserError, DataError) as error:
            raise UserError(f"{error}; here: delete {self.url} first, or prepare into another folder") from None
        if len(self.earlier.folds) != folds:
            raise UserError(
                f"prepare.folds is {folds} but {self.url} has {len(self.earlier.folds)} folds, which its groups keep; "
                f"set prepare.folds={len(self.earlier.folds)} or prepare into another folder"
            )
        if self.earlier.labelled != self.earlier.pictures:
            raise UserError(f"{self.url} has pictures without masks and takes no others; prepare into another folder")

    def land(self, manifest: Manifest) -> Manifest:
        """Let `manifest`, all of whose files are there, take the place of `version`, which it `replaces`.

        Removes files that are of no use any more. Returns the manifest that is there afterwards: the earlier one where
        the new one says the same and nothing is to be removed.

        Raises `UserError` where another writer was first.
        """
        earlier = self.earlier
        is_other = earlier is not None and earlier.fingerprint != manifest.fingerprint
        if earlier is not None and is_other:
            self._refuse_if_written(manifest)
            copy = join(self.url, version_name(earlier.fingerprint))
            self.storage.write_bytes(copy, earlier.model_dump_json().encode())
        versions = replaced_versions(self.storage, self.url)
        kept, dropped = kept_and_dropped(versions, manifest, earlier, self._keep_versions)
        named = files_of([manifest, *(version.manifest for version in kept)])
        before = self._files()
        self._remove_leftovers()
        if earlier is not None and _says_the_same(manifest, earlier) and not dropped:
            self._discard(self.unfinished)
            if before <= named | {UNFINISHED + self.token}:
                self._refuse_if_written(manifest)
                return earlier
        try:
            write_manifest(self.storage, self.url, manifest)
        except ConflictError:
            self._leave(files_of([manifest]), earlier if is_other else None)
            raise self._written() from None
        if earlier is not None and not is_other:
            named |= files_of([earlier])  # of the same pictures: their readers go on until the next writer lands
        for version in dropped:
            # Another manifest's copy may have replaced it.
            self.storage.delete_if_version(join(self.url, version.name), version.mark)
        self._remove(before - named)
        return manifest

    def forget(self) -> None:
        """Remove what is kept for the next attempt; shards stay, since another writer may count on them."""
        self._discard(self.unfinished)
        _remove_empty(self.url)

    def _refuse_if_written(self, manifest: Manifest) -> None:
        if read_manifest_version(self.storage, self.url)[1] != self.version:
            self._leave(files_of([manifest]))
            raise self._written()

    def _written(self) -> UserError:
        return UserError(
            f"another jobs/prepare.py wrote {self.url} meanwhile; its data set is whole and this one was dropped. "
            "Run the same command again to add this source to it"
        )

    def _leave(self, written: set[str], copied: Manifest | None = None) -> None:
        """Remove the files of a writer that lost, except those that the present manifests name."""
        try:
            current = read_manifest(self.storage, self.url)
            versions = [version.manifest for version in replaced_versions(self.storage, self.url)]
        except (UserError, DataError) as error:
            logger.warning("left the files of this attempt where they are: %s", error)
            return
        self._remove(written - files_of([current, *versions]) | {UNFINISHED + self.token})
        if copied is not None and not all(self.storage.exists(join(self.url, path)) for path in files_of([copied])):
            self._discard(join(self.url, version_name(copied.fingerprint)))  # it came after its files had been removed

    def _files(self) -> set[str]:
        """Everything in the folder that a writer has made, relative to it, but for the manifest and the reports."""
        names = self.storage.list(self.url)
        folds = [name for name in names if name.startswith("fold=")]
        inside = [join(fold, name) for fold in folds for name in self.storage.list(join(self.url, fold))]
        return {path for path in [*names, *inside] if path.startswith(UNFINISHED) or DATA_FILE.fullmatch(path)}

    def _remove_leftovers(self) -> None:
        """Remove what killed writers had begun to write."""
        for folder in ("", *(name for name in self.storage.list(self.url) if name.startswith("fold="))):
            self.storage.remove_leftovers(join(self.url, folder))

    def _remove(self, paths: Iterable[str]) -> None:
        ordered = sorted(paths)
        for path in ordered:
            self._discard(join(self.url, path))
        for folder in {path.rpartition("/")[0] for path in ordered} - {""}:
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


def _says_the_same(one: Manifest, other: Manifest) -> bool:
    """Whether two manifests are of the same pictures, from the same kind of source, in the same files."""
    return all(getattr(one, name) == getattr(other, name) for name in ("fingerprint", "source", "shards", "index"))


def _remove_empty(url: str) -> None:
    """Remove a local folder that has nothing in it; in object storage there are none."""
    if not is_remote(url):
        with contextlib.suppress(OSError):
            local_path(url).rmdir()

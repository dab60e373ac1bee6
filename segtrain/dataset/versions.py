"""Versions of a data set that stay readable, for runs that still read them, after another has taken their place.

Before a writer's manifest takes the place of the one that it started from, it puts a copy of that one beside it, as
`manifest-<fingerprint>.json`. All writers that start from one version put the same copy, so none has to take it back.
A reader that wants a version looks at `manifest.json` first, then for the copy.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from segtrain.dataset.manifest import VERSION_NAME, Manifest, parse_manifest, read_manifest
from segtrain.errors import DataError, UserError
from segtrain.storage.files import Storage, join

logger = logging.getLogger(__name__)

DATA_FILE = re.compile(r"(fold=\d+/part-\d+-[0-9a-f-]+|index-[0-9a-f-]+)\.parquet")
"""What `prepare` calls shards and indices: nothing else is removed, whatever a manifest names."""


@dataclass(frozen=True, slots=True)
class Version:
    """A manifest that has been replaced."""

    name: str
    """Of its copy in the data set's folder."""
    manifest: Manifest
    mark: str
    """Of the copy's own version in storage."""


def replaced_versions(storage: Storage, root: str) -> list[Version]:
    """Those whose copies are in the data set at `root`, newest first; one that cannot be read is named in the log."""
    found = []
    for name in filter(VERSION_NAME.fullmatch, storage.list(root)):
        try:
            text, mark = storage.read_versioned(join(root, name))
            found.append(Version(name, parse_manifest(text, join(root, name)), mark))
        except FileNotFoundError:  # pruned meanwhile
            continue
        except (UserError, DataError) as error:
            logger.warning("passed over: %s", error)
    return sorted(found, key=lambda version: _made_at(version.manifest), reverse=True)


def files_of(manifests: Iterable[Manifest]) -> set[str]:
    """Shards and indices that these manifests name, relative to the data set."""
    return {path for one in manifests for path in (one.index.path, *(shard.path for shard in one.shards))}


def kept_and_dropped(
    versions: Sequence[Version], current: Manifest, before: Manifest | None, keep: int
) -> tuple[list[Version], list[Version]]:
    """Which of the replaced versions, newest first, stay and which go; `keep` counts the current one, too.

    `before` is the one that `current` has replaced, and so the newest of them. Another manifest of the current
    fingerprint (the same pictures in other shards) is no other version: it stays as long as the current one does.
    """
    own = [one for one in versions if one.manifest.fingerprint == current.fingerprint]
    others = [one for one in versions if one.manifest.fingerprint != current.fingerprint]
    if before is not None:
        others.sort(key=lambda one: one.manifest.fingerprint != before.fingerprint)
    return own + others[: keep - 1], others[keep - 1 :]


def prune(storage: Storage, root: str) -> list[str]:
    """Remove all versions of a data set but the current one; a line for each.

    Raises `UserError` where there is no data set, `DataError` where its manifest is damaged.
    """
    current = read_manifest(storage, root)
    lines = []
    for version in replaced_versions(storage, root):
        unneeded = set(filter(DATA_FILE.fullmatch, files_of([version.manifest]) - files_of([current])))
        is_current = version.manifest.fingerprint == current.fingerprint
        if is_current and not unneeded:
            continue  # of a `prepare` that is about to replace the current one
        storage.delete_if_version(join(root, version.name), version.mark)
        for path in sorted(unneeded):
            storage.delete(join(root, path))
        what = "earlier files of the current version" if is_current else "version"
        lines.append(f"removed {what} {version_label(version.manifest)}: {len(unneeded)} files")
    return lines or [f"{root} has no other version than {current.fingerprint}"]


def version_label(manifest: Manifest) -> str:
    """A version in a few words."""
    return f"{manifest.fingerprint} of {manifest.created}, {manifest.pictures} pictures"


def _made_at(manifest: Manifest) -> datetime:
    try:
        made = datetime.fromisoformat(manifest.created)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return made if made.tzinfo else made.replace(tzinfo=UTC)

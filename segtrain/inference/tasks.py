"""What there is to predict, cut into tasks: a row group of a data set, or some pictures of a folder. No TensorFlow."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from segtrain.data.image_files import BadPairError
from segtrain.data.manifest import MANIFEST_NAME, read_index, read_manifest
from segtrain.data.pairs import crc32c, read_header
from segtrain.data.reader import RowGroupReader
from segtrain.data.salvage import LostRow
from segtrain.data.shards import Row
from segtrain.data.sources import IMAGE_SUFFIXES, files_by_stem
from segtrain.errors import UserError
from segtrain.storage import Storage, join

TASK_PICTURES = 16
"""Pictures of a folder that make a task: as many as a row group has of 0.5 MB each."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Where a task's rows are in a data set."""

    shard: int
    """Number in the manifest."""
    row_group: int


@dataclass(frozen=True, slots=True)
class Task:
    """Some pictures that are predicted together."""

    name: str
    """The same for the same pictures, whenever and wherever the tasks are made."""
    ids: tuple[str, ...]
    place: RowGroup | tuple[str, ...]
    """All rows of a row group, or the URLs of the files, in the order of `ids`."""


@dataclass(frozen=True)
class Inventory:
    """Everything that is to be predicted."""

    tasks: list[Task]
    fingerprint: str
    """Of the pictures: the data set's, or 16 hex digits over the names of the files."""
    folds: list[int] | None
    """The data set's folds that are predicted; None for a folder."""

    @property
    def pictures(self) -> int:
        return sum(len(task.ids) for task in self.tasks)


def take_inventory(storage: Storage, target: str, folds: Sequence[int] | None, version: str | None = None) -> Inventory:
    """The pictures of a data set (`folds` of it, all where it is None; its newest version or another), or of a folder.

    Raises `UserError` where `target` is neither, for a fold that the data set does not have, and for folds of a folder.
    """
    if storage.exists(join(target, MANIFEST_NAME)):
        return _of_data_set(storage, target, folds, version)
    if folds is not None:
        raise UserError(f"inference.folds is set, but {target} is no data set: it has no {MANIFEST_NAME}; leave it out")
    if not storage.list(target):
        raise UserError(f"{target} is not there or empty; give a data set or a folder of pictures")
    return _of_folder(files_by_stem(storage, target, IMAGE_SUFFIXES))


def _of_data_set(storage: Storage, root: str, folds: Sequence[int] | None, version: str | None) -> Inventory:
    manifest = read_manifest(storage, root, version)
    known = [facts.fold for facts in manifest.folds]
    chosen = known if folds is None else sorted(set(folds))
    for fold in chosen:
        if fold not in known:
            raise UserError(
                f"inference.folds: fold {fold} is not in the data set, which has {', '.join(map(str, known))}"
            )
    index = read_index(storage, root, manifest)
    ids = index["id"].to_pylist()
    places = np.column_stack([index[name].to_numpy() for name in ("shard", "row_group")])
    starts = np.flatnonzero(np.any(np.diff(places, axis=0, prepend=-1) != 0, axis=1)).tolist()
    tasks = []
    for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
        shard, row_group = places[start].tolist()
        if manifest.shards[shard].fold in chosen:
            name = f"shard-{shard:05d}-row-group-{row_group:05d}"
            tasks.append(Task(name, tuple(ids[start:stop]), RowGroup(shard, row_group)))
    return Inventory(tasks, manifest.fingerprint, chosen)


def _of_folder(files: dict[str, str]) -> Inventory:
    ids, urls = tuple(files), tuple(files.values())
    tasks = [
        Task(f"pictures-{start:07d}", ids[start : start + TASK_PICTURES], urls[start : start + TASK_PICTURES])
        for start in range(0, len(ids), TASK_PICTURES)
    ]
    names = "\n".join(url.rpartition("/")[2] for url in urls)
    return Inventory(tasks, hashlib.sha256(names.encode()).hexdigest()[:16], None)


def task_reader(
    storage: Storage, target: str, io: Executor, version: str | None = None
) -> Callable[[Task], list[Row | LostRow]]:
    """A function that reads a task's pictures, in order, with `LostRow` for each that cannot be had.

    `version` is that of the data set that the tasks were made of; the newest where nothing is given.
    `io` reads the files of a folder side by side. Raises as `RowGroupReader.read` and `Storage`.
    """
    if not storage.exists(join(target, MANIFEST_NAME)):
        return lambda task: list(io.map(lambda id, url: _read_file(storage, id, url), task.ids, _urls(task)))
    reader = RowGroupReader(read_manifest(storage, target, version), storage, target)

    def read(task: Task) -> list[Row | LostRow]:
        assert isinstance(task.place, RowGroup)
        rows = reader.read(task.place.shard, task.place.row_group)
        lost = "its bytes in storage are damaged"
        return [row or LostRow(id, lost) for id, row in zip(task.ids, rows, strict=True)]

    return read


def _urls(task: Task) -> Iterable[str]:
    assert isinstance(task.place, tuple)
    return task.place


def _read_file(storage: Storage, id: str, url: str) -> Row | LostRow:
    """A picture that lies in a file of its own, as the row that it would be in a data set."""
    try:
        image = storage.read_bytes(url)
        height, width, orientation = read_header(image)
    except FileNotFoundError:
        return LostRow(id, f"{url} is not there any more")
    except BadPairError as error:
        return LostRow(id, f"{url}: {error}")
    return Row(id, id, height, width, orientation, 0.0, image, crc32c(image), None, None)

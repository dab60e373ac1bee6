"""What there is to predict, cut into tasks, and what a worker is told of them and answers. No TensorFlow.

A task is a row group of a data set, or some pictures of a folder.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from segtrain.dataset.manifest import MANIFEST_NAME, Manifest, read_index, read_manifest
from segtrain.dataset.reader import RowGroupReader
from segtrain.dataset.salvage import LostRow, row_of
from segtrain.dataset.shards import Row
from segtrain.errors import UserError, shown
from segtrain.pictures.image_files import check_header
from segtrain.pictures.pillow_files import BadPairError
from segtrain.prepare.sources import IMAGE_SUFFIXES, files_by_stem
from segtrain.storage.checksums import crc32c
from segtrain.storage.files import Storage, join
from segtrain.storage.ids import check_id, file_names

TASK_PICTURES = 16
"""Pictures of a folder that make a task: as many as a row group has of 0.5 MB each."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A picture that is to be predicted."""

    id: str
    mark: str
    """Of a file its size and times, or its ETag; of a row in a data set the checksum of its shard and its row group.
    The same mark means the same content."""
    file: str
    """Name of its outputs, without a suffix: safe for any file system, and no other picture's."""
    url: str = ""
    """Of its file; "" in a data set."""


@dataclass(frozen=True, slots=True)
class Task:
    """Some pictures that are predicted together."""

    name: str
    """The same for the same pictures with the same marks, and for no others."""
    subjects: tuple[Subject, ...]
    place: tuple[int, int] | None = None
    """Of a data set: (shard's number in the manifest, row group within it), whose rows the pictures are."""

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(subject.id for subject in self.subjects)


@dataclass(frozen=True)
class Inventory:
    """Everything that is to be predicted."""

    subjects: dict[str, Subject]
    """By id."""
    folds: list[int] | None
    """The data set's folds that are predicted; None for a folder."""
    manifest: Manifest | None = None
    """The data set's; None for a folder."""
    row_groups: Sequence[Task] = ()
    """The data set's tasks."""

    def tasks(self, finished: Iterable[str] = ()) -> list[Task]:
        """What is to do for all pictures but those with these ids: of a data set, all of a row group."""
        done = set(finished)
        if self.manifest is not None:
            return [task for task in self.row_groups if not done.issuperset(task.ids)]
        left = [subject for id, subject in self.subjects.items() if id not in done]
        cut = (tuple(left[start : start + TASK_PICTURES]) for start in range(0, len(left), TASK_PICTURES))
        return [Task(f"pictures-{_digest_of_marks(some)}", some) for some in cut]


@dataclass(frozen=True)
class Done:
    """What came of a task."""

    bytes: int = 0
    """Of the pictures' files."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Id -> reason, of pictures without a mask."""


def take_inventory(storage: Storage, target: str, folds: Sequence[int] | None, version: str | None = None) -> Inventory:
    """The pictures of a data set, or of a folder.

    Of a data set that is all folds or `folds`, of its newest version or of `version`.
    Raises `UserError` where `target` is neither, for a fold that the data set does not have, and for folds of a folder.
    """
    if storage.exists(join(target, MANIFEST_NAME)):
        return _of_data_set(storage, target, folds, version)
    if folds is not None:
        raise UserError(f"inference.folds is set, but {target} is no data set: it has no {MANIFEST_NAME}; leave it out")
    if not storage.list(target):
        if storage.is_file(target):
            raise UserError(f"{target} is a file; give the folder of pictures that it lies in, or a data set")
        raise UserError(f"{target} is not there or empty; give a data set or a folder of pictures")
    return _of_folder(storage, target)


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
    ids: list[str] = index["id"].to_pylist()
    files = file_names(ids)
    rows = zip(index["shard"].to_pylist(), index["row_group"].to_pylist(), ids, strict=True)
    tasks = []
    for (shard, row_group), group in itertools.groupby(rows, key=lambda row: row[:2]):
        if manifest.shards[shard].fold in chosen:
            mark = f"{manifest.shards[shard].sha256[:32]}-{row_group}"
            subjects = tuple(Subject(id, mark, files[id]) for *_, id in group)
            name = f"shard-{manifest.shards[shard].sha256[:16]}-row-group-{row_group:05d}"
            tasks.append(Task(name, subjects, (shard, row_group)))
    return Inventory({one.id: one for task in tasks for one in task.subjects}, chosen, manifest, tasks)


def _of_folder(storage: Storage, folder: str) -> Inventory:
    # Before anything is read: a file that changes later has another mark than the one that is noted for its mask.
    marks = storage.marks(folder)
    urls = files_by_stem(storage, folder, IMAGE_SUFFIXES)
    for id, url in urls.items():
        reason = check_id(id, older=True)
        if reason is not None:
            raise UserError(f"{shown(url)}: the name without its suffix {reason}; rename the file")
    files = file_names(urls)
    return Inventory(
        {id: Subject(id, marks.get(url.rpartition("/")[2], ""), files[id], url) for id, url in urls.items()}, None
    )


def digest_of(data: bytes) -> str:
    """32 hex digits over the bytes of a picture's file, or of anything else."""
    return hashlib.sha256(data).hexdigest()[:32]


def _digest_of_marks(subjects: Iterable[Subject]) -> str:
    return digest_of("\n".join(f"{one.id} {one.mark}" for one in subjects).encode())[:16]


def task_reader(
    storage: Storage, target: str, manifest: Manifest | None, io: Executor
) -> Callable[[Task], list[Row | LostRow]]:
    """A function that reads a task's pictures, in order, with `LostRow` for each that cannot be had.

    `manifest` is the one that the tasks were made from, whatever the data set has become since. `io` reads the files
    of a folder side by side. Raises as `RowGroupReader.read` and `Storage`.
    """
    if manifest is None:
        return lambda task: list(io.map(lambda subject: _read_file(storage, subject.id, subject.url), task.subjects))
    reader = RowGroupReader(manifest, storage, target)

    def read(task: Task) -> list[Row | LostRow]:
        assert task.place is not None
        return [row_of(id, row) for id, row in zip(task.ids, reader.read(*task.place), strict=True)]

    return read


def _read_file(storage: Storage, id: str, url: str) -> Row | LostRow:
    """A picture that lies in a file of its own, as the row that it would be in a data set."""
    try:
        image = storage.read_bytes(url)
        height, width, orientation = check_header(image)
    except FileNotFoundError:
        return LostRow(id, f"{url} is not there any more")
    except BadPairError as error:
        return LostRow(id, f"{url}: {error}")
    return Row(id, id, height, width, orientation, 0.0, image, crc32c(image), None, None)

"""Part files to the file that Kaggle scores: `img,rle_mask`, a row for every id of its sample, in the sample's order.

The parts come in an order of their own. So all run lengths are first put one after another into a local file, and a
table says where those of each row are. Every part is fetched once, and memory holds only the table and a few parts,
whatever the size of the submission.
"""

import contextlib
import csv
import functools
import io
import logging
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from segtrain.errors import NoSpaceError, StorageError, UserError, counted, some_of
from segtrain.prediction.part_files import Part, fetched_ahead, read_part
from segtrain.prepare.sources import IMAGE_SUFFIXES
from segtrain.storage.files import NO_SPACE, Storage, is_remote, local_path

logger = logging.getLogger(__name__)

COLUMNS = ("img", "rle_mask")
ZIP = b"PK\x03\x04"
ENCRYPTED = 1
"""Of a member's flags (APPNOTE, 4.4.4)."""
MOST_TIMES_PACKED = 200
"""A member of a sound archive of CSV unpacks to at most this many times its packed size."""
NOT_CSV = (
    *(ValueError, csv.Error, EOFError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
"""What a file that is neither CSV nor a sound archive of it ends in."""


def write(
    parts: Iterable[str], sample: str, out: str, storage: Storage, *, only: Mapping[str, Collection[str]] | None = None
) -> int:
    """Write the submission to `out` and return how many rows it has, a row for every id of the sample.

    - `parts` are the URLs of part files.
    - `sample` is Kaggle's `sample_submission.csv`, or the ZIP archive in which it comes. An id of it is a picture's
      file name or its stem. Pictures that it does not name are left out.
    - `only` has the ids that are taken from each part. Without it all are taken.

    Meanwhile it takes twice the file's size on disk, in the folder of `out`, or in the folder for temporary files where
    `out` is in object storage.

    Raises, besides what `Storage` raises:

    - `UserError` for a sample without the columns or rows, with ids twice or with ids that have no mask;
    - `UserError` for a picture with masks in two parts;
    - `DataError` for a damaged part;
    - `NoSpaceError` where the disk is full.
    """
    names, rows = _read_sample(storage, sample)
    folder = Path(tempfile.gettempdir()) if is_remote(out) else local_path(out).parent
    with _errors_name(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Files without a name: nothing of them is left whenever this process is killed.
        with tempfile.TemporaryFile(dir=folder) as finished:
            with tempfile.TemporaryFile(dir=folder) as spool:
                table = _Table(names, rows)
                for url, part in fetched_ahead(functools.partial(read_part, storage), parts):
                    table.add(url, part, None if only is None else only[url], spool)
                table.require_all(sample)
                _write_rows(table, spool, finished)
            storage.write_file(out, Path(f"/proc/self/fd/{finished.fileno()}"))
    if table.left_out:
        logger.info("%s: %d predicted pictures are not in %s", out, table.left_out, sample)
    return len(names)


def check_sample(sample: str, ids: Iterable[str], storage: Storage) -> None:
    """Find before a prediction what `write` would say after it, of a sample and the ids of the pictures.

    Raises `UserError` for a sample without the columns or rows, with ids twice or with ids that are not among `ids`.
    """
    names, rows = _read_sample(storage, sample)
    missing = sorted(rows[stem] for stem in rows.keys() - set(map(_stem, ids)))
    if missing:
        raise UserError(
            f"{sample} names {counted(len(missing), 'picture')} of {len(names)} that are not among those to predict "
            f"({some_of([names[row] for row in missing])}); give all of its pictures, or the sample that belongs "
            f"to these"
        )


class _Table:
    """Where in the spool the run lengths of each row are."""

    def __init__(self, names: Sequence[str], rows: dict[str, int]) -> None:
        self.names = names
        self.starts = np.full(len(names), -1, np.int64)
        self.lengths = np.zeros(len(names), np.int64)
        self.left_out = 0
        self._rows = rows
        self._unreadable: set[int] = set()

    def add(self, url: str, part: Part, ids: Collection[str] | None, spool: IO[bytes]) -> None:
        """Put those run lengths of a part that a row wants, and that are of these ids, at the spool's end."""
        for mask in (mask for mask in part.masks if ids is None or mask.id in ids):
            row = self._rows.get(_stem(mask.id))
            if row is None:
                self.left_out += 1
                continue
            if self.starts[row] >= 0:
                raise UserError(
                    f"{url} has a mask of id {mask.id}, of which another part has one too; predict each picture once"
                )
            self.starts[row] = spool.tell()
            self.lengths[row] = spool.write(mask.rle.encode())
        self._unreadable |= {self._rows[stem] for stem in map(_stem, part.unreadable) if stem in self._rows}

    def require_all(self, sample: str) -> None:
        """Raise `UserError` where a row has no mask."""
        missing = np.flatnonzero(self.starts < 0).tolist()
        if missing:
            unread = len(self._unreadable.intersection(missing))
            because = f"; {unread} of them could not be read, see unreadable.csv" if unread else ""
            raise UserError(
                f"{sample}: no mask is predicted for {counted(len(missing), 'id')} of {len(self.names)} "
                f"({some_of([self.names[row] for row in missing])}){because}; predict all of its pictures, or give "
                "the sample that belongs to the predicted ones"
            )


def _write_rows(table: _Table, spool: IO[bytes], out: IO[bytes]) -> None:
    """The header and all rows, in the sample's order, each with a line feed."""
    out.write(",".join(COLUMNS).encode() + b"\n")
    for name, start, length in zip(table.names, table.starts.tolist(), table.lengths.tolist(), strict=True):
        spool.seek(start)
        out.write(b"%b,%b\n" % (_quoted(name), spool.read(length)))
    out.flush()


def _quoted(name: str) -> bytes:
    """The name as a field of a CSV file; as Kaggle knows it, also where a spreadsheet would take it for a formula."""
    if any(mark in name for mark in ',"\r\n'):
        name = '"' + name.replace('"', '""') + '"'
    return name.encode()


def _read_sample(storage: Storage, sample: str) -> tuple[list[str], dict[str, int]]:
    """The ids of the sample, and the row of each stem. Raises `UserError` where two rows mean one picture."""
    names = _names(storage, sample)
    stems = Counter(map(_stem, names))
    twice = [name for name, count in stems.items() if count > 1]
    if twice:
        raise UserError(
            f"{sample} names {counted(len(twice), 'picture')} more than once ({some_of(twice)}); give Kaggle's own file"
        )
    return names, {stem: row for row, stem in enumerate(stems)}


def _names(storage: Storage, sample: str) -> list[str]:
    """The ids of the sample, as they stand there."""
    try:
        text = _unzipped(storage.read_bytes(sample), sample).decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""))
        header = [column.strip() for column in next(reader, [])]
        if not set(COLUMNS) <= set(header):
            raise UserError(
                f"{sample} has the columns {', '.join(header)[:200] or '(none)'}; a sample_submission.csv of Carvana "
                f"has {' and '.join(COLUMNS)}"
            )
        column = header.index(COLUMNS[0])
        names = [row[column].strip() if column < len(row) else "" for row in reader if row]
    except NOT_CSV as error:
        raise UserError(f"{sample} is no CSV file ({error}); give Kaggle's sample_submission.csv") from None
    if not names or not all(names):
        found = "rows without an id" if names else "no rows"
        raise UserError(f"{sample} has {found}; give Kaggle's sample_submission.csv")
    return names


def _unzipped(data: bytes, sample: str) -> bytes:
    """The CSV file itself, taken out of an archive where it is in one."""
    if not data.startswith(ZIP):
        return data
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [name for name in archive.namelist() if name.endswith(".csv") and not name.startswith("__MACOSX/")]
        tables = [archive.getinfo(name) for name in names]
        if len(tables) != 1:
            raise UserError(f"{sample} holds {counted(len(tables), 'CSV file')}; give one with one")
        return _member(archive, tables[0], len(data), sample)


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, size: int, sample: str) -> bytes:
    """What the archive, of `size` bytes, holds under this name; bounded before anything is unpacked."""
    if member.flag_bits & ENCRYPTED:
        raise UserError(f"{sample} is encrypted; unpack it and give the CSV file that is in it")
    if member.file_size > MOST_TIMES_PACKED * min(member.compress_size, size):
        raise UserError(
            f"{sample} says that it unpacks to {member.file_size / 2**20:.0f} MiB, more than {MOST_TIMES_PACKED} times "
            f"its size; unpack it and give the CSV file that is in it"
        )
    try:
        with archive.open(member) as file:
            data = file.read()  # at most the size that it says
    except (NotImplementedError, RuntimeError) as error:
        raise UserError(f"{sample} cannot be unpacked here ({error}); unpack it and give the CSV file") from None
    if len(data) != member.file_size:
        raise UserError(f"{sample} does not hold the {member.file_size} bytes that it says; download it again")
    return data


def _stem(name: str) -> str:
    """The file name without the suffix of a picture; other dots belong to the name."""
    return name[: -len(suffix)] if (suffix := PurePosixPath(name).suffix).lower() in IMAGE_SUFFIXES else name


@contextlib.contextmanager
def _errors_name(folder: Path) -> Iterator[None]:
    """Turn the operating system's errors in a folder for temporary files into ours."""
    try:
        yield
    except (StorageError, FileNotFoundError):
        raise
    except PermissionError:
        raise UserError(f"{folder}: no permission; write the submission into a folder of yours") from None
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{folder} is not a folder; write the submission to another path") from None
    except OSError as error:
        if error.errno in NO_SPACE:
            raise NoSpaceError(
                f"{folder}: {error.strerror}; make room for twice the submission's size, or use another path"
            ) from error
        raise StorageError(f"{folder}: {error.strerror or error}") from error

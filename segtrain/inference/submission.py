"""Part files to the file that Kaggle scores: `img,rle_mask`, a row for every id of its sample, in the sample's order.

The parts come in an order of their own, so the run lengths of each are first put behind one another in one local file,
while the index says where each row's are: every part is fetched once, and no more than an index and a few parts are
held in memory, whatever the size of the submission.
"""

import contextlib
import csv
import io
import itertools
import logging
import tempfile
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from segtrain.data.sources import IMAGE_SUFFIXES
from segtrain.errors import NoSpaceError, StorageError, UserError
from segtrain.inference.parts import index
from segtrain.storage import NO_SPACE, TEMPORARY_SUFFIX, Storage, is_remote, local_path

logger = logging.getLogger(__name__)

COLUMNS = ("img", "rle_mask")
FETCHED_AT_ONCE = 16
"""Parts that are on their way, or wait in memory: 1.6 MB where each holds 20 pictures of 1918x1280."""
SHOWN_IDS = 5
ZIP = b"PK\x03\x04"


def write(parts: Iterable[str], sample: str, out: str, storage: Storage) -> int:
    """Write the submission to `out` and return how many rows it has, a row for every id of the sample.

    `parts` are the URLs of part files, `sample` is Kaggle's `sample_submission.csv`, or the ZIP archive in which it
    comes. An id of it is a picture's file name or its stem. Pictures that it does not name are left out. On disk it
    takes twice the file's size for a while, in the folder of `out`, or in that for temporary files where `out` is in
    object storage.

    Raises `UserError` for a sample without the columns or rows, with ids twice or with ids that have no mask, and for
    a picture with masks in two parts; `DataError` for a damaged part, `NoSpaceError` where the disk is full, and as
    `Storage` does.
    """
    names = _names(storage, sample)
    rows = _rows(names, sample)
    folder = Path(tempfile.gettempdir()) if is_remote(out) else local_path(out).parent
    with _errors_name(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".submission-", suffix=TEMPORARY_SUFFIX) as finished:
            with tempfile.TemporaryFile(dir=folder) as spool:
                table = _Table(names, rows)
                for url, data in _fetched(parts, storage):
                    table.add(url, data, spool)
                table.require_all(sample)
                _write_rows(table, spool, finished)
            storage.write_file(out, Path(finished.name))
    if table.left_out:
        logger.info("%s: %d predicted pictures are not in %s", out, table.left_out, sample)
    return len(names)


class _Table:
    """Where in the spool the run lengths of each row are."""

    def __init__(self, names: Sequence[str], rows: dict[str, int]) -> None:
        self.names = names
        self.starts = np.full(len(names), -1, np.int64)
        self.lengths = np.zeros(len(names), np.int64)
        self.left_out = 0
        self._rows = rows
        self._unreadable: set[int] = set()

    def add(self, url: str, data: bytes, spool: IO[bytes]) -> None:
        """Put those run lengths of a part that a row wants at the spool's end."""
        places, unreadable = index(data, url)
        for place in places:
            row = self._row(place.id)
            if row is None:
                self.left_out += 1
                continue
            if self.starts[row] >= 0:
                raise UserError(
                    f"{url} has a mask of id {place.id}, of which another part has one too; predict each picture once"
                )
            self.starts[row], self.lengths[row] = spool.tell(), place.end - place.start
            spool.write(data[place.start : place.end])
        self._unreadable.update(row for row in map(self._row, unreadable) if row is not None)

    def require_all(self, sample: str) -> None:
        """Raise `UserError` where a row has no mask."""
        missing = np.flatnonzero(self.starts < 0).tolist()
        if not missing:
            return
        unread = len(self._unreadable.intersection(missing))
        because = f"; {unread} of them could not be read, see unreadable.csv" if unread else ""
        raise UserError(
            f"{sample}: no mask is predicted for {_counted(len(missing), 'id')} of {len(self.names)} "
            f"({_some(self.names[row] for row in missing)}){because}; predict all of its pictures, or give the sample "
            "that belongs to the predicted ones"
        )

    def _row(self, picture: str) -> int | None:
        return self._rows.get(_stem(picture))


def _write_rows(table: _Table, spool: IO[bytes], out: IO[bytes]) -> None:
    """The header and all rows, in the sample's order, each with a line feed."""
    out.write(",".join(COLUMNS).encode() + b"\n")
    for name, start, length in zip(table.names, table.starts.tolist(), table.lengths.tolist(), strict=True):
        spool.seek(start)
        out.write(b"%b,%b\n" % (_quoted(name), spool.read(length)))
    out.flush()


def _quoted(name: str) -> bytes:
    """The name as a field of a CSV file."""
    if any(mark in name for mark in ',"\r\n'):
        name = '"' + name.replace('"', '""') + '"'
    return name.encode()


def _fetched(parts: Iterable[str], storage: Storage) -> Iterator[tuple[str, bytes]]:
    """Each part's URL and bytes, in order, a few fetched ahead."""
    remaining = iter(parts)
    with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
        coming: deque[tuple[str, Future[bytes]]] = deque()
        try:
            while True:
                for url in itertools.islice(remaining, FETCHED_AT_ONCE - len(coming)):
                    coming.append((url, pool.submit(storage.read_bytes, url)))
                if not coming:
                    return
                url, data = coming.popleft()
                yield url, data.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


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
    except (UnicodeDecodeError, csv.Error, zipfile.BadZipFile, zlib.error) as error:
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
        tables = [name for name in archive.namelist() if name.endswith(".csv") and not name.startswith("__MACOSX/")]
        if len(tables) != 1:
            raise UserError(f"{sample} holds {_counted(len(tables), 'CSV file')}; give one with one")
        return archive.read(tables[0])


def _rows(names: Sequence[str], sample: str) -> dict[str, int]:
    """Stem -> row. Raises `UserError` where two rows mean one picture."""
    rows = {_stem(name): row for row, name in enumerate(names)}
    if len(rows) < len(names):
        counts = Counter(map(_stem, names))
        twice = [name for name, count in counts.items() if count > 1]
        raise UserError(
            f"{sample} names {_counted(len(twice), 'picture')} more than once ({_some(twice)}); give Kaggle's own file"
        )
    return rows


def _stem(name: str) -> str:
    """The file name without the suffix of a picture; other dots belong to the name."""
    return name[: -len(suffix)] if (suffix := PurePosixPath(name).suffix).lower() in IMAGE_SUFFIXES else name


def _some(ids: Iterable[str]) -> str:
    shown = list(itertools.islice(ids, SHOWN_IDS + 1))
    return ", ".join(shown[:SHOWN_IDS]) + (", ..." if len(shown) > SHOWN_IDS else "")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


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

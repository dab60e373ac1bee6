"""Source `kaggle`: the archives of a competition, downloaded and unpacked into a folder that is then read as `carvana`.

An archive is downloaded to `<name>.part` and gets its name when all of it is there; a picture is unpacked under a
hidden name and gets its own when its checksum has proved right. So whatever has its name is whole, and after a kill
the same command goes on from there, without the network where no archive is missing.
"""

import contextlib
import errno
import fcntl
import logging
import shutil
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from segtrain.config import CarvanaSource, KaggleSource, StorageConfig
from segtrain.errors import StorageError, UserError, first_fault, shown
from segtrain.kaggle.client import KaggleClient, size_of
from segtrain.prepare.sources import require_path
from segtrain.storage.files import is_remote, local_path
from segtrain.storage.ids import has_control

logger = logging.getLogger(__name__)

MIB, GIB = 2**20, 2**30
COMPETITION_NAME = ".kaggle-competition"
LOCK_NAME = ".kaggle-lock"
COPY_BYTES = MIB
UNPACKABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)
"""What `zipfile` and `zlib` raise for archives with damaged bytes."""
ENTRY = b"PK\x01\x02"
"""What an entry of an archive's directory begins with."""
SHOWN_FILES = 20
UNPACKED, UNPACKED_SPARE_BYTES = 200, MIB
"""A file may unpack to at most `UNPACKED` times its bytes in the archive, plus the spare bytes."""
OWN_SUFFIXES = (".zip", ".part", ".kaggle-partial")
"""Of archives, of parts of them, and of what Kaggle's client keeps about a part."""


def fetch(config: KaggleSource, limits: StorageConfig, every_s: float) -> CarvanaSource:
    """Download the archives to `config.path` one by one and unpack all pictures; returns how to read them.

    Logs the progress every `every_s` seconds. `limits` has the timeout of an answer, and the deadline after which a
    stalled download is given up.

    Errors raised:

    - `UserError` for a path that is missing, remote, in use by another download or holds another competition, for a
      disk that is too small, and for wrong keys, rules, competitions or names of files;
    - `StorageError` where Kaggle cannot be reached, or where an archive is damaged, which is then removed.
    """
    archives = _archive_names(config.files)
    path = require_path(config.path)
    if is_remote(path):
        raise UserError("source.path: Kaggle's archives are unpacked into a local folder; give a local path")
    root = local_path(path)
    with _errors_name(root), _alone_in(root):
        _require_competition(root, config.competition)
        missing = {name: file for name, file in archives.items() if not (root / name).exists()}
        if missing:
            _download(config.competition, missing, root, limits, every_s)
        for name in archives:
            _unpack(root / name, root, every_s)
    return CarvanaSource(path=path, images="train_hq" if "train_hq.zip" in archives else "train", masks=config.masks)


def _archive_names(files: Sequence[str]) -> dict[str, str]:
    """Name here -> name at Kaggle, which may have folders before it."""
    for file in files:
        if not file.endswith(".zip"):
            raise UserError(f"source.files: '{file}' is no .zip archive; name archives of the competition")
    archives = {PurePosixPath(file).name: file for file in files}
    if len(archives) < len(files):
        raise UserError("source.files has two archives of one name; keep one of them")
    return archives


@contextlib.contextmanager
def _errors_name(root: Path) -> Iterator[None]:
    """Turn the operating system's errors in `root` into ours."""
    try:
        yield
    except StorageError:
        raise
    except PermissionError as error:
        raise UserError(f"{error.filename or root}: no permission; set source.path to a folder of yours") from None
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"source.path: {root} is not a folder; name another path") from None
    except OSError as error:
        raise StorageError(f"{error.filename or root}: {error.strerror or error}") from error


@contextlib.contextmanager
def _alone_in(root: Path) -> Iterator[None]:
    """Let no second process download into the folder; the kernel ends the lock with this one."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / LOCK_NAME).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"source.path: another process is downloading into {root}; wait until it ends") from None
        yield


def _require_competition(root: Path, competition: str) -> None:
    """Archives of different competitions share names like train.zip, so a folder belongs to one of them."""
    note = root / COMPETITION_NAME
    if not note.exists():
        note.write_text(f"{competition}\n")
    elif (earlier := note.read_text().strip()) != competition:
        raise UserError(f"source.path: {root} holds files of the competition '{earlier}'; name another folder")


def _download(competition: str, files: dict[str, str], root: Path, limits: StorageConfig, every_s: float) -> None:
    client = KaggleClient(competition, limits)
    offered = client.files()
    for file in files.values():
        if file not in offered:
            shown = ", ".join(sorted(offered)[:SHOWN_FILES]) + ", ..." * (len(offered) > SHOWN_FILES)
            raise UserError(f"source.files: the competition '{competition}' has no '{file}'; it has {shown or 'none'}")
    # Pictures hardly shrink in an archive: unpacked they take as much again.
    needed = sum(2 * offered[file] - size_of(root / f"{name}.part") for name, file in files.items())
    _require_space(root, needed, f"{' and '.join(files)} and what is in them")
    for name, file in files.items():
        _download_one(client, file, offered[file], root / name, every_s)


def _download_one(client: KaggleClient, file: str, total: int, archive: Path, every_s: float) -> None:
    """Download a file that should have `total` bytes."""
    part = archive.with_name(f"{archive.name}.part")

    def admit(size: int) -> None:
        """Look again whether there is room, now that Kaggle says how many bytes will come."""
        nonlocal total
        total = size or total
        _require_space(archive.parent, size - size_of(part), archive.name)

    start_s = time.monotonic()
    with _progress(archive.name, lambda: (size_of(part), total), every_s):
        client.download(file, part, admit)
    part.replace(archive)
    logger.info("downloaded %s, %s in %.0f s", archive.name, _size(total), time.monotonic() - start_s)


def _require_space(root: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(root).free
    if needed > free:
        raise UserError(
            f"source.path: {what} need {needed / GIB:.1f} GiB in {root}, where {free / GIB:.1f} GiB are free; "
            "make room, or name a folder on a larger disk"
        )


def _unpack(archive: Path, root: Path, every_s: float) -> None:
    """Unpack what is not there yet, a piece at a time; each file appears whole and with the right checksum."""
    try:
        with zipfile.ZipFile(archive) as opened:
            if any(ENTRY in one.comment + one.extra for one in opened.infolist()):
                raise zipfile.BadZipFile("entries of its directory are hidden in another one")  # by a flipped length
            members = [one for one in opened.infolist() if not one.is_dir() and not _is_litter(one)]
            targets = [(one, _target(archive, one, root)) for one in members]
            _check_sizes(archive, members)
            missing = [
                (one, path) for one, path in targets if not path.exists() or path.stat().st_size != one.file_size
            ]
            _require_space(root, sum(one.file_size for one, _ in missing), f"the files in {archive.name}")
            _unpack_files(opened, missing, every_s)
    except (*DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: an offset before the file's start
            raise
        archive.unlink()
        raise StorageError(
            f"{archive} is damaged ({error}) and was removed; run the same command again to download it anew"
        ) from error


def _is_litter(member: zipfile.ZipInfo) -> bool:
    """Whether a file browser has left it in the archive; files that begin like our own are no litter."""
    name = PurePosixPath(member.filename).name
    return member.filename.startswith("__MACOSX") or name in (".DS_Store", "Thumbs.db")


def _is_ours(path: PurePosixPath) -> bool:
    """Whether a path in the folder is that of an archive, a part of one, or a file by which this job knows the folder.

    Hidden files are refused with them: an unpacked file is hidden until it is whole.
    """
    is_archive = len(path.parts) == 1 and path.name.lower().endswith(OWN_SUFFIXES)
    return is_archive or any(part.startswith(".") for part in path.parts)


def _check_sizes(archive: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Raise `UserError` for an archive that would unpack to far more than it is, and for two files of one name."""
    for one in members:
        if one.file_size > UNPACKED * one.compress_size + UNPACKED_SPARE_BYTES:
            sizes = f"has {one.compress_size} bytes and would unpack to {one.file_size}, over {UNPACKED} times as many"
            raise UserError(f"{archive}: '{shown(one.filename)}' {sizes}; it is not Kaggle's: delete it")
    names = Counter(one.filename.lower() for one in members)
    folders = {str(folder).lower() for one in members for folder in PurePosixPath(one.filename).parents}
    twice = next((name for name, count in names.items() if count > 1), "")
    both = next((name for name in names if name in folders), "")
    fault = first_fault(
        (sum(one.compress_size for one in members) > archive.stat().st_size, "its files lie over one another"),
        (twice != "", f"it holds '{shown(twice)}' twice"),
        (both != "", f"it holds '{shown(both)}' as a file and as a folder"),
    )
    if fault is not None:
        raise zipfile.BadZipFile(fault)


def _target(archive: Path, member: zipfile.ZipInfo, root: Path) -> Path:
    """Where a file of the archive belongs; raises `UserError` for a place outside of `root`."""
    path, name = PurePosixPath(member.filename), shown(member.filename)
    fault = first_fault(
        (
            path.is_absolute() or ".." in path.parts or not path.parts or "\\" in member.filename,
            f"wants to write '{name}', outside of {root}; it is not Kaggle's: delete it",
        ),
        (
            has_control(member.filename) or _is_ours(path),
            f"wants to write '{name}', over what this job keeps in {root} or under a name that no picture has; "
            "it is not Kaggle's: delete it",
        ),
        (
            member.compress_type not in UNPACKABLE,
            f"is packed in a way that Python cannot unpack; unpack it in {root} with another program, "
            "then use source.kind=carvana; if that one cannot either, it is damaged: delete it",
        ),
    )
    if fault is not None:
        raise UserError(f"{archive} {fault}")
    return root / path


def _unpack_files(archive: zipfile.ZipFile, files: Sequence[tuple[zipfile.ZipInfo, Path]], every_s: float) -> None:
    name = Path(str(archive.filename)).name
    start_s, written, total = time.monotonic(), 0, sum(one.file_size for one, _ in files)
    with _progress(f"unpacking {name}", lambda: (written, total), every_s):
        for member, path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            hidden = path.with_name(f".{path.name}.part")
            try:
                with archive.open(member) as source, hidden.open("wb") as target:
                    shutil.copyfileobj(source, target, COPY_BYTES)
                hidden.replace(path)
            finally:
                hidden.unlink(missing_ok=True)
            written += member.file_size
    if files:
        logger.info("unpacked %s, %d files, %s in %.0f s", name, len(files), _size(written), time.monotonic() - start_s)


@contextlib.contextmanager
def _progress(what: str, reached: Callable[[], tuple[int, int]], every_s: float) -> Iterator[None]:
    """Log what is `reached` every `every_s` seconds while the block runs, from a thread, as both jobs block.

    That is the bytes done, and those in all: 0 where nobody knows.
    """
    start_s, start = time.monotonic(), reached()[0]
    end = threading.Event()

    def report() -> None:
        while not end.wait(every_s):
            done, total = reached()
            rate = max(0, done - start) / (time.monotonic() - start_s)
            left = f", {max(0, total - done) / rate:.0f} s left" if total and rate else ""
            of = f" of {_size(total)}" if total else ""
            logger.info("%s: %s%s, %.1f MiB/s%s", what, _size(done), of, rate / MIB, left)

    if start:
        logger.info("%s: going on after %s", what, _size(start))
    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"

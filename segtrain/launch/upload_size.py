"""What `ray job submit --working-dir FOLDER` would send to the cluster, before it is sent.

Ray sends the folder with each job that it does not know yet, uncompressed, less what .gitignore and .rayignore name; a
data set or a virtual environment that lies in it is sent as well.
"""

import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

LIMIT_BYTES = 100 * 2**20
"""Ray's dashboard refuses more."""
WARN_BYTES = 20 * 2**20
LARGEST = 5


@dataclass(frozen=True)
class File:
    """A file that would be sent, and its path in the folder."""

    path: str
    bytes: int


@dataclass(frozen=True)
class Upload:
    """All files that would be sent, the largest first."""

    files: tuple[File, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def measure(folder: str | Path) -> Upload:
    """Walk a folder as Ray does. Raises FileNotFoundError where there is none."""
    from segtrain.cluster.ray_internals import ray_constants, upload_excludes, walk_upload

    root = Path(folder).absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"{folder} is no folder")
    files: list[File] = []

    def add(path: Path) -> None:
        if path.is_file():
            files.append(File(path.relative_to(root).as_posix(), path.stat().st_size))

    quiet = logging.Logger("segtrain.launch.upload_size", logging.ERROR)  # Ray tells of every ignore file it meets
    with_gitignore = os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    excludes = [upload_excludes(root, ray_constants.get_runtime_env_default_excludes())]
    walk_upload(root, excludes, add, include_gitignore=with_gitignore, logger=quiet)
    return Upload(tuple(sorted(files, key=lambda file: (-file.bytes, file.path))))


def describe(folder: str | Path) -> list[str]:
    """A line that tells the size, as in a dry run; above 20 MiB more lines: the largest files and what to do."""
    upload = measure(folder)
    plural = "" if len(upload.files) == 1 else "s"
    lines = [f"upload    {_mib(upload.bytes)} in {len(upload.files)} file{plural}"]
    if upload.bytes < WARN_BYTES:
        return lines
    tops = Counter[str]()
    for file in upload.files:
        top, slash, _ = file.path.partition("/")
        tops[top + slash] += file.bytes
    [(top, count)] = tops.most_common(1)
    refused = f", and Ray refuses more than {_mib(LIMIT_BYTES)}" if upload.bytes > LIMIT_BYTES else ""
    fix = f"{_mib(count)} of it is {top}{refused}; add what a job does not need to .rayignore"
    return [
        *lines,
        *(f"          {_mib(file.bytes)} {file.path}" for file in upload.files[:LARGEST]),
        f"          {fix}",
    ]


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"

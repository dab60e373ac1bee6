"""What `ray job submit --working-dir FOLDER` would send to the cluster, before it is sent.

Ray sends the folder with each job that it does not know yet, uncompressed, less what .gitignore and .rayignore name; a
data set or a virtual environment that lies in it is sent as well.
"""

import logging
import os
from collections import Counter
from pathlib import Path

from segtrain.errors import counted

LIMIT_BYTES = 100 * 2**20
"""Ray's dashboard refuses more."""
WARN_BYTES = 20 * 2**20
LARGEST = 5


def measure(folder: str | Path) -> dict[str, int]:
    """Walk a folder as Ray does: path in it -> bytes of each file that would be sent, the largest first.

    Raises FileNotFoundError where there is no such folder.
    """
    from segtrain.cluster.ray_internals import ray_constants, upload_excludes, walk_upload

    root = Path(folder).absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"{folder} is no folder")
    sizes: dict[str, int] = {}

    def add(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(root).as_posix()] = path.stat().st_size

    quiet = logging.Logger("segtrain.launch.upload_size", logging.ERROR)  # Ray tells of every ignore file it meets
    with_gitignore = os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    excludes = [upload_excludes(root, ray_constants.get_runtime_env_default_excludes())]
    walk_upload(root, excludes, add, include_gitignore=with_gitignore, logger=quiet)
    return dict(sorted(sizes.items(), key=lambda file: (-file[1], file[0])))


def describe(folder: str | Path) -> list[str]:
    """A line that tells the size, as in a dry run; above 20 MiB more lines: the largest files and what to do."""
    sizes = measure(folder)
    total = sum(sizes.values())
    line = f"upload    {_mib(total)} in {counted(len(sizes), 'file')}"
    if total < WARN_BYTES:
        return [line]
    tops = Counter[str]()
    for path, size in sizes.items():
        top, slash, _ = path.partition("/")
        tops[top + slash] += size
    [(top, count)] = tops.most_common(1)
    refused = f", and Ray refuses more than {_mib(LIMIT_BYTES)}" if total > LIMIT_BYTES else ""
    largest = [f"          {_mib(size)} {path}" for path, size in sizes.items()][:LARGEST]
    fix = f"{_mib(count)} of it is {top}{refused}; add what a job does not need to .rayignore"
    return [line, *largest, f"          {fix}"]


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"

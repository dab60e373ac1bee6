"""Row groups from object storage: what goes wrong on the way is mended, and processes on a node share a cache."""

import dataclasses
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from segtrain.dataset.reader import RowGroupReader
from segtrain.dataset.shards import Row
from segtrain.storage.files import Storage, join
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.places import REPOSITORY


@pytest.fixture
def in_s3(tiny, s3_root: str):
    """A copy of the tiny set in object storage."""
    storage = Storage()
    for path in sorted(Path(tiny.root).rglob("*.*")):
        storage.write_file(join(s3_root, path.relative_to(tiny.root).as_posix()), path)
    return dataclasses.replace(tiny, root=s3_root)


def stored_exactly(rows: list[Row]) -> list[Row]:
    """Rows as a shard returns them: `foreground` is float32."""
    return [dataclasses.replace(row, foreground=float(np.float32(row.foreground))) for row in rows]


@pytest.mark.parametrize("part", ["footer", "row group"])
def test_a_bit_flipped_on_the_way_is_downloaded_again(fault_proxy: FaultProxy, in_s3, part: str) -> None:
    reader = RowGroupReader(in_s3.manifest, Storage(), in_s3.root)
    if part == "row group":
        reader.read(0, 1)
    fault_proxy.inject(Fault("flip", match="part-00000"))
    assert reader.read(0, 0) == stored_exactly(in_s3.rows[:3])
    assert fault_proxy.injected["flip"] == 1
    counts = reader.counts()
    assert (counts.downloaded_again, counts.retries, counts.quarantined) == (1, 0, 0)


def test_what_storage_tried_again_since_the_reader_was_made_is_counted(fault_proxy: FaultProxy, in_s3) -> None:
    storage = Storage()
    fault_proxy.inject(Fault("slow_down"))
    RowGroupReader(in_s3.manifest, storage, in_s3.root).read(1, 0)
    later = RowGroupReader(in_s3.manifest, storage, in_s3.root)
    fault_proxy.inject(Fault("truncate_rst", times=2))
    assert later.read(0, 0) == stored_exactly(in_s3.rows[:3])
    assert later.counts().retries == 2
    assert later.counts().downloaded_again == 0


def test_an_object_cut_short_is_quarantined_where_it_ends(in_s3) -> None:
    storage = Storage()
    url = join(in_s3.root, in_s3.manifest.shards[0].path)
    storage.write_bytes(url, storage.read_bytes(url)[:-1])
    reader = RowGroupReader(in_s3.manifest, storage, in_s3.root)
    assert reader.read(0, 0) == [None] * 3
    assert f"id {in_s3.rows[0].id}: the shard's footer" in reader.quarantined[0]
    assert reader.counts().downloads == 0


# Reads the whole data set with 4 threads as soon as it is told to, and says what it took.
READ = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from segtrain.dataset.node_cache import NodeCache
from segtrain.dataset.manifest import read_manifest
from segtrain.dataset.reader import RowGroupReader
from segtrain.storage.files import Storage

root, folder = sys.argv[1:]
storage = Storage()
manifest = read_manifest(storage, root)
reader = RowGroupReader(manifest, storage, root, NodeCache(Path(folder), 2**20))
print("ready", flush=True)
sys.stdin.readline()
places = [(shard, n) for shard, facts in enumerate(manifest.shards) for n in range(len(facts.row_groups))]
with ThreadPoolExecutor(4) as pool:
    read = list(pool.map(lambda place: reader.read(*place), places))
images = [row.image.hex() for rows in read for row in rows]
counts = reader.counts()
print(json.dumps({"images": images, "downloads": counts.downloads, "cache_hits": counts.cache_hits}))
"""


@contextmanager
def readers(count: int, root: str, folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are ready to read; killed at the end of the block if they have not ended."""
    command = [sys.executable, "-c", READ, root, str(folder)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY) for _ in range(count)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def start(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    process.stdin.flush()


def test_two_processes_with_one_cache_download_each_range_once_in_total(in_s3, tmp_path: Path) -> None:
    with readers(2, in_s3.root, tmp_path) as processes:
        for process in processes:
            start(process)
        done = [json.loads(process.communicate(timeout=300)[0]) for process in processes]
    assert [each["images"] for each in done] == [[row.image.hex() for row in in_s3.rows]] * 2
    assert sum(each["downloads"] for each in done) == 3 + 16
    assert sum(each["cache_hits"] for each in done) == 3 + 16


def test_processes_killed_while_they_fill_the_cache_disturb_no_other(in_s3, tmp_path: Path) -> None:
    moments = random.Random(0)
    with readers(3, in_s3.root, tmp_path) as (survivor, *victims):
        for process in (*victims, survivor):
            start(process)
        for victim in victims:
            time.sleep(moments.uniform(0.0, 0.05))
            victim.kill()
        done = json.loads(survivor.communicate(timeout=300)[0])
    assert done["images"] == [row.image.hex() for row in in_s3.rows]
    entries = sorted((tmp_path / "entries").iterdir())
    assert len(entries) == 3 + 16
    for entry in entries:
        _, length, crc32c = entry.name.rpartition("%2F")[2].split("-")
        assert len(entry.read_bytes()) == int(length)
        assert google_crc32c.value(entry.read_bytes()) == int(crc32c, 16)

"""Whether memory stays flat: 30 epochs of a small set through the training and evaluation pipelines.

    make bench-memory
    .venv/bin/python -m tests.bench.memory_growth [--epochs 30] [--only off,disk] [--json FILE]

Each way of caching has a process of its own. Resident memory is read after each epoch, and its highest value within
the epoch, both from Linux's /proc. Beside it stands what malloc has handed out, which tells a leak from an allocator
that keeps freed pages: resident memory that grows while `in use` is flat is the latter, and MALLOC_ARENA_MAX=2 in the
environment shows how much of it is. The aim is at most 3 % after the third epoch.
"""

import argparse
import ctypes
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from tests.bench.measuring import run_module

SETTLED_EPOCHS = 3
GROWTH = 0.03
PAIRS, ROW_GROUPS = 64, 16
MIB = 2**20
SMALL = {"height": 96, "width": 128}
WAYS: dict[str, dict[str, Any]] = {
    "off": {**SMALL, "cache": "off"},
    "disk": {**SMALL, "cache": "disk"},
    "memory": {**SMALL, "cache": "memory"},
    "full": {"height": 1280, "width": 1918, "cache": "off"},
    "crop": {"height": 512, "width": 512, "cache": "off", "fit": "crop"},
}
"""Changes to the data section; `full` and `crop` are at full resolution, cache off."""


# Fields of glibc's `struct mallinfo2`, mallinfo(3).
MALLINFO = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class Memory(NamedTuple):
    """One process after an epoch, in bytes."""

    resident: int
    peak: int
    """Highest resident memory within the epoch."""
    in_use: int
    """What malloc has handed out and not got back."""
    held: int
    """What malloc has from the system, in heaps and mapped blocks; -1 as `in_use` where the C library does not say."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=list(WAYS), help=f"some of {','.join(WAYS)}"
    )
    parser.add_argument("--json", help="file for every reading")
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - set(WAYS):
        parser.error(f"no such way: {', '.join(sorted(unknown))}")
    if arguments.epochs <= SETTLED_EPOCHS:
        parser.error(f"--epochs must be more than {SETTLED_EPOCHS}")
    from tests.bench.pairs import make_pairs

    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    found: dict[str, list[Memory]] = {}
    progress = Console(stderr=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="segtrain-bench-") as folder:
        root = make_pairs(Path(folder), PAIRS, ROW_GROUPS).root
        for way in arguments.only:
            progress.print(f"{way}: {arguments.epochs} epochs")
            readings = run_module("tests.bench.memory_growth", "--child", way, root, folder, arguments.epochs)
            found[way] = [Memory(*reading) for reading in readings]
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(_table(found, arguments.epochs))
    console.print("full and crop: full resolution, cache off; the others 96x128. In use and held: by malloc.")
    if arguments.json:
        content = {way: [reading._asdict() for reading in readings] for way, readings in found.items()}
        Path(arguments.json).write_text(json.dumps(content, indent=1))


def _table(found: Mapping[str, Sequence[Memory]], epochs: int) -> Table:
    title = f"MiB over {epochs} epochs of {PAIRS} training pairs and an evaluation each; growth: since epoch 3"
    table = Table(title=title, title_justify="left")
    shown = sorted({1, SETTLED_EPOCHS, epochs // 3, 2 * epochs // 3, epochs})
    table.add_column("cache")
    for name in (*(f"epoch {epoch}" for epoch in shown), "growth", "peak", "growth", "in use", "growth", "held", ""):
        table.add_column(name, justify="right")
    for way, readings in found.items():
        settled, last = readings[SETTLED_EPOCHS - 1], readings[-1]
        peak = max(reading.peak for reading in readings[SETTLED_EPOCHS:])
        resident_growth, peak_growth = last.resident / settled.resident - 1, peak / settled.peak - 1
        flat = max(resident_growth, peak_growth) <= GROWTH
        table.add_row(
            way,
            *(f"{readings[epoch - 1].resident / MIB:.0f}" for epoch in shown),
            f"{resident_growth:+.1%}",
            f"{peak / MIB:.0f}",
            f"{peak_growth:+.1%}",
            f"{last.in_use / MIB:.0f}",
            f"{(last.in_use - settled.in_use) / MIB:+.1f}",
            f"{last.held / MIB:.0f}",
            "[green]flat[/green]" if flat else "[red]grows[/red]",
        )
    return table


def watch(way: str, root: str, folder: str, epochs: int) -> list[Memory]:
    """Read memory after each of `epochs` epochs, each of training and of evaluation."""
    from segtrain.config import Recipe
    from segtrain.config.batch_split import batch_split
    from segtrain.dataset.data_set import read_data_set
    from segtrain.pipeline.sample_order import sample_order
    from segtrain.pipeline.worker_data import EvaluationData, TrainingData
    from segtrain.runs.status import World
    from segtrain.storage.files import Storage
    from tests.bench.measuring import touch

    data = {"root": root, "node_cache": f"{folder}/cache", **WAYS[way]}
    recipe = Recipe.from_dict({"data": data, "train": {"global_batch_size": 8}, "evaluation": {"batch_size": 8}})
    storage, data_set = Storage(), read_data_set(Storage(), recipe.data)
    split = batch_split(8, sample_order(recipe, data_set.manifest).lanes, 1, 1, None)
    readings = []
    with (
        closing(TrainingData(recipe, data_set, storage, World(), split)) as training,
        closing(EvaluationData(recipe, data_set, storage, World())) as evaluation,
    ):
        steps = training.batches(0, 0)
        for _ in range(epochs):
            _forget_peak()
            for step in islice(steps, training.steps_per_epoch):
                touch(step.replicas[0][:2])
            for batch in evaluation.batches():
                touch(batch.replicas[0][:2])
            readings.append(_memory())
    return readings


def _forget_peak() -> None:
    """Let the kernel's high-water mark of this process begin anew (proc_pid_clear_refs(5))."""
    Path("/proc/self/clear_refs").write_text("5")


def _memory() -> Memory:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    resident, peak = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return Memory(resident, peak, *_malloc())


class _MallInfo(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_size_t) for name in MALLINFO)


def _malloc() -> tuple[int, int]:
    """(in use, held) over all of malloc's arenas and its mapped blocks."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return -1, -1
    library.mallinfo2.restype = _MallInfo
    info = library.mallinfo2()
    return info.uordblks + info.hblkhd, info.arena + info.hblkhd


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(watch(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))))
    else:
        main()

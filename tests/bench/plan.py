"""What planning an epoch costs at scale, what the plan makes workers read, and how well it shuffles.

    .venv/bin/python -m tests.bench.plan        about two minutes, one table

One of 1,024 workers with a lane each and 16 pictures a step, whose row groups of about 100 pictures take 8 MB. Each
figure is the best of three fresh processes that do nothing else, because others may use the machine. A plan is made,
its first batch drawn and all its reads named; "resume" is what the first batch and the first read at the worst of three
random steps take beyond what they take at step 0.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from segtrain.config import DataConfig
from segtrain.dataset.data_set import DataSet
from segtrain.dataset.manifest import (
    INDEX_SCHEMA,
    ByteRange,
    FoldFacts,
    IndexFile,
    Manifest,
    RowGroups,
    Shard,
    read_manifest,
    write_manifest,
)
from segtrain.pipeline.plan import EpochPlan, RowGroupTable
from segtrain.pipeline.sample_order import WINDOW_BYTES
from segtrain.pipeline.selection import training_selection
from segtrain.storage.files import Storage
from tests.bench.measuring import run_module
from tests.support.shuffling import (
    LANES,
    batch_means,
    chi_square,
    distance_from_uniform,
    draw_foreground,
    epoch_order,
    p_value,
    rank_correlation,
    under_true_shuffles,
    variance_of_batches,
)

WORKERS, WORKER, BATCH = 1024, 700, 16 * 1024
ROWS, ROW_BYTES = 100, 80_000  # rows of a row group on average, and stored bytes of a row
ROW_GROUPS, MANY_ROW_GROUPS = 100_000, 10_000_000
ROW_GROUPS_PER_SHARD = 8
TURNS, RESUMES = 3, 3
SEEDS, EPOCHS, CARS = 12, 20, 200
Figures = dict[str, float]


def even_rows(row_groups: int) -> NDArray[np.int64]:
    return np.full(row_groups, ROWS, np.int64)


def varied_rows(row_groups: int) -> NDArray[np.int64]:
    """80 to 120 rows a row group, and 100 of them on average."""
    rows = np.random.default_rng(0).integers(80, 120, row_groups, endpoint=True)
    excess = int(rows.sum()) - row_groups * ROWS
    rows[np.flatnonzero(rows != ROWS)[: abs(excess)]] -= np.sign(excess)
    return rows


def table_of(rows: NDArray[np.int64]) -> RowGroupTable:
    return RowGroupTable(rows=rows, bytes=rows * ROW_BYTES)


def plan_of(table: RowGroupTable) -> EpochPlan:
    return EpochPlan("0123456789abcdef", 0, 0, table, BATCH, WORKERS, WINDOW_BYTES)


def write_large_manifest(root: str, rows: NDArray[np.int64]) -> None:
    """A manifest of these row groups in folds 1 to 4, and one more shard in fold 0. Nothing else is there."""
    of_shards = [rows[:1], *np.split(rows, range(ROW_GROUPS_PER_SHARD, rows.size, ROW_GROUPS_PER_SHARD))]
    folds = [0, *(1 + number % 4 for number in range(len(of_shards) - 1))]
    shards = [_shard(number, fold, part) for number, (fold, part) in enumerate(zip(folds, of_shards, strict=True))]
    pictures = sum(shard.rows for shard in shards)
    manifest = Manifest(
        fingerprint="0123456789abcdef",
        created="2025-01-01T00:00:00+00:00",
        source="folder",
        pictures=pictures,
        groups=pictures // 16,
        labelled=pictures,
        mean_foreground=0.2,
        min_height=1280,
        max_height=1280,
        min_width=1918,
        max_width=1918,
        row_schema="as text",
        folds=[FoldFacts(fold=fold, pictures=pictures // 5, groups=1, foreground=0.2) for fold in range(5)],
        shards=shards,
        index=IndexFile(path="index-0123456789abcdef.parquet", bytes=1, crc32c=0),
    )
    write_manifest(Storage(), root, manifest)


def _shard(number: int, fold: int, rows: NDArray[np.int64]) -> Shard:
    lengths = rows * ROW_BYTES
    random = np.random.default_rng(number)
    return Shard(
        path=f"fold={fold}/part-{number:05d}-{random.bytes(4).hex()}.parquet",
        fold=fold,
        bytes=int(lengths.sum()) + 20_000,
        rows=int(rows.sum()),
        sha256=random.bytes(32).hex(),
        footer=ByteRange(offset=int(lengths.sum()), length=20_000, crc32c=int(random.integers(2**32))),
        row_groups=RowGroups(
            offset=(np.cumsum(lengths) - lengths).tolist(),
            length=lengths.tolist(),
            crc32c=random.integers(2**32, size=rows.size).tolist(),
            rows=rows.tolist(),
        ),
    )


def measure_epoch(root: str) -> Figures:
    """From the manifest file to a worker's plan for an epoch."""
    began = time.perf_counter()
    manifest = read_manifest(Storage(), root)
    opened = time.perf_counter()
    data_set = DataSet(root, manifest, INDEX_SCHEMA.empty_table())  # which is not read where all rows are labelled
    table = training_selection(DataConfig(root=root), 0, data_set).table
    selected = time.perf_counter()
    figures = measure_plan(table)
    whole = selected - began + figures["plan"]
    return {**figures, "opened": opened - began, "selected": selected - opened, "whole": whole}


def measure_plan(table: RowGroupTable) -> Figures:
    """A worker's plan for an epoch: made, first batch drawn, all reads named; then all batches, and resuming."""
    began, processor = time.perf_counter(), time.process_time()
    plan = plan_of(table)
    made = time.perf_counter()
    plan.worker_batch(0, WORKER, WORKERS)
    reads = list(plan.reads(0, WORKER, WORKERS))
    planned, processor = time.perf_counter(), time.process_time() - processor
    for step in range(plan.steps):
        plan.worker_batch(step, WORKER, WORKERS)
    drawn = time.perf_counter()
    peak = peak_bytes()
    steps = np.random.default_rng(0).integers(1, plan.steps, RESUMES).tolist()
    at_start, *resumed = (_take_up(table, step) for step in (0, *steps))
    return {
        "samples": plan.samples,
        "reads": len(reads),
        "made": made - began,
        "plan": planned - began,
        "processor": processor,
        "batch": (drawn - planned) / plan.steps,
        "batches": drawn - planned,
        "resume": max(resumed) - at_start,
        "peak": peak,
    }


def _take_up(table: RowGroupTable, step: int) -> float:
    plan = plan_of(table)
    began = time.perf_counter()
    plan.worker_batch(step, WORKER, WORKERS)
    plan.outstanding(step, WORKER, WORKERS)
    next(plan.reads(step, WORKER, WORKERS))
    return time.perf_counter() - began


def peak_bytes() -> int:
    """Most memory that this program has held; `ru_maxrss` would count the process that started it too."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def amplification(rows: NDArray[np.int64]) -> float:
    """Bytes of the row groups that all workers read in an epoch, over the bytes of the set, less one."""
    table = table_of(rows)
    plan = plan_of(table)
    groups = [group for worker in range(WORKERS) for _, group in plan.reads(0, worker, WORKERS)]
    return float(table.bytes[groups].sum() / table.bytes.sum() - 1)


def shuffling_rows() -> list[tuple[str, str, str]]:
    """Figures over seeds and epochs of a small set; see tests/pipeline/test_shuffling.py."""
    correlations: list[float] = []
    chi_squares: list[float] = []
    variances: list[float] = []
    for seed in range(SEEDS):
        foreground, table = draw_foreground(CARS, seed)
        orders = [epoch_order(table, epoch, seed) for epoch in range(EPOCHS)]
        correlations += [rank_correlation(order, after) for order, after in pairwise(orders)]
        for statistic, p_values in ((chi_square, chi_squares), (variance_of_batches, variances)):
            under_null = under_true_shuffles(statistic, foreground, seed)
            p_values += [p_value(statistic(foreground[order]), under_null) for order in orders]
    bound = 1.63 / np.sqrt(SEEDS * EPOCHS)
    deviation = f"mean within {3 / np.sqrt((table.rows.size - 1) * len(correlations)):.3f}"
    return [
        (
            f"rank correlation of consecutive epochs, {table.rows.size} row groups: mean, deviation",
            f"{np.mean(correlations):+.4f}, {np.std(correlations):.3f}",
            deviation,
        ),
        *(
            (
                f"{name} against true shuffles, {len(p_values)} epochs: p < 0.05, distance from uniform",
                f"{np.mean(np.array(p_values) < 0.05):.1%}, {distance_from_uniform(np.array(p_values)):.3f}",
                f"5%, < {bound:.3f}",
            )
            for name, p_values in (("chi-square of foreground", chi_squares), ("variance of batches", variances))
        ),
        *(_adverse_row(batch) for batch in (LANES, 2 * LANES, 4 * LANES)),
    ]


def _adverse_row(batch: int) -> tuple[str, str, str]:
    """What windows do where foreground is sorted by place, which `prepare` never writes."""
    foreground, table = draw_foreground(CARS, seed=0)
    foreground = np.sort(foreground)
    random = np.random.default_rng(0)
    true = np.mean([batch_means(random.permutation(foreground), batch).var() for _ in range(200)])
    means = [batch_means(foreground[epoch_order(table, epoch, batch=batch)], batch) for epoch in range(EPOCHS)]
    ratio = np.mean([each.var() for each in means]) / true
    lag = np.mean([np.corrcoef(each[:-1], each[1:])[0, 1] for each in means])
    name = f"rows sorted by foreground, {LANES} lanes, batch {batch}: variance of batches, correlation with the next"
    return name, f"{ratio:.2f}x a true shuffle, {lag:+.2f}", ""


def plan_rows(name: str, figures: list[Figures]) -> list[tuple[str, str, str]]:
    """The lines of the table for one size, from the figures of several processes."""
    best = {key: min(each[key] for each in figures) for key in figures[0]}
    rows = [
        (f"{name}: one worker's plan for an epoch, {best['reads']:,.0f} reads", f"{best['plan']:.2f} s", "<= 3 s"),
        ("  of that the order of row groups, lanes", f"{best['made']:.2f} s", ""),
        ("  processor time of the plan", f"{best['processor']:.2f} s", ""),
        ("  peak memory", f"{best['peak'] / 2**30:.2f} GiB", "<= 1 GiB"),
        ("  resume at a random step", f"{max(0.0, best['resume']):.3f} s more", "<= 0.1 s"),
        ("  a step's batch; all batches", f"{1e6 * best['batch']:.0f} us; {best['batches']:.1f} s", ""),
    ]
    if "opened" in best:
        rows[3:3] = [
            ("  opening manifest.json", f"{best['opened']:.2f} s", ""),
            ("  selection", f"{best['selected']:.2f} s", ""),
            ("  manifest, selection and plan together", f"{best['whole']:.2f} s", "<= 3 s"),
        ]
    return rows


def main() -> None:
    console = Console(width=150)
    table = Table("what", "figure", "target", title=f"{WORKERS:,} workers, lanes; global batch {BATCH:,}")
    with tempfile.TemporaryDirectory(prefix="segtrain-bench-") as root:
        write_large_manifest(root, varied_rows(ROW_GROUPS))
        size = (Path(root) / "manifest.json").stat().st_size
        figures = [run_module("tests.bench.plan", "epoch", root) for _ in range(TURNS)]
    for row in plan_rows("1e7 samples in 1e5 row groups", figures):
        table.add_row(*row)
    table.add_row("  manifest.json", f"{size / 1e6:.1f} MB", "")
    table.add_section()
    for row in plan_rows("1e9 in 1e7", [run_module("tests.bench.plan", "alone") for _ in range(TURNS)]):
        table.add_row(*row)
    table.add_section()
    makers: dict[str, Callable[[int], NDArray[np.int64]]] = {"80 to 120": varied_rows, "100": even_rows}
    for name, make in makers.items():
        extra = amplification(make(ROW_GROUPS))
        table.add_row(f"bytes read beyond the set, 1e5 row groups of {name} rows", f"{extra:.3%}", "< 1%")
    table.add_section()
    for row in shuffling_rows():
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["epoch"]:
        print(json.dumps(measure_epoch(sys.argv[2])))
    elif sys.argv[1:2] == ["alone"]:
        print(json.dumps(measure_plan(table_of(varied_rows(MANY_ROW_GROUPS)))))
    else:
        main()

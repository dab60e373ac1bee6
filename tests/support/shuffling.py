"""How well an order of samples is shuffled: statistics, and what they are for true shuffles of the same samples."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from segtrain.pipeline.plan import EpochPlan, RowGroupTable
from segtrain.prepare.layout import Entry, cut_rows, shuffled

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Statistic = Callable[[Floats], float]
"""Of the foreground of an epoch's samples in order, (n,)."""

VIEWS = 16
BATCH = 32
LANES = 16
ROW_GROUP_BYTES, WINDOW_BYTES = 2_000_000, 4_000_000
BINS = 4
TRUE_SHUFFLES = 999


def draw_foreground(cars: int, seed: int) -> tuple[Floats, RowGroupTable]:
    """Foreground (n,) of the pictures of some cars in stored order, and the row groups that `prepare` cuts of them.

    The views of a car have much the same foreground; pictures take 60 to 150 kB.
    """
    random = np.random.default_rng(seed)
    foreground = (random.beta(5, 15, (cars, 1)) + random.normal(0, 0.02, (cars, VIEWS))).ravel()
    sizes = random.integers(60_000, 150_000, foreground.size).tolist()
    entries = [Entry(str(number), size) for number, size in enumerate(sizes)]
    row_groups = cut_rows(shuffled(entries, seed), ROW_GROUP_BYTES, min_row_groups=128)
    order = [int(entry.id) for row_group in row_groups for entry in row_group]
    table = RowGroupTable(
        rows=np.array([len(row_group) for row_group in row_groups], np.int64),
        bytes=np.array([sum(entry.bytes for entry in row_group) for row_group in row_groups], np.int64),
    )
    return foreground[order], table


def epoch_order(table: RowGroupTable, epoch: int, seed: int = 0, batch: int = BATCH) -> Ints:
    """Stored numbers of the samples, int64 (n,), in the order in which an epoch brings them."""
    plan = EpochPlan("shuffling", seed, epoch, table, batch, LANES, WINDOW_BYTES)
    samples = np.concatenate([plan.worker_batch(step, 0, 1) for step in range(plan.steps)])
    firsts = np.cumsum(table.rows) - table.rows
    order: Ints = firsts[samples[:, 0]] + samples[:, 1]
    return order


def rank_correlation(order: Ints, other: Ints) -> float:
    """Spearman's rho of where the samples of two epochs come."""
    return float(np.corrcoef(np.argsort(order), np.argsort(other))[0, 1])


def rank_correlation_in_row_groups(order: Ints, other: Ints, table: RowGroupTable) -> float:
    """Pearson's correlation of the samples' places among those of their row group, each less the mean place."""
    group = np.repeat(np.arange(table.rows.size), table.rows)
    places = []
    for samples in (order, other):
        # Sorted by row group and, in it, by place in the epoch: a sample's rank less its row group's first one.
        by_group = np.lexsort((np.argsort(samples), group))
        ranks = np.empty(samples.size)
        ranks[by_group] = np.arange(samples.size) - np.repeat(np.cumsum(table.rows) - table.rows, table.rows)
        places.append(ranks - (table.rows[group] - 1) / 2)
    return float(np.corrcoef(places[0], places[1])[0, 1])


def chi_square(foreground: Floats) -> float:
    """Counts of quarters of the foreground in batches, against the same share of each quarter in every batch."""
    edges = np.quantile(foreground, np.arange(1, BINS) / BINS)
    bins = np.searchsorted(edges, foreground, side="right")
    batches = foreground.size // BATCH
    cells = np.repeat(np.arange(batches), BATCH) * BINS + bins[: batches * BATCH]
    counts = np.bincount(cells, minlength=batches * BINS).reshape(batches, BINS)
    expected = BATCH * np.bincount(bins, minlength=BINS) / bins.size
    return float(((counts - expected) ** 2 / expected).sum())


def batch_means(foreground: Floats, batch: int = BATCH) -> Floats:
    """Mean foreground of each whole batch."""
    whole = foreground.size // batch
    means: Floats = foreground[: whole * batch].reshape(whole, batch).mean(axis=1)
    return means


def variance_of_batches(foreground: Floats) -> float:
    """Variance of the batches' mean foreground."""
    return float(batch_means(foreground).var())


def under_true_shuffles(statistic: Statistic, foreground: Floats, seed: int) -> Floats:
    """The statistic of `TRUE_SHUFFLES` permutations of the samples, drawn with NumPy: float64, sorted."""
    random = np.random.default_rng(seed)
    return np.sort([statistic(random.permutation(foreground)) for _ in range(TRUE_SHUFFLES)])


def p_value(value: float, under_null: Floats) -> float:
    """Two-sided: how often a true shuffle is as far out, on either side. Too even is a fault as much as too lumpy."""
    above = np.count_nonzero(under_null >= value) + 1
    below = np.count_nonzero(under_null <= value) + 1
    return min(1.0, 2 * min(above, below) / (under_null.size + 1))


def distance_from_uniform(p_values: Floats) -> float:
    """Kolmogorov and Smirnov's distance; 1.63 / sqrt(n) is exceeded by one in a hundred."""
    ordered, steps = np.sort(p_values), np.arange(len(p_values) + 1) / len(p_values)
    return float(max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()))

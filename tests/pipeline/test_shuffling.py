"""How well the plan shuffles: epochs are unlike each other, and batches are like those of a true shuffle."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest

from segtrain.pipeline.plan import RowGroupTable
from tests.support.shuffling import (
    Floats,
    Ints,
    Statistic,
    chi_square,
    distance_from_uniform,
    draw_foreground,
    epoch_order,
    p_value,
    rank_correlation,
    rank_correlation_in_row_groups,
    under_true_shuffles,
    variance_of_batches,
)

CARS, SEEDS, EPOCHS = 200, 4, 12


class Shuffled(NamedTuple):
    """One data set, and some epochs of it."""

    foreground: Floats
    table: RowGroupTable
    orders: list[Ints]


@pytest.fixture(scope="module")
def data_sets() -> list[Shuffled]:
    drawn = [(seed, *draw_foreground(CARS, seed)) for seed in range(SEEDS)]
    return [
        Shuffled(foreground, table, [epoch_order(table, epoch, seed) for epoch in range(EPOCHS)])
        for seed, foreground, table in drawn
    ]


def test_where_samples_come_in_one_epoch_says_nothing_about_the_next(data_sets: list[Shuffled]) -> None:
    for _, table, orders in data_sets:
        # Samples of a row group come close together, so that row groups are the units drawn: rho of n independent
        # pairs of ranks has the standard deviation 1 / sqrt(n - 1).
        units = table.rows.size - 1
        correlations = [rank_correlation(order, after) for order, after in pairwise(orders)]
        assert max(map(abs, correlations)) < 3 / np.sqrt(units)
        assert abs(np.mean(correlations)) < 3 / np.sqrt(units * len(correlations))


def test_the_order_within_a_row_group_says_nothing_about_the_next_epoch(data_sets: list[Shuffled]) -> None:
    for _, table, orders in data_sets:
        units = int((table.rows - 1).sum())  # one place in each row group follows from the others
        correlations = [rank_correlation_in_row_groups(order, after, table) for order, after in pairwise(orders)]
        assert max(map(abs, correlations)) < 3 / np.sqrt(units)
        assert abs(np.mean(correlations)) < 3 / np.sqrt(units * len(correlations))


@pytest.mark.parametrize("statistic", [chi_square, variance_of_batches])
def test_foreground_in_batches_is_that_of_a_true_shuffle(data_sets: list[Shuffled], statistic: Statistic) -> None:
    p_values = []
    for seed, (foreground, _, orders) in enumerate(data_sets):
        under_null = under_true_shuffles(statistic, foreground, seed)
        p_values += [p_value(statistic(foreground[order]), under_null) for order in orders]
    assert min(p_values) > 0.01 / len(p_values)  # the least of so many
    assert distance_from_uniform(np.array(p_values)) < 1.63 / np.sqrt(len(p_values))


@pytest.mark.parametrize("statistic", [chi_square, variance_of_batches])
def test_the_same_measure_rejects_what_is_no_shuffle(data_sets: list[Shuffled], statistic: Statistic) -> None:
    foreground = np.sort(data_sets[0].foreground)
    dealt = foreground[: foreground.size // 32 * 32].reshape(32, -1).T.ravel()  # to each batch a part of each size
    under_null = under_true_shuffles(statistic, foreground, seed=0)
    for order in (foreground, dealt):
        assert p_value(statistic(order), under_null) == 2 / 1000

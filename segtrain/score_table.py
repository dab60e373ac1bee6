"""The table of counts that all scores of a fold derive from: a row a picture, whoever counted it and in what order.

A row holds numbers of pixels and sums of probabilities, in float64, which is exact for counts below 2^53. The tables of
several workers add up to one, because a picture that a worker has not seen is a row of zeros there. NumPy only.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtrain.metrics import THRESHOLDS, boundary, dice, hard_counts, iou, soft_sums, soft_sums_and_counts

SEEN, PIXELS = 0, 1
"""Columns: 1 for a picture that was scored, and how many pixels it has."""
HARD, BOUNDARY, SOFT, SOFT_TRAINING = slice(2, 5), slice(5, 8), slice(8, 11), slice(11, 14)
"""Columns (overlap, predicted, true): of the masks, of the masks' boundaries and of the probabilities at the picture's
own size, and of the probabilities at training size."""
CURVE = slice(14, 14 + THRESHOLDS.size)
"""Columns: the hard dice at the picture's own size for each of `THRESHOLDS`."""
COLUMNS = CURVE.stop

MEASURES = {
    "dice_hard_original": (dice, HARD),
    "iou_hard_original": (iou, HARD),
    "boundary_dice": (dice, BOUNDARY),
    "dice_soft": (dice, SOFT),
    "dice_soft_training": (dice, SOFT_TRAINING),
}
"""Scores by name: the formula, and the columns that it takes."""


def count_picture(
    truth: NDArray[Any],
    probability: NDArray[np.float32],
    threshold: float,
    *,
    boundary_pixels: int | None = None,
    at_training_size: NDArray[np.float64] | None = None,
    curve: bool = False,
) -> NDArray[np.float64]:
    """A picture's row, float64 (COLUMNS,), from its true mask (H, W) of {0, 1} and the probabilities (H, W).

    What costs extra is counted where it is asked for, and NaN elsewhere:

    - `boundary_pixels`: the width of the boundaries to compare;
    - `at_training_size`: the `soft_sums` there, which have been counted already;
    - `curve`: the dice at all thresholds.
    """
    row = np.full(COLUMNS, np.nan)
    row[SEEN], row[PIXELS] = 1, truth.size
    if boundary_pixels is not None:
        bands = (boundary(mask, boundary_pixels) for mask in (truth, probability >= threshold))
        row[BOUNDARY] = hard_counts(*bands)
    if at_training_size is not None:
        row[SOFT_TRAINING] = at_training_size
    if curve:
        row[SOFT], by_threshold = soft_sums_and_counts(truth, probability)
        row[CURVE] = dice(by_threshold)
    else:
        row[SOFT] = soft_sums(truth, probability)
    if curve and threshold in THRESHOLDS:
        row[HARD] = by_threshold[np.searchsorted(THRESHOLDS, threshold)]
    else:
        row[HARD] = hard_counts(truth, probability >= threshold)
    return row


class Scores:
    """The scores of a fold's pictures, in the fold's own order; pictures that nobody scored are left out."""

    def __init__(self, ids: Sequence[str], table: NDArray[np.float64]) -> None:
        """`ids` and `table` (pictures, COLUMNS) are of the whole fold.

        Raises AssertionError for a picture that was scored twice.
        """
        seen = table[:, SEEN]
        assert (seen <= 1).all(), "a picture was scored twice"
        self.ids = [name for name, once in zip(ids, seen, strict=True) if once]
        self.table = table[seen == 1]

    def per_picture(self, name: str) -> NDArray[np.float64]:
        """One of `MEASURES`, (pictures,)."""
        formula, columns = MEASURES[name]
        return formula(self.table[:, columns])

    def foreground(self) -> NDArray[np.float64]:
        """Share of each picture's pixels that are object in truth, (pictures,)."""
        return np.asarray(self.table[:, HARD.stop - 1] / self.table[:, PIXELS])

    def threshold_curve(self) -> NDArray[np.float64]:
        """Mean over pictures of the hard dice at their own size for each of `THRESHOLDS`, (127,)."""
        return np.asarray(self.table[:, CURVE].mean(axis=0))

    def summary(self, names: Iterable[str]) -> dict[str, float]:
        """Means over pictures of these `MEASURES`, and `dice_hard_original_set`, which is over all pixels at once."""
        means = {name: float(self.per_picture(name).mean()) for name in names}
        return {**means, "dice_hard_original_set": float(dice(self.table[:, HARD].sum(axis=0)))}

"""What workers find out about the pictures of a fold, put together: scores, the worst pictures, unreadable ones.

The number of workers and their order change nothing. NumPy only: the driver, which puts it together, does not import
TensorFlow.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segtrain.metrics import dice
from segtrain.score_table import COLUMNS, HARD, SEEN, Scores

MEANS = ("dice_hard_original", "iou_hard_original", "boundary_dice", "dice_soft")
"""Of the CSV, a row a picture, and of the summary."""


class ScoringTask(NamedTuple):
    """Labelled pictures of one row group."""

    shard: int
    """Number in the manifest."""
    row_group: int
    """Number within the shard."""
    rows: tuple[int, ...]
    """Places within the row group."""
    ids: tuple[str, ...]
    first: int
    """Number in the fold of the first of them; the others follow."""


@dataclass(frozen=True)
class ScoredPictures:
    """What a worker found out about the pictures of a task."""

    threshold: float
    """From this probability on a pixel counts as object."""
    digest: str
    """Of the networks; it is the same in all workers."""
    counts: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    """A picture's number in the fold -> what `count_picture` made of it."""
    panels: dict[int, bytes] = field(default_factory=dict)
    """A picture's number -> PNG, of pictures that were among the worst ones of this worker up to then."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Id -> reason, of pictures that have no scores."""
    bytes: int = 0
    """Of the pictures' files."""


class Worst:
    """The pictures with the lowest hard dice, at most `size` of them. Of equal ones the first in the fold counts."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lowest: list[tuple[float, int]] = []

    def admits(self, number: int, counts: NDArray[np.float64]) -> bool:
        """Whether the picture is among the worst of all that have been shown so far, this one included."""
        key = (float(dice(counts[HARD])), number)
        self._lowest = heapq.nsmallest(self._size, {*self._lowest, key})  # a task that failed comes a second time
        return key in self._lowest

    @property
    def numbers(self) -> list[int]:
        """Of those pictures, the worst first."""
        return [number for _, number in self._lowest]


class FoldScores:
    """The counts of every picture of a fold, in the fold's own order."""

    def __init__(self, ids: Sequence[str], worst: int) -> None:
        """`worst` panels are kept."""
        self._ids = ids
        self._table = np.zeros((len(ids), COLUMNS))
        self._worst = Worst(worst)
        self._panels: dict[int, bytes] = {}
        self.unreadable: dict[str, str] = {}
        """Id -> reason, of pictures without scores."""
        self.threshold = float("nan")
        self.digest = ""

    def add(self, scored: ScoredPictures) -> None:
        """Take in what a worker has found out. Raises AssertionError for a picture that was scored before."""
        self.threshold, self.digest = scored.threshold, scored.digest
        for number, counts in scored.counts.items():
            assert not self._table[number, SEEN], "a picture was scored twice"
            self._table[number] = counts
            self._worst.admits(number, counts)
        self._panels |= scored.panels
        self._panels = {number: self._panels[number] for number in self._worst.numbers if number in self._panels}
        self.unreadable |= scored.unreadable

    @property
    def pictures(self) -> int:
        """Those with scores."""
        return int(self._table[:, SEEN].sum())

    def per_picture(self) -> Mapping[str, Sequence[Any]]:
        """The columns of the CSV, over the pictures that have scores."""
        scores = Scores(self._ids, self._table)
        _, predicted, true = scores.table[:, HARD].astype(np.int64).T.tolist()
        measures = {name: scores.per_picture(name).tolist() for name in MEANS}
        return {"id": scores.ids, **measures, "predicted_pixels": predicted, "true_pixels": true}

    def summary(self) -> dict[str, float]:
        """Means over pictures, at their own size; `dice_hard_original_set` is over all pixels at once."""
        means = Scores(self._ids, self._table).summary(MEANS)
        return {"pictures": self.pictures, "threshold": self.threshold, **means}

    def panels(self) -> dict[str, bytes]:
        """Id -> PNG of the worst pictures, the worst first."""
        return {self._ids[number]: self._panels[number] for number in self._worst.numbers}

"""Scores of every picture of a fold: what workers count, added up so that their number and order cannot matter.

NumPy only, so that the process that gathers them need not import TensorFlow.
"""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segtrain.metrics import boundary, dice, hard_counts, iou, soft_sums

COLUMNS = (
    "id",
    "dice_hard_original",
    "iou_hard_original",
    "boundary_dice",
    "dice_soft",
    "predicted_pixels",
    "true_pixels",
)
"""Of the CSV, a row a picture."""


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


class Counts(NamedTuple):
    """What the scores of one picture derive from: overlap, predicted, true, each over the picture at its own size."""

    number: int
    """The picture's number in the fold."""
    hard: tuple[int, int, int]
    """Pixels of the masks."""
    boundary: tuple[int, int, int]
    """Pixels of the masks' boundaries."""
    soft: tuple[float, float, float]
    """Sums of the probabilities."""

    @property
    def dice(self) -> float:
        """Hard dice."""
        return float(dice(np.array(self.hard)))


@dataclass(frozen=True)
class ScoredPictures:
    """What a worker found out about the pictures of a task."""

    threshold: float
    """The one at which a probability counts as object."""
    digest: str
    """That of the networks, which all workers have in common."""
    counts: list[Counts] = field(default_factory=list)
    panels: dict[int, bytes] = field(default_factory=dict)
    """Number -> PNG, of pictures that were among the worst of those that this worker had seen."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Id -> reason, of pictures that have no scores."""
    bytes: int = 0
    """Of the pictures' files."""


def count_pixels(
    number: int, truth: NDArray[Any], probability: NDArray[np.float32], threshold: float, boundary_pixels: int
) -> Counts:
    """Compare a picture's true mask (H, W) of {0, 1} with the probabilities (H, W) that were predicted."""
    predicted = probability >= threshold
    hard = hard_counts(truth, predicted)
    bands = hard_counts(boundary(truth, boundary_pixels), boundary(predicted, boundary_pixels))
    soft = soft_sums(truth, probability)
    return Counts(number, tuple(hard.tolist()), tuple(bands.tolist()), tuple(soft.tolist()))


class Worst:
    """The pictures with the lowest hard dice, at most `size`; of equals the first in the fold."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lowest: list[tuple[float, int]] = []

    def admits(self, counts: Counts) -> bool:
        """Whether the picture is among the worst of those that have come so far, itself included."""
        key = (counts.dice, counts.number)
        if key not in self._lowest:  # a task that failed comes a second time
            bisect.insort(self._lowest, key)
            del self._lowest[self._size :]
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
        self._seen = np.zeros(len(ids), bool)
        self._hard, self._boundary = (np.zeros((len(ids), 3), np.int64) for _ in range(2))
        self._soft = np.zeros((len(ids), 3))
        self._worst = Worst(worst)
        self._panels: dict[int, bytes] = {}
        self.unreadable: dict[str, str] = {}
        """Id -> reason, of pictures without scores."""
        self.threshold = float("nan")
        self.digest = ""

    def add(self, scored: ScoredPictures) -> None:
        """Take in what a worker has found out. Raises AssertionError for a picture that was scored before."""
        self.threshold, self.digest = scored.threshold, scored.digest
        for counts in scored.counts:
            assert not self._seen[counts.number], "a picture was scored twice"
            self._seen[counts.number] = True
            self._hard[counts.number] = counts.hard
            self._boundary[counts.number] = counts.boundary
            self._soft[counts.number] = counts.soft
            self._worst.admits(counts)
        self._panels |= scored.panels
        self._panels = {number: self._panels[number] for number in self._worst.numbers if number in self._panels}
        self.unreadable |= scored.unreadable

    @property
    def pictures(self) -> int:
        """Those with scores."""
        return int(self._seen.sum())

    def per_picture(self) -> Mapping[str, Sequence[Any]]:
        """The `COLUMNS`, over the pictures that have scores."""
        hard = self._hard[self._seen]
        columns = (
            [self._ids[number] for number in np.flatnonzero(self._seen).tolist()],
            dice(hard).tolist(),
            iou(hard).tolist(),
            dice(self._boundary[self._seen]).tolist(),
            dice(self._soft[self._seen]).tolist(),
            hard[:, 1].tolist(),
            hard[:, 2].tolist(),
        )
        return dict(zip(COLUMNS, columns, strict=True))

    def summary(self) -> dict[str, float]:
        """Means over pictures, at their own size; `dice_hard_original_set` is over all pixels at once."""
        columns = self.per_picture()
        names = ("dice_hard_original", "iou_hard_original", "boundary_dice", "dice_soft")
        means = {name: float(np.mean(columns[name])) for name in names}
        together = float(dice(self._hard.sum(axis=0)))
        return {
            "pictures": self.pictures,
            "threshold": self.threshold,
            **means,
            "dice_hard_original_set": together,
        }

    def panels(self) -> dict[str, bytes]:
        """Id -> PNG of the worst pictures, the worst first."""
        return {self._ids[number]: self._panels[number] for number in self._worst.numbers}

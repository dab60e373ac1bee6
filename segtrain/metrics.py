"""Dice and intersection over union, exact: counts in int64, soft sums in float64, divided once at the end.

Each picture gives one row of three numbers: overlap, predicted, true. Rows may be gathered from any number of workers
in any order; `dice` and `iou` of the rows are per picture, of their sum over the whole set. NumPy only.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def hard_counts(truth: NDArray[Any], prediction: NDArray[Any]) -> NDArray[np.int64]:
    """int64 (3,): pixels that are object in both, in the prediction, in the truth. Masks (H, W) of {0, 1} or bool."""
    truth, prediction = truth.astype(bool), prediction.astype(bool)
    counts = [np.count_nonzero(truth & prediction), np.count_nonzero(prediction), np.count_nonzero(truth)]
    return np.array(counts, np.int64)


def soft_sums(truth: NDArray[Any], probability: NDArray[Any]) -> NDArray[np.float64]:
    """float64 (3,): sums of p t, p and t over the pixels of one picture, p in [0, 1] and t in {0, 1}, both (H, W)."""
    overlap = np.sum(probability, dtype=np.float64, where=truth.astype(bool))
    return np.array([overlap, np.sum(probability, dtype=np.float64), np.count_nonzero(truth)], np.float64)


def dice(rows: NDArray[Any]) -> NDArray[np.float64]:
    """(...): 2 overlap / (predicted + true) of rows (..., 3); 1 where both are empty (Kaggle's rule)."""
    overlap, predicted, true = np.moveaxis(np.asarray(rows), -1, 0)
    return _ratio(2 * overlap, predicted + true)


def iou(rows: NDArray[Any]) -> NDArray[np.float64]:
    """(...): overlap / union of rows (..., 3), Jaccard's index; 1 where both are empty."""
    overlap, predicted, true = np.moveaxis(np.asarray(rows), -1, 0)
    return _ratio(overlap, predicted + true - overlap)


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    empty = whole == 0
    return np.where(empty, 1.0, part / np.where(empty, 1, whole))

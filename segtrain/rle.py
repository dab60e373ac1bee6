"""Masks as run lengths, the way Kaggle writes them: row-major, 1-based "start length" pairs, NumPy only."""

import numpy as np
from numpy.typing import NDArray


def encode(mask: NDArray[np.generic]) -> str:
    """Run lengths of the non-zero pixels of `mask` (any shape, read row by row); "" for an empty mask."""
    padded = np.zeros(mask.size + 2, np.int8)
    padded[1:-1] = mask.reshape(-1) != 0
    edges = np.flatnonzero(np.diff(padded))
    starts, ends = edges[::2], edges[1::2]
    return " ".join(map(str, np.column_stack([starts + 1, ends - starts]).reshape(-1).tolist()))


def decode(text: str, height: int, width: int) -> NDArray[np.uint8]:
    """Mask of shape (height, width), uint8 {0, 1}.

    Raises `ValueError` where the text is not pairs of positive integers, where runs overlap or are not in order, and
    where they leave the picture.
    """
    try:
        numbers = np.array(text.split(), np.int64)
    except (ValueError, OverflowError):
        raise ValueError("run lengths are not whole numbers") from None
    if numbers.size % 2:
        raise ValueError(f"run lengths hold {numbers.size} numbers; start and length come in pairs")
    starts, lengths = numbers[::2] - 1, numbers[1::2]
    ends = starts + lengths
    if (lengths <= 0).any() or (starts < 0).any():
        raise ValueError("run lengths hold a start or a length below 1")
    if (starts[1:] < ends[:-1]).any():
        raise ValueError("run lengths overlap or are not in order")
    if ends.size and ends[-1] > height * width:
        raise ValueError(f"run lengths end at pixel {ends[-1]}; the picture has {height * width}")
    edges = np.zeros(height * width + 1, np.int8)
    # Runs that touch ("1 2 3 1") end and start at one place, so the marks are added, not set.
    np.add.at(edges, starts, 1)
    np.add.at(edges, ends, -1)
    return np.cumsum(edges[:-1], dtype=np.int8).astype(np.uint8).reshape(height, width)

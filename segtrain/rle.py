"""Masks as run lengths, the way Kaggle writes them: row-major, 1-based "start length" pairs, NumPy only."""

import numpy as np
from numpy.typing import NDArray

from segtrain.errors import first_fault

LARGEST_NUMBER = 2**62


def encode(mask: NDArray[np.generic]) -> str:
    """Run lengths of the non-zero pixels of `mask` (any shape, read row by row); "" for an empty mask.

    Neighbours are compared eight at a time, as 64-bit words of the mask and of the mask one pixel on. A mask of bool is
    not copied.
    """
    flat = mask.reshape(-1)
    pixels = (flat if flat.dtype == np.bool_ else flat != 0).view(np.uint8)
    last = max(pixels.size - 1, 0) // 8 * 8  # pixels that have a neighbour in whole words; at most 8 come after them
    here, next_on = pixels[:last].view(np.uint64), pixels[1 : last + 1].view(np.uint64)
    changed = np.flatnonzero(here != next_on)
    word, byte = np.nonzero((here[changed] ^ next_on[changed]).view(np.uint8).reshape(-1, 8))
    numbers = np.concatenate(
        [
            np.flatnonzero(pixels[:1]),  # a run that begins with the mask
            8 * changed[word] + byte + 1,
            np.flatnonzero(pixels[last + 1 :] != pixels[last:-1]) + last + 1,
            np.flatnonzero(pixels[-1:]) + pixels.size,  # one that ends with it
        ]
    )
    # Where runs begin and end, by turns, as starts and lengths.
    numbers[1::2] -= numbers[::2]
    numbers[::2] += 1
    return " ".join(map(str, numbers.tolist()))


def decode(text: str, height: int, width: int) -> NDArray[np.uint8]:
    """Mask of shape (height, width), uint8 {0, 1}.

    Raises `ValueError` where the text is not pairs of positive integers, where runs overlap or are not in order, and
    where they leave the picture.
    """
    try:
        numbers = np.array(text.split(), np.int64)
    except (ValueError, OverflowError):
        raise ValueError("run lengths are not whole numbers, or are too large") from None
    lengths = numbers[1::2]
    starts = numbers[::2][: lengths.size] - 1
    ends = starts + lengths
    largest, end = numbers.max(initial=0), ends.max(initial=0)
    fault = first_fault(
        # The sum of two such numbers might not fit into 64 bits.
        (largest >= LARGEST_NUMBER, f"run lengths hold {largest}; the picture has {height * width} pixels"),
        (numbers.size % 2 == 1, f"run lengths hold {numbers.size} numbers; start and length come in pairs"),
        (bool((numbers <= 0).any()), "run lengths hold a start or a length below 1"),
        (bool((starts[1:] < ends[:-1]).any()), "run lengths overlap or are not in order"),
        (end > height * width, f"run lengths end at pixel {end}; the picture has {height * width}"),
    )
    if fault is not None:
        raise ValueError(fault)
    edges = np.zeros(height * width + 1, np.int8)
    # Runs that touch ("1 2 3 1") end and start at one place, so the marks are added, not set.
    np.add.at(edges, starts, 1)
    np.add.at(edges, ends, -1)
    return np.cumsum(edges[:-1], dtype=np.int8).astype(np.uint8).reshape(height, width)

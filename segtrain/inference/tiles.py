"""Cut a picture into tiles that overlap, and blend what a network makes of them; NumPy only.

Tiles are weighted by a Gaussian about their centre, as in nnU-Net (Isensee et al. 2021): a network knows least about a
pixel at the border of what it sees. Results are added up on the host, a row of tiles at a time, so that memory depends
on the tile and on the picture's width, and not on its height.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Forward = Callable[[NDArray[Any]], NDArray[np.float32]]
"""Tiles (N, h, w, C) to their results float32 (N, h, w, K); N is at most the batch size, and smaller at times."""


def positions(length: int, tile: int, overlap: float) -> list[int]:
    """Starts of tiles that cover `length`, evenly spread; each shares at least `overlap` of itself with the one before.

    The rule of nnU-Net's `compute_steps_for_sliding_window`. A tile that is not shorter than `length` starts at 0.
    """
    if tile >= length:
        return [0]
    longest_step = max(1, int(tile * (1.0 - overlap)))
    steps = -(-(length - tile) // longest_step)
    return [round(number * (length - tile) / steps) for number in range(steps + 1)]


def blend(
    picture: NDArray[Any],
    target: NDArray[Any],
    tile: tuple[int, int],
    overlap: float,
    forward: Forward,
    batch_size: int,
    *,
    multiple: int = 1,
) -> None:
    """Write what `forward` makes of `picture` (H, W, C), tile by tile, into `target` (H, W, K).

    - `picture` and `target` may be memory-mapped: a row of tiles is read at a time, and rows are written once, from
      the top.
    - `tile` is (height, width). It shrinks to a smaller picture.
    - `multiple` is the grid of the network: 2**depth pixels if it halves its input `depth` times. The picture is
      mirrored outwards to a whole number of cells, half of the margin on either side, as
      `segtrain.models.layers.PadToMultiple` does, and tiles start on cells. They see the grid that the whole picture
      would give, and only what lies outside of a tile makes a difference.

    Raises ValueError where sizes differ or the tile is no multiple of `multiple`.
    """
    if picture.shape[:2] != target.shape[:2]:
        raise ValueError(f"the picture is {picture.shape[:2]} and the target {target.shape[:2]}")
    if any(size < 1 or size % multiple for size in tile):
        raise ValueError(f"a tile of {tile} is no multiple of {multiple}")
    rows, columns = (
        _lay_out(length, size, overlap, multiple) for length, size in zip(picture.shape[:2], tile, strict=True)
    )
    top = 0
    for strip in _blended_rows(picture, rows, columns, forward, batch_size):
        # The strip's first row is `top` of the padded picture, whose margins are cut off here.
        first, last = max(top, rows.margin), min(top + len(strip), rows.margin + rows.length)
        if first < last:
            inner = strip[first - top : last - top, columns.margin : columns.margin + columns.length]
            target[first - rows.margin : last - rows.margin] = inner
        top += len(strip)


class _Axis(NamedTuple):
    """Tiles along one side of a picture, in pixels of the mirrored picture."""

    length: int
    """Of the picture itself."""
    margin: int
    """Mirrored pixels before the picture's first."""
    tile: int
    starts: list[int]
    shares: list[NDArray[np.float32]]
    """Of each tile (tile,): its Gaussian over the sum of all tiles' there, so that shares add up to 1 in each pixel.
    The weights of a tile are a product of its sides', and tiles form a grid, so shares by side are enough."""

    @property
    def padded(self) -> int:
        return self.starts[-1] + self.tile


def _lay_out(length: int, tile: int, overlap: float, multiple: int) -> _Axis:
    cells = -(-length // multiple)
    tile = min(tile, cells * multiple)
    starts = [multiple * start for start in positions(cells, tile // multiple, overlap)]
    gaussian = _gaussian(tile)
    total = np.zeros(cells * multiple)
    for start in starts:
        total[start : start + tile] += gaussian
    shares = [(gaussian / total[start : start + tile]).astype(np.float32) for start in starts]
    return _Axis(length, (cells * multiple - length) // 2, tile, starts, shares)


def _gaussian(length: int) -> NDArray[np.float64]:
    """How much the pixels along a tile's side count. An eighth of the side is one sigma, so the ends are exp(-8)."""
    distance = np.arange(length) - (length - 1) / 2
    return np.asarray(np.exp(-0.5 * np.square(distance / (length / 8))))


def _blended_rows(
    picture: NDArray[Any], rows: _Axis, columns: _Axis, forward: Forward, batch_size: int
) -> Iterator[NDArray[np.float32]]:
    """All rows of the mirrored picture's result, from the top, in strips (h, padded width, K)."""
    ends = [*rows.starts[1:], rows.padded]
    under_way: NDArray[np.float32] | None = None
    for start, end, share in zip(rows.starts, ends, rows.shares, strict=True):
        strip = _blended_band(picture, _indices(rows, start), columns, forward, batch_size)
        strip *= share[:, None, None]
        if under_way is not None:
            strip[: len(under_way)] += under_way
        # What the next row of tiles does not reach is finished.
        yield strip[: end - start]
        under_way = strip[end - start :]


def _blended_band(
    picture: NDArray[Any], band: NDArray[np.int64], columns: _Axis, forward: Forward, batch_size: int
) -> NDArray[np.float32]:
    """One row of tiles, blended along it: float32 (tile height, padded width, K)."""
    result: NDArray[np.float32] | None = None
    for first in range(0, len(columns.starts), batch_size):
        batch = slice(first, first + batch_size)
        tiles = np.stack([_cut(picture, band, _indices(columns, start)) for start in columns.starts[batch]])
        found = forward(tiles)
        if result is None:
            result = np.zeros((found.shape[1], columns.padded, found.shape[3]), np.float32)
        for values, start, share in zip(found, columns.starts[batch], columns.shares[batch], strict=True):
            result[:, start : start + columns.tile] += values * share[:, None]
    assert result is not None, "there is at least one tile"
    return result


def _indices(axis: _Axis, start: int) -> NDArray[np.int64]:
    """Where in the picture the pixels of the tile at `start` come from, folded back as between two mirrors."""
    index = np.arange(start, start + axis.tile) - axis.margin
    index %= 2 * axis.length
    return np.minimum(index, 2 * axis.length - 1 - index)


def _cut(picture: NDArray[Any], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[Any]:
    top, left = rows.min(), columns.min()
    window = picture[top : rows.max() + 1, left : columns.max() + 1]
    if window.shape[:2] == (rows.size, columns.size):  # nothing is mirrored, which repeats pixels
        return np.asarray(window)
    return np.asarray(window[rows - top][:, columns - left])

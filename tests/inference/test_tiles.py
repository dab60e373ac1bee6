"""Tiles cover a picture, and blending them gives back what a network makes of the whole."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segtrain.inference.tiles import blend, positions
from tests.bench.tiles import in_process

OVERLAPS = st.sampled_from([0.0, 0.25, 0.5, 0.9])


def blended(
    picture: NDArray[Any],
    tile: tuple[int, int],
    overlap: float,
    forward: Any = lambda tiles: tiles.astype(np.float32),
    *,
    batch_size: int = 4,
    multiple: int = 1,
) -> NDArray[np.float32]:
    """`blend` into an array with as many channels as the picture; the identity where no `forward` is given."""
    target = np.full(picture.shape, np.nan, np.float32)
    blend(picture, target, tile, overlap, forward, batch_size, multiple=multiple)
    return target


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_positions_are_those_of_nnunet() -> None:
    assert positions(110, 64, 0.5) == [0, 23, 46]
    assert len(positions(1280, 512, 0.5)) == 4
    assert len(positions(1918, 512, 0.5)) == 7
    assert positions(64, 64, 0.5) == positions(40, 64, 0.5) == [0]


@given(length=st.integers(1, 3000), tile=st.integers(1, 600), overlap=OVERLAPS)
def test_tiles_cover_everything_and_overlap_as_asked(length: int, tile: int, overlap: float) -> None:
    starts = positions(length, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - tile)
    steps = np.diff(starts)
    assert (steps >= 1).all()
    assert (steps <= max(1.0, tile * (1 - overlap))).all()
    assert np.ptp(steps) <= 1 if len(steps) else True


def the_first_tile() -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """A network that says 1 on the first tile and 0 on the second."""
    values = iter([1.0, 0.0])
    return lambda tiles: np.full(tiles.shape, next(values), np.float32)


def test_weights_fall_as_a_gaussian_of_an_eighth_of_each_side() -> None:
    for axis in (0, 1):
        sizes = [8, 8]
        sizes[axis] = 48
        tile = tuple(min(size, 32) for size in sizes)
        found = blended(noise(*sizes, 1), tile, 0.5, the_first_tile(), batch_size=1)
        first, second = (np.exp(-0.5 * ((np.arange(48) - start - 15.5) / 4) ** 2) for start in (0, 16))
        shares = np.where(np.arange(48) < 16, 1.0, np.where(np.arange(48) < 32, first / (first + second), 0.0))
        np.testing.assert_allclose(np.moveaxis(found[..., 0], axis, 0), np.tile(shares[:, None], 8), atol=1e-6)


@settings(max_examples=60)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    tile=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    multiple=st.sampled_from([1, 4, 8]),
    overlap=OVERLAPS,
    batch_size=st.integers(1, 5),
)
def test_a_constant_stays_and_the_identity_gives_the_picture(
    height: int, width: int, tile: tuple[int, int], multiple: int, overlap: float, batch_size: int
) -> None:
    picture = noise(height, width, 2)
    size = tile[0] * multiple, tile[1] * multiple
    shapes = set()

    def forward(tiles: NDArray[Any]) -> NDArray[np.float32]:
        assert tiles.dtype == np.uint8
        assert len(tiles) <= batch_size
        shapes.add(tiles.shape[1:])
        return tiles.astype(np.float32)

    found = blended(picture, size, overlap, forward, batch_size=batch_size, multiple=multiple)
    np.testing.assert_allclose(found, picture, rtol=0, atol=1e-4)
    constant = blended(picture, size, overlap, lambda tiles: np.full(tiles.shape, 0.75, np.float32), multiple=multiple)
    np.testing.assert_allclose(constant, 0.75, rtol=0, atol=1e-6)
    cells = [-(-length // multiple) * multiple for length in (height, width)]
    assert shapes == {(min(size[0], cells[0]), min(size[1], cells[1]), 2)}


def pooled(tiles: NDArray[Any], size: int = 4) -> NDArray[np.float32]:
    """The largest value of each cell in all of its pixels: a network of two poolings that sees no further."""
    count, height, width, channels = tiles.shape
    cells = tiles.reshape(count, height // size, size, width // size, size, channels).max(axis=(2, 4))
    return cells.repeat(size, axis=1).repeat(size, axis=2).astype(np.float32)


@pytest.mark.parametrize(("height", "width"), [(40, 56), (41, 57), (39, 54), (3, 70), (1, 1)])
def test_tiles_see_the_pooling_grid_of_the_whole_picture(height: int, width: int) -> None:
    picture = noise(height, width, 1)
    margins = [(-length % 4 // 2, -length % 4 - -length % 4 // 2) for length in (height, width)]
    whole = pooled(np.pad(picture, [*margins, (0, 0)], mode="symmetric")[None])[0]
    whole = whole[margins[0][0] :, margins[1][0] :][:height, :width]
    found = blended(picture, (16, 12), 0.5, pooled, multiple=4)
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-4)


def blurred(tiles: NDArray[Any], reach: int) -> NDArray[np.float32]:
    """The mean over pixels at most `reach` away, with 0 outside, as a convolution pads."""
    padded = np.pad(tiles.astype(np.float32), [(0, 0), (reach, reach), (reach, reach), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1, 2 * reach + 1), axis=(1, 2))
    return windows.mean(axis=(-1, -2))


def test_whole_and_tiled_agree_away_from_tile_borders() -> None:
    picture, tile, reach = noise(90, 75, 1), (32, 24), 3
    whole = blurred(picture[None], reach)[0]
    found = blended(picture, tile, 0.5, lambda tiles: blurred(tiles, reach))
    away = np.ones((90, 75), bool)
    for axis in (0, 1):
        length = picture.shape[axis]
        for start in positions(length, tile[axis], 0.5):
            for border in {start, start + tile[axis]} - {0, length}:
                near = slice(max(0, border - reach), border + reach)
                away[(near, slice(None)) if axis == 0 else (slice(None), near)] = False
    difference = np.abs(found - whole)[..., 0]
    assert 0.15 < away.mean() < 0.5
    assert difference[away].max() < 1e-3
    # What is wrong at the border of one tile counts little, for it is well inside of another.
    side_by_side = blended(picture, tile, 0.0, lambda tiles: blurred(tiles, reach))
    assert 20 * difference.max() < np.abs(side_by_side - whole).max()


def test_memory_does_not_grow_with_the_height_of_the_picture(tmp_path: Path) -> None:
    def peak(height: int) -> tuple[int, int]:
        """Bytes that NumPy took at most, and bytes of picture and result."""
        picture, target = (
            np.memmap(tmp_path / f"{name}{height}", kind, "w+", shape=(height, 160, channels))
            for name, kind, channels in (("in", np.uint8, 3), ("out", np.float32, 1))
        )
        tracemalloc.start()
        blend(picture, target, (64, 64), 0.25, lambda tiles: tiles[..., :1] + np.float32(1), 2, multiple=16)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert target.min() > 0.99
        return found, picture.nbytes + target.nbytes

    (few, small), (many, large) = peak(301), peak(5003)
    assert few > small / 4  # so NumPy does tell of its memory
    assert many - few < 0.01 * (large - small)


@pytest.mark.parametrize(
    ("target", "tile", "message"),
    [
        ((8, 8, 1), (4, 4), r"the picture is \(8, 9\)"),
        ((8, 9, 1), (4, 6), "no multiple of 4"),
        ((8, 9, 1), (0, 4), "0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(target: tuple[int, ...], tile: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blend(noise(8, 9, 1), np.zeros(target, np.float32), tile, 0.5, lambda tiles: tiles, 1, multiple=4)


@pytest.mark.slow  # 20,000 x 20,000 pixels: 400 tiles, and a result of 1.6 GB on the disk
def test_a_huge_picture_takes_little_more_memory_than_a_large_one() -> None:
    large, huge = (in_process(side, tile=1024) for side in (5000, 20000))
    assert large["right"]
    assert huge["right"]
    assert huge["above"] <= 1.5 * 2**30
    assert huge["above"] <= 4 * large["above"]  # rows are four times as wide, and there are four times as many

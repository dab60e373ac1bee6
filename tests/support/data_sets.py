"""Tiny data sets, written row by row, so that a test decides what lies in which row group."""

import dataclasses
import io
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from segtrain.config import Recipe
from segtrain.dataset import data_set
from segtrain.dataset.manifest import INDEX_SCHEMA, FoldFacts, IndexFile, Manifest, Shard, encode_index, write_manifest
from segtrain.dataset.shards import ROW_SCHEMA, Row, pack_mask, write_shard
from segtrain.storage.files import Storage


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A prepared data set and the rows in it, in stored order."""

    root: str
    manifest: Manifest
    rows: list[Row]

    @property
    def stored(self) -> data_set.DataSet:
        """The set as a worker or a driver reads it."""
        return data_set.read_data_set(Storage(), self.recipe().data)

    def recipe(self, **sections: dict[str, object]) -> Recipe:
        """A recipe on this data set at 24x32, with `sections` over it."""
        data = {"root": self.root, "fold": 0, "height": 24, "width": 32, "lanes": 4, "shuffle_window_bytes": 4096}
        return Recipe.from_dict(sections | {"data": data | sections.get("data", {})})


def encode(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """Pixels as the bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def row_of(image: bytes, mask: np.ndarray | None, *, name: str = "a", group: str = "g", orientation: int = 1) -> Row:
    """A row around an encoded image; the mask (H, W) gives the upright size, 24x32 where there is none."""
    height, width = (24, 32) if mask is None else mask.shape
    packed = None if mask is None else pack_mask(mask)
    return Row(
        id=name,
        group=group,
        height=height,
        width=width,
        orientation=orientation,
        foreground=0.0 if mask is None else float(np.mean(mask)),
        image=image,
        image_crc32c=google_crc32c.value(image),
        mask=packed,
        mask_crc32c=None if packed is None else google_crc32c.value(packed),
    )


def draw_row(number: int, *, group: str, labelled: bool = True) -> Row:
    """A 24x32 picture whose red is its number and whose mask is a rectangle that depends on it; green is the mask."""
    mask = np.zeros((24, 32), np.uint8)
    mask[number % 12 : number % 12 + 8, number % 16 : number % 16 + 10] = 1
    pixels = np.stack([np.full_like(mask, number), mask * 255, np.full_like(mask, 7)], axis=-1)
    return row_of(encode(pixels), mask if labelled else None, name=f"p{number:03d}", group=group)


def write_data_set(root: Path, folds: Sequence[Sequence[Sequence[Row]]]) -> DataSet:
    """A data set with one shard a fold, from the row groups of each."""
    shards = []
    for fold, row_groups in enumerate(folds):
        path = f"fold={fold}/part-00000.parquet"
        (root / path).parent.mkdir(parents=True)
        shards.append(write_shard(root / path, path, fold, row_groups))
    return DataSet(str(root), _write_index(root, folds, shards), [row for f in folds for rows in f for row in rows])


def _write_index(root: Path, folds: Sequence[Sequence[Sequence[Row]]], shards: list[Shard]) -> Manifest:
    places = [
        (row, fold, number, at)
        for fold, row_groups in enumerate(folds)
        for number, rows in enumerate(row_groups)
        for at, row in enumerate(rows)
    ]
    columns = [
        [row.id, row.group, fold, fold, number, at, row.height, row.width, row.foreground, row.mask is not None]
        for row, fold, number, at in places
    ]
    index = encode_index(pa.table([list(column) for column in zip(*columns, strict=True)], schema=INDEX_SCHEMA))
    (root / "index.parquet").write_bytes(index)
    rows = [row for row, *_ in places]
    manifest = Manifest(
        fingerprint="0123456789abcdef",
        created="2025-01-01T00:00:00+00:00",
        source="folder",
        pictures=len(rows),
        groups=len({row.group for row in rows}),
        labelled=sum(row.mask is not None for row in rows),
        mean_foreground=float(np.mean([row.foreground for row in rows])),
        min_height=min(row.height for row in rows),
        max_height=max(row.height for row in rows),
        min_width=min(row.width for row in rows),
        max_width=max(row.width for row in rows),
        row_schema=str(ROW_SCHEMA),
        folds=[
            FoldFacts(fold=fold, pictures=shard.rows, groups=1, foreground=0.2) for fold, shard in enumerate(shards)
        ],
        shards=shards,
        index=IndexFile(path="index.parquet", bytes=len(index), crc32c=google_crc32c.value(index)),
    )
    write_manifest(Storage(), str(root), manifest)
    return manifest


@pytest.fixture(scope="session")
def make_row() -> Callable[..., Row]:
    """`row_of`, for tests that encode their own image."""
    return row_of


@pytest.fixture
def make_data_set(tmp_path: Path) -> Callable[[Sequence[Sequence[Sequence[Row]]]], DataSet]:
    """`write_data_set` into a folder of the test."""
    return lambda folds: write_data_set(tmp_path / "set", folds)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """47 pictures of 24x32 in 3 folds: 9, 20 and 18, in row groups of 3 at most; one group in two pictures."""
    numbers = iter(range(47))
    folds = []
    for count in (9, 20, 18):
        rows = [draw_row(number, group=f"g{number // 2:02d}") for number in islice(numbers, count)]
        folds.append([rows[at : at + 3] for at in range(0, count, 3)])
    return write_data_set(tmp_path_factory.mktemp("tiny"), folds)

"""The pairs that every reader reads, in each reader's own format."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segtrain.config import Recipe, SyntheticSource
from segtrain.dataset.manifest import Manifest
from segtrain.dataset.reader import RowGroupReader
from segtrain.dataset.shards import Row
from segtrain.prepare.prepare_set import prepare
from segtrain.prepare.sources.synthetic import draw_cars
from segtrain.storage.files import Storage

HEIGHT, WIDTH, VIEWS = 1280, 1918, 16
PARQUET_FILES = 16
# A pass of Ray Data over one copy would be its start-up more than its reading.
PARQUET_COPIES = 4


@dataclass(frozen=True)
class Pairs:
    """Drawn cars, 16 views each: those to train on, and one car more as the validation fold that a recipe must have."""

    raw: Path
    """Kaggle's layout: `train/*.jpg` and `train_masks/*_mask.gif`."""
    root: str
    """The same as a data set of segtrain's."""
    rows: list[Row]
    """The training pairs as stored, in memory."""

    def files(self) -> tuple[list[str], list[str]]:
        """Paths of the training pairs' JPEGs and GIFs."""
        images = [str(self.raw / "train" / f"{row.id}.jpg") for row in self.rows]
        masks = [str(self.raw / "train_masks" / f"{row.id}_mask.gif") for row in self.rows]
        return images, masks


def make_pairs(folder: Path, count: int, row_groups: int) -> Pairs:
    """Draw the pairs into `folder/raw`, unless they are there, and prepare them into `folder/shards`."""
    raw, cars = folder / "raw", count // VIEWS + 1
    if not _is_drawn(raw, cars * VIEWS):
        draw_cars(SyntheticSource(cars=cars, views=VIEWS, height=HEIGHT, width=WIDTH), raw, workers=os.cpu_count() or 1)
    manifest = prepare_pairs(raw, str(folder / "shards"), cars, row_groups)
    rows = stored_rows(manifest, str(folder / "shards"))
    assert len(rows) == count, f"{len(rows)} pairs to train on instead of {count}"
    return Pairs(raw, str(folder / "shards"), rows)


def _is_drawn(raw: Path, pictures: int) -> bool:
    runs = raw / "train_masks.csv"  # written last
    return runs.exists() and len(runs.read_text().splitlines()) == pictures + 1


def prepare_pairs(raw: Path, dest: str, cars: int, row_groups: int) -> Manifest:
    """Prepare with one car a fold, so that fold 0, which is not trained on, is one car."""
    source = {"kind": "carvana", "path": str(raw)}
    settings = {"folds": cars, "min_row_groups": row_groups}
    return prepare(Recipe.from_dict({"source": source, "prepare": settings}), dest, parallel=False)


def stored_rows(manifest: Manifest, root: str) -> list[Row]:
    """All rows outside fold 0, in stored order."""
    reader = RowGroupReader(manifest, Storage(), root)
    places = [
        (number, group)
        for number, shard in enumerate(manifest.shards)
        if shard.fold != 0
        for group in range(len(shard.row_groups))
    ]
    return [row for place in places for row in reader.read(*place) if row is not None]


def write_tfrecord(rows: Sequence[Row], path: Path) -> None:
    """One `tf.train.Example` a pair: the JPEG as it is, the mask packed as in a shard."""
    import tensorflow as tf

    def feature(data: bytes | None) -> "tf.train.Feature":
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[data or b""]))

    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in rows:
            features = tf.train.Features(feature={"image": feature(row.image), "mask": feature(row.mask)})
            writer.write(tf.train.Example(features=features).SerializeToString())


def write_parquet(rows: Sequence[Row], folder: Path) -> None:
    """A folder of plain Parquet files with the columns `image` and `mask`, in which every pair comes four times."""
    folder.mkdir()
    for number, part in enumerate(np.array_split(np.arange(len(rows)), PARQUET_FILES)):
        columns = {name: pa.array([getattr(rows[at], name) for at in part], pa.binary()) for name in ("image", "mask")}
        file = folder / f"{number:03d}-0.parquet"
        pq.write_table(pa.table(columns), file, compression="none", use_dictionary=False)
        for copy in range(1, PARQUET_COPIES):
            os.link(file, folder / f"{number:03d}-{copy}.parquet")

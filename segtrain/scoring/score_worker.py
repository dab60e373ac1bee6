"""Predicting labelled pictures and comparing them with their masks, in a worker's process."""

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segtrain.config import Recipe
from segtrain.dataset.data_set import root_of
from segtrain.dataset.manifest import Manifest
from segtrain.dataset.reader import RowGroupReader
from segtrain.dataset.salvage import row_of
from segtrain.dataset.shards import Row
from segtrain.inference.predict_rows import load_row_predictor
from segtrain.inference.predictor import Logits
from segtrain.inference.stored_networks import StoredNetwork
from segtrain.panels import file_bytes, panel
from segtrain.pipeline.decode import decode_image, decode_mask
from segtrain.score_table import count_picture
from segtrain.scoring.fold_scores import ScoredPictures, ScoringTask, Worst
from segtrain.storage.files import Storage


class Scorer:
    """Callable with a task, from several threads at once."""

    def __init__(self, recipe: Recipe, networks: Sequence[StoredNetwork], manifest: Manifest) -> None:
        """`manifest` is that of `recipe.data.root`, whose pictures are scored. Raises as `load_row_predictor` does."""
        self._evaluation = recipe.evaluation
        self._rows = load_row_predictor(recipe, networks)
        self._predictor = self._rows.predictor
        self._reader = RowGroupReader(manifest, Storage(recipe.storage), root_of(recipe.data))
        self._worst = Worst(recipe.evaluation.worst)
        self._choosing = threading.Lock()

    def __call__(self, task: ScoringTask) -> ScoredPictures:
        """The counts of each picture, and panels of those that may be among the worst.

        Raises:
            UserError: a picture cannot be read, and `inference.skip_unreadable` is not set.
            DataError, StorageError: a shard is missing, or storage fails.
        """
        stored = self._reader.read(task.shard, task.row_group)
        rows = [row_of(name, stored[place]) for place, name in zip(task.rows, task.ids, strict=True)]
        numbers = dict(zip(task.ids, range(task.first, task.first + len(rows)), strict=True))
        unreadable: dict[str, str] = {}
        compared = list(
            self._rows.finished(rows, unreadable, lambda row, logits: self._compare(numbers[row.id], row, logits))
        )
        return ScoredPictures(
            self._predictor.threshold,
            self._predictor.digest,
            counts={number: counts for number, counts, _ in compared},
            panels={number: panel for number, _, panel in compared if panel is not None},
            unreadable=unreadable,
            bytes=sum(len(row.image) for row in rows if isinstance(row, Row)),
        )

    def close(self) -> None:
        """End all threads."""
        self._rows.close()

    def _compare(self, number: int, row: Row, logits: Logits) -> tuple[int, NDArray[np.float64], bytes | None]:
        """A picture's number in the fold, its counts, and its panel (a PNG) where it may be among the worst."""
        truth = decode_mask(row, row.height, row.width)
        probability = self._predictor.finish(logits)
        counts = count_picture(
            truth, probability, self._predictor.threshold, boundary_pixels=self._evaluation.boundary_pixels
        )
        with self._choosing:
            is_worst = self._worst.admits(number, counts)
        return number, counts, self._draw(row, truth, probability) if is_worst else None

    def _draw(self, row: Row, truth: NDArray[np.uint8], probability: NDArray[np.float32]) -> bytes:
        image = decode_image(row, row.height, row.width)
        return file_bytes(panel(image, truth, probability, threshold=self._predictor.threshold, title=row.id), "PNG")

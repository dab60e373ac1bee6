"""Predicting labelled pictures and comparing them with their masks, in a worker's process."""

import io
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from segtrain.config import Recipe
from segtrain.dataset.manifest import Manifest
from segtrain.dataset.reader import RowGroupReader
from segtrain.dataset.salvage import row_of
from segtrain.dataset.shards import Row, unpack_mask
from segtrain.inference.load_networks import load_network
from segtrain.inference.predict_rows import RowPredictor
from segtrain.inference.predictor import Logits, Predictor
from segtrain.inference.stored_networks import StoredNetwork
from segtrain.panels import panel
from segtrain.pipeline.decode import decode_image
from segtrain.score_table import count_picture
from segtrain.scoring.fold_scores import ScoredPictures, ScoringTask, Worst
from segtrain.storage.files import Storage


class Scorer:
    """Callable with a task, from several threads at once."""

    def __init__(self, recipe: Recipe, networks: Sequence[StoredNetwork], manifest: Manifest) -> None:
        """For the pictures of `recipe.data.root`, whose manifest that is; raises as `load_network` does."""
        assert recipe.data.root is not None, "checked before workers start"
        storage = Storage(recipe.storage)
        self._evaluation = recipe.evaluation
        members = [load_network(network) for network in networks]
        self._predictor = Predictor(members, recipe.inference, recipe.cluster.device_bytes)
        self._reader = RowGroupReader(manifest, storage, recipe.data.root)
        self._host = ThreadPoolExecutor(recipe.cluster.cpus_per_worker, thread_name_prefix="segtrain-host")
        self._rows = RowPredictor(self._predictor, recipe.inference, self._host)
        self._worst = Worst(recipe.evaluation.worst)
        self._choosing = threading.Lock()

    def __call__(self, task: ScoringTask) -> ScoredPictures:
        """The counts of each picture, and panels of those that may be among the worst.

        Raises `UserError` for a picture that cannot be read, unless `inference.skip_unreadable` is set; `DataError`
        and `StorageError` where a shard is missing or storage fails.
        """
        stored = self._reader.read(task.shard, task.row_group)
        rows = [row_of(name, stored[place]) for place, name in zip(task.rows, task.ids, strict=True)]
        numbers = dict(zip(task.ids, range(task.first, task.first + len(rows)), strict=True))
        scored = ScoredPictures(self._predictor.threshold, self._predictor.digest)

        def take(finished: Iterable[tuple[int, NDArray[np.float64], bytes | None]]) -> None:
            for number, counts, drawn in finished:
                scored.counts[number] = counts
                if drawn is not None:
                    scored.panels[number] = drawn

        finishing: Iterable[tuple[int, NDArray[np.float64], bytes | None]] = ()
        for found in self._rows.batches(rows, scored.unreadable):
            take(finishing)  # of the batch before, so that two at most are in memory
            finishing = self._host.map(lambda each: self._compare(numbers[each[0].id], *each), found)
        take(finishing)
        return replace(scored, bytes=sum(len(row.image) for row in rows if isinstance(row, Row)))

    def close(self) -> None:
        """End all threads."""
        self._host.shutdown()

    def _compare(self, number: int, row: Row, logits: Logits) -> tuple[int, NDArray[np.float64], bytes | None]:
        """A picture's number and counts, and its panel as PNG where it may be among the worst."""
        assert row.mask is not None, "only labelled pictures are scored"
        truth = unpack_mask(row.mask, row.height, row.width)
        probability = self._predictor.finish(logits)
        counts = count_picture(
            truth, probability, self._predictor.threshold, boundary_pixels=self._evaluation.boundary_pixels
        )
        with self._choosing:
            is_worst = self._worst.admits(number, counts)
        return number, counts, self._draw(row, truth, probability) if is_worst else None

    def _draw(self, row: Row, truth: NDArray[np.uint8], probability: NDArray[np.float32]) -> bytes:
        image = decode_image(row, row.height, row.width)
        drawn = panel(image, truth, probability, threshold=self._predictor.threshold, title=row.id)
        buffer = io.BytesIO()
        drawn.save(buffer, format="PNG")
        return buffer.getvalue()

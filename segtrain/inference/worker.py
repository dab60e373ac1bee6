"""One process of a prediction: pictures in, masks and a part file out, a task at a time in each of several threads.

While the network computes for one task, the host decodes the next one's pictures and encodes the last one's masks.
"""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segtrain import rle
from segtrain.config import Recipe
from segtrain.data.decode import decode_image
from segtrain.data.shards import Row
from segtrain.inference import ledger
from segtrain.inference.device import configure_device
from segtrain.inference.forward import Forward
from segtrain.inference.loading import load_members
from segtrain.inference.outputs import Outputs
from segtrain.inference.parts import Part, PredictedMask, write_part
from segtrain.inference.predictor import Logits, Predictor
from segtrain.inference.tasks import Task, task_reader
from segtrain.storage import Storage

IO_THREADS = 8
"""Reading and writing wait for storage rather than for a core."""


@dataclass(frozen=True)
class Assignment:
    """What a worker is told before its first task; plain values."""

    recipe: Recipe
    source: str
    """The trained network, or several of them joined by commas."""
    target: str
    """The data set or folder that the tasks are of."""
    dest: str
    facts: dict[str, Any]
    """What the driver knows that the prediction is made with."""


@dataclass(frozen=True)
class Done:
    """What came of a task."""

    bytes: int = 0
    """Of the pictures' files."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Id -> reason, of pictures without a mask."""


def build_worker(assignment: Assignment) -> "PredictionWorker":
    """The worker of this process. Raises as `load_members` and `ledger.claim`."""
    recipe = assignment.recipe
    configure_device(recipe.cluster)
    storage = Storage(recipe.storage)
    members = load_members(assignment.source, storage)
    predictor = Predictor(members, recipe.inference, recipe.cluster.device_bytes)
    made_with = {"model": predictor.digest, "threshold": predictor.threshold, **assignment.facts}
    ledger.claim(storage, assignment.dest, made_with)
    return PredictionWorker(assignment, predictor, storage)


class PredictionWorker:
    """Callable with a task, from several threads at once."""

    def __init__(self, assignment: Assignment, predictor: Predictor, storage: Storage) -> None:
        inference = assignment.recipe.inference
        self._predictor = predictor
        self._storage = storage
        self._outputs = Outputs(assignment.dest, inference.overlays, inference.probabilities)
        self._host = ThreadPoolExecutor(assignment.recipe.cluster.cpus_per_worker, thread_name_prefix="segtrain-host")
        self._forward = Forward(predictor, inference, self._host)
        self._io = ThreadPoolExecutor(IO_THREADS, thread_name_prefix="segtrain-io")
        self._read = task_reader(storage, assignment.target, self._io, assignment.recipe.data.version)

    def __call__(self, task: Task) -> Done:
        """Predict the pictures of a task and write their files and, last, the part file.

        Raises UserError for a picture that cannot be read, unless they are to be left out; DataError and StorageError
        where reading or writing fails.
        """
        if not task.ids:
            return Done()
        rows = self._read(task)
        masks: list[PredictedMask] = []
        unreadable: dict[str, str] = {}
        writing: list[Future[None]] = []

        def take(finished: Iterable[tuple[PredictedMask, list[Future[None]]]]) -> None:
            for mask, writes in finished:
                masks.append(mask)
                writing.extend(writes)

        finishing: Iterable[tuple[PredictedMask, list[Future[None]]]] = ()
        for found in self._forward(rows, unreadable):
            take(finishing)  # of the batch before, so that the logits of two at most are in memory
            finishing = self._host.map(self._finish, *zip(*found, strict=True)) if found else ()
        take(finishing)
        for write in writing:
            write.result()
        write_part(self._storage, ledger.part_url(self._outputs.dest, task.name), Part(masks, unreadable))
        return Done(sum(len(row.image) for row in rows if isinstance(row, Row)), unreadable)

    def close(self) -> None:
        """End all threads."""
        self._host.shutdown()
        self._io.shutdown()

    def _finish(self, row: Row, logits: Logits) -> tuple[PredictedMask, list[Future[None]]]:
        """A picture's run lengths, and the writes of its files, which have been started."""
        probability = self._predictor.finish(logits)
        mask = probability >= np.float32(self._predictor.threshold)
        image = decode_image(row, row.height, row.width) if self._outputs.overlays else None
        files = self._outputs.files(row.id, mask, probability, image)
        writes = [self._io.submit(self._storage.write_bytes, url, data) for url, data in files]
        return PredictedMask(row.id, row.height, row.width, rle.encode(mask)), writes

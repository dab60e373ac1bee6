"""One process of a prediction: pictures in, masks and a part file out, a task at a time in each of several threads.

While the network computes for one task, the host decodes the next one's pictures and encodes the last one's masks.
"""

import functools
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from segtrain import rle
from segtrain.dataset.salvage import LostRow
from segtrain.dataset.shards import Row
from segtrain.inference.predict_rows import load_row_predictor
from segtrain.inference.predictor import Logits
from segtrain.pipeline.decode import decode_image
from segtrain.prediction import ledger
from segtrain.prediction.outputs import Outputs
from segtrain.prediction.part_files import Part, PredictedMask, Seen, write_part
from segtrain.prediction.tasks import Assignment, Done, Subject, Task, digest_of, task_reader
from segtrain.storage.files import Storage

IO_THREADS = 8
"""Reading and writing wait for storage rather than for a core."""


class PredictionWorker:
    """Callable with a task, from several threads at once."""

    def __init__(self, assignment: Assignment) -> None:
        """Raises as `load_row_predictor`."""
        inference = assignment.recipe.inference
        self._rows = load_row_predictor(assignment.recipe, assignment.networks)
        self._storage = Storage(assignment.recipe.storage)
        self._outputs = Outputs(assignment.dest, inference.overlays, inference.probabilities)
        self._token = assignment.token
        self._io = ThreadPoolExecutor(IO_THREADS, thread_name_prefix="segtrain-io")
        self._read = task_reader(self._storage, assignment.target, assignment.manifest, self._io)

    def __call__(self, task: Task) -> Done:
        """Predict the pictures of a task and write their files and, last, the part file.

        Raises UserError for a picture that cannot be read, unless such pictures are to be left out, and where another
        call owns the folder by now.
        Raises DataError and StorageError where reading or writing fails.
        """
        rows = self._read(task)
        subjects = {subject.id: subject for subject in task.subjects}
        ledger.check_owner(self._storage, self._outputs.dest, self._token)
        unreadable: dict[str, str] = {}
        finished = list(self._rows.finished(rows, unreadable, functools.partial(self._finish, subjects)))
        for id in unreadable:  # what an earlier content of it gave
            self._outputs.remove(self._storage, subjects[id].file)
        for _, writes in finished:
            for write in writes:
                write.result()
        seen = {row.id: Seen(subjects[row.id].mark, _digest(row), subjects[row.id].file) for row in rows}
        ledger.check_owner(self._storage, self._outputs.dest, self._token)
        part = Part([mask for mask, _ in finished], unreadable, seen)
        write_part(self._storage, ledger.part_url(self._outputs.dest, task.name), part)
        return Done(sum(len(row.image) for row in rows if isinstance(row, Row)), unreadable)

    def close(self) -> None:
        """End all threads."""
        self._rows.close()
        self._io.shutdown()

    def _finish(
        self, subjects: Mapping[str, Subject], row: Row, logits: Logits
    ) -> tuple[PredictedMask, list[Future[None]]]:
        """A picture's run lengths, and the writes of its files, which have been started."""
        probability = self._rows.predictor.finish(logits)
        mask = probability >= np.float32(self._rows.predictor.threshold)
        image = decode_image(row, row.height, row.width) if self._outputs.overlays else None
        files = self._outputs.files(subjects[row.id].file, mask, probability, image)
        writes = [self._io.submit(self._storage.write_bytes, url, data) for url, data in files]
        return PredictedMask(row.id, row.height, row.width, rle.encode(mask)), writes


def _digest(row: Row | LostRow) -> str:
    return digest_of(row.image) if isinstance(row, Row) else ""

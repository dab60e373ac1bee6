"""One process of a prediction: pictures in, masks and a part file out, a task at a time in each of several threads.

While the network computes for one task, the host decodes the next one's pictures and encodes the last one's masks.
"""

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from segtrain import rle
from segtrain.config import Recipe
from segtrain.dataset.manifest import Manifest
from segtrain.dataset.shards import Row
from segtrain.inference.predict_rows import load_row_predictor
from segtrain.inference.predictor import Logits
from segtrain.inference.stored_networks import StoredNetwork
from segtrain.pipeline.decode import decode_image
from segtrain.prediction import ledger
from segtrain.prediction.outputs import Outputs
from segtrain.prediction.part_files import Part, PredictedMask, Seen, write_part
from segtrain.prediction.tasks import Done, Subject, Task, digest_of, task_reader
from segtrain.storage.files import Storage

IO_THREADS = 8
"""Reading and writing wait for storage rather than for a core."""


class PredictionWorker:
    """Callable with a task, from several threads at once."""

    def __init__(
        self,
        recipe: Recipe,
        networks: Sequence[StoredNetwork],
        target: str,
        manifest: Manifest | None,
        dest: str,
        token: str,
    ) -> None:
        """Raises as `load_row_predictor`.

        - `networks` are as the driver has read them, so that all workers have the same.
        - `target` is the data set or folder that the tasks are of, and `manifest` the data set's when they were made,
          None for a folder.
        - `token` is of the call that owns `dest`.
        """
        self._rows = load_row_predictor(recipe, networks)
        self._storage = Storage(recipe.storage)
        self._outputs = Outputs(dest, recipe.inference.overlays, recipe.inference.probabilities)
        self._token = token
        self._io = ThreadPoolExecutor(IO_THREADS, thread_name_prefix="segtrain-io")
        self._read = task_reader(self._storage, target, manifest, self._io)

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
        digests = {row.id: digest_of(row.image) if isinstance(row, Row) else "" for row in rows}
        seen = {id: Seen(subjects[id].mark, digest, subjects[id].file) for id, digest in digests.items()}
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

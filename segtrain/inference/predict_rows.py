"""Stored rows through the networks: the host's threads decode and finish pictures while the device computes."""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from segtrain.config import InferenceConfig, Recipe
from segtrain.dataset.salvage import LostRow
from segtrain.dataset.shards import Row
from segtrain.errors import DataError, UserError
from segtrain.inference.load_networks import configure_device, load_network
from segtrain.inference.predictor import Logits, Predictor, Prepared
from segtrain.inference.stored_networks import StoredNetwork
from segtrain.pipeline.decode import decode_image
from segtrain.pipeline.prefetch import started_ahead

T = TypeVar("T")


def load_row_predictor(recipe: Recipe, networks: Sequence[StoredNetwork]) -> "RowPredictor":
    """The networks on this process's device, before anything else touches TensorFlow in it.

    Raises as `configure_device` and `load_network`.
    """
    configure_device(recipe.cluster)
    members = [load_network(network) for network in networks]
    predictor = Predictor(members, recipe.inference, recipe.cluster.device_bytes)
    host = ThreadPoolExecutor(recipe.cluster.cpus_per_worker, thread_name_prefix="segtrain-host")
    return RowPredictor(predictor, recipe.inference, host)


class RowPredictor:
    """Safe to use from several threads: while one of them has the device, the others' pictures are decoded."""

    def __init__(self, predictor: Predictor, inference: InferenceConfig, host: ThreadPoolExecutor) -> None:
        """`host` has the threads that decode and finish."""
        self.predictor = predictor
        self._batch_size = inference.batch_size
        self._skip_unreadable = inference.skip_unreadable
        self._host = host
        self._device = threading.Lock()

    def finished(
        self, rows: Sequence[Row | LostRow], unreadable: dict[str, str], finish: Callable[[Row, Logits], T]
    ) -> Iterator[T]:
        """What `finish` makes of each row and its logits, in order. It is called by the host's threads.

        While they finish one batch, the device has the next. Unreadable rows are treated as by `batches`.
        """
        finishing = (self._host.map(lambda found: finish(*found), batch) for batch in self.batches(rows, unreadable))
        for finished in started_ahead(finishing, 1):  # so that the logits of two batches at most are in memory
            yield from finished

    def batches(self, rows: Sequence[Row | LostRow], unreadable: dict[str, str]) -> Iterator[list[tuple[Row, Logits]]]:
        """Batches of `inference.batch_size` rows, in order, each row with what the networks make of it.

        Where `inference.skip_unreadable` is set, rows that cannot be decoded are left out and go into `unreadable`,
        id -> reason.
        Raises UserError that names the first such row where it is not set.
        """
        cuts = (rows[first : first + self._batch_size] for first in range(0, len(rows), self._batch_size))
        # The next batch is decoded while the device has this one, and ahead of the host's work on what it makes of it.
        for decoding in started_ahead((self._host.map(self._prepare, cut) for cut in cuts), 1):
            prepared: list[tuple[Row, Prepared]] = []
            for decoded in decoding:
                if isinstance(decoded, LostRow):
                    self._leave_out(decoded, unreadable)
                else:
                    prepared.append(decoded)
            with self._device:
                logits = self.predictor.forward([pixels for _, pixels in prepared])
            yield [(row, found) for (row, _), found in zip(prepared, logits, strict=True)]

    def close(self) -> None:
        """End the host's threads."""
        self._host.shutdown()

    def _prepare(self, row: Row | LostRow) -> tuple[Row, Prepared] | LostRow:
        if isinstance(row, LostRow):
            return row
        try:
            return row, self.predictor.prepare(functools.partial(decode_image, row), row.height, row.width)
        except DataError as error:
            return LostRow(row.id, str(error).removeprefix(f"id {row.id}: "))

    def _leave_out(self, lost: LostRow, unreadable: dict[str, str]) -> None:
        if not self._skip_unreadable:
            raise UserError(
                f"picture {lost.id} cannot be read: {lost.reason}; mend it or take it away, or leave such pictures "
                f"out with inference.skip_unreadable=true"
            )
        unreadable[lost.id] = lost.reason

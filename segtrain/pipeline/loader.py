"""The two thread pools behind the batches: some threads read row groups, one a core decodes their pictures."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from segtrain.dataset.reader import RowGroupReader
from segtrain.dataset.shards import Row

T = TypeVar("T")

# Reading waits for storage rather than for a core: 8 requests of 8 MiB in flight hide 100 ms to the first byte.
READ_THREADS = 8


class Loader:
    """Reads and decodes in the background. Decoding waits for reading and never the other way round."""

    def __init__(self, reader: RowGroupReader, decode_threads: int | None) -> None:
        self._reader = reader
        self._reading = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="segtrain-read")
        threads = decode_threads or os.cpu_count() or 1
        self._decoding = ThreadPoolExecutor(threads, thread_name_prefix="segtrain-decode")

    def read(self, shard: int, row_group: int) -> Future[list[Row | None]]:
        """Start to read a row group; see `RowGroupReader.read` for what comes and what it raises."""
        return self._reading.submit(self._reader.read, shard, row_group)

    def decode(self, function: Callable[[Row], T], rows: Future[list[Row | None]], row: int) -> Future[T | None]:
        """Start `function` on one row of a row group that is being read; None comes for a row in quarantine."""

        def decode() -> T | None:
            found = rows.result()[row]
            return None if found is None else function(found)

        return self._decoding.submit(decode)

    def cancel(self) -> None:
        """Give up what has not been started, without waiting; who waits for it gets `CancelledError`."""
        self._reading.shutdown(wait=False, cancel_futures=True)
        self._decoding.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """End all threads."""
        self.cancel()
        self._reading.shutdown()
        self._decoding.shutdown()

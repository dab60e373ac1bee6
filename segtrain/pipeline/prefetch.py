"""Iterators that run ahead: in a thread of their own, or of what other threads are doing."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Generic, Self, TypeVar

T = TypeVar("T")


def started_ahead(source: Iterator[T], depth: int) -> Iterator[T]:
    """The items of `source`, which starts work for each: `depth` more have been started when an item comes out."""
    started = deque(islice(source, depth))
    while started:
        started.extend(islice(source, 1))
        yield started.popleft()


class Prefetch(Generic[T]):
    """Makes items of `source` before they are asked for: `depth` of them are ready, and one more is in the making.

    `next` raises what the source raises, after the items made before it. `close` ends the thread; from then on
    there are no more items.
    """

    def __init__(self, source: Iterator[T], depth: int, name: str) -> None:
        self._source = source
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._coming = deque(self._thread.submit(next, source) for _ in range(depth + 1))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if not self._coming:
            raise StopIteration
        item = self._coming[0].result()  # an error, or the end, stays in front and is raised again
        self._coming.popleft()
        self._coming.append(self._thread.submit(next, self._source))
        return item

    def close(self) -> None:
        """End the thread and drop what it made. Waits for the item in the making."""
        self._coming.clear()
        self._thread.shutdown(cancel_futures=True)

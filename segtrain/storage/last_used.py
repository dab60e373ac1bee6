"""Things that are costly to make and kept between uses: open objects, footers, row groups."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any


class LastUsed:
    """The `limit` things that were asked for last, each made once for all threads that ask at the same time."""

    def __init__(self, make: Callable[[Any], Any], limit: int) -> None:
        self._make, self._limit = make, limit
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Future[Any]] = OrderedDict()

    def get(self, key: Hashable) -> Any:
        """What `make` gives for a key. Raises what it raises, in all threads that wait for it."""
        with self._lock:
            is_first = key not in self._kept
            kept = self._kept.setdefault(key, Future())
            self._kept.move_to_end(key)
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)  # its users hold it until they are done
        if is_first:
            try:
                kept.set_result(self._make(key))
            except BaseException as error:
                self.drop(key)
                kept.set_exception(error)
        return kept.result()

    def drop(self, key: Hashable) -> None:
        """Make it anew when it is next asked for."""
        with self._lock:
            self._kept.pop(key, None)

"""Objects that stay open between reads, so that a read costs one request and not two."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

HANDLES = 256


class OpenHandles:
    """The objects that were read last, opened once for all threads that ask at the same time."""

    def __init__(self, open_object: Callable[[str], Any], limit: int = HANDLES) -> None:
        self._open = open_object
        self._limit = limit
        self._lock = threading.Lock()
        self._handles: OrderedDict[str, Future[Any]] = OrderedDict()

    def get(self, path: str) -> Any:
        """The open object at `bucket/key`. Raises what opening it raises, in all threads that wait for it."""
        with self._lock:
            handle = self._handles.get(path)
            is_first = handle is None
            if handle is None:
                handle = self._handles[path] = Future()
            self._handles.move_to_end(path)
            while len(self._handles) > self._limit:
                self._handles.popitem(last=False)  # its readers hold it until they are done
        if is_first:
            try:
                handle.set_result(self._open(path))
            except BaseException as error:
                self.drop(path)
                handle.set_exception(error)
        return handle.result()

    def drop(self, path: str) -> None:
        """Open the object anew when it is next asked for."""
        with self._lock:
            self._handles.pop(path, None)

"""Ctrl-C, SIGTERM and SIGHUP while a run goes on: the first lets its workers save and leave, the second ends them."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a job to end. SIGHUP comes when a terminal closes."""


Handler = Callable[[int, FrameType | None], object]


@contextmanager
def signals_handled(handler: Handler, numbers: Sequence[signal.Signals] = SIGNALS) -> Iterator[None]:
    """Call `handler` when one of these signals comes inside the block; afterwards the handlers before are back.

    Those that `nohup` or a shell has this process ignore stay ignored. Signals come to a process's main thread, so in
    any other thread this does nothing.
    """
    before = _set(handler, numbers)
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


def _set(handler: Handler, numbers: Sequence[signal.Signals]) -> dict[signal.Signals, Any]:
    """Returns the handlers before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heeded}


class StopSignal:
    """A context manager that handles `SIGNALS`. Enter it after `ray.init`, because it replaces Ray's own handlers."""

    def __init__(self) -> None:
        self.wanted = False
        """Whether a signal has come. Once true, it stays true."""
        self._ask: Callable[[], bool] | None = None
        self._end: Callable[[], None] | None = None
        self._handling = signals_handled(self._handle)

    def __enter__(self) -> Self:
        self._handling.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._handling.__exit__(None, None, None)

    @contextmanager
    def asking(self, ask: Callable[[], bool]) -> Iterator[None]:
        """Call `ask` at the first signal in the block. It returns whether the workers will leave by themselves.

        KeyboardInterrupt is raised if it returns False, at the second signal, and outside of such a block.
        """
        self._ask = ask
        try:
            yield
        finally:
            self._ask = self._end = None

    def ends_with(self, end: Callable[[], None]) -> None:
        """Call `end` before KeyboardInterrupt is raised inside this block."""
        self._end = end
        _set(self._handle, SIGNALS)  # again: each `ray.init` in between has set Ray's own

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.wanted = not self.wanted, True
        if first and self._ask is not None and self._ask():
            return
        end, self._end = self._end, None
        if end is not None:
            end()
        raise KeyboardInterrupt

"""Log lines of a process that no user watches, on their way to one who does."""

import logging
from collections.abc import Callable


def forward_warnings(show: Callable[[str], object]) -> None:
    """From now on call `show` with each line that segtrain logs in this process, from warnings on."""
    logging.getLogger("segtrain").addHandler(_Forwarding(show))


class _Forwarding(logging.Handler):
    def __init__(self, show: Callable[[str], object]) -> None:
        super().__init__(logging.WARNING)
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._show(record.getMessage())
        except Exception:
            self.handleError(record)  # as every handler does: a line that is lost must not end the work

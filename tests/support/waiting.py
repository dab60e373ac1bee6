"""Waiting for what must come about; the bound leaves room for a machine that others use too."""

import time
from collections.abc import Callable

WITHIN_S = 300.0


def wait_until(there: Callable[[], object], what: str = "it comes about", within_s: float = WITHIN_S) -> None:
    """Return as soon as `there()` is true. Raises AssertionError where it is not within `within_s`."""
    deadline = time.monotonic() + within_s
    while not there():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)

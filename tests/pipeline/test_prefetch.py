"""A thread that runs ahead: bounded, in order, honest about errors, and gone when it is closed."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from segtrain.pipeline.prefetch import Prefetch
from tests.support.waiting import wait_until


def test_items_come_in_order_and_end() -> None:
    with closing(Prefetch(iter(range(50)), depth=3, name="p")) as items:
        assert list(items) == list(range(50))
        assert list(items) == []


def test_it_runs_ahead_by_no_more_than_its_depth() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    with closing(Prefetch(source(), depth=4, name="p")) as items:
        next(items)
        wait_until(lambda: len(made) >= 6)
        time.sleep(0.1)
        assert len(made) == 6  # one taken, four ready, one in the hand


def test_an_error_surfaces_after_the_items_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("storage is gone")

    with closing(Prefetch(source(), depth=2, name="p")) as items:
        assert next(items) == 1
        for _ in range(2):
            with pytest.raises(OSError, match="storage is gone"):
                next(items)


def test_closing_ends_the_thread_of_an_endless_source() -> None:
    def source() -> Iterator[int]:
        while True:
            yield 0

    before = threading.active_count()
    items = Prefetch(source(), depth=2, name="p")
    next(items)
    assert threading.active_count() == before + 1
    items.close()
    assert threading.active_count() == before
    assert list(items) == []

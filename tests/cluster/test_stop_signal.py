"""Signals that really come, to this process."""

import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from segtrain.cluster.stop_signal import SIGNALS, StopSignal


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Every test leaves the handlers that it found."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    after = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def answering(will_leave: bool, asked: list[bool]) -> Callable[[], bool]:
    def ask() -> bool:
        asked.append(will_leave)
        return will_leave

    return ask


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_the_workers_to_leave_and_the_second_ends_them(number: int) -> None:
    asked: list[bool] = []
    ended: list[bool] = []
    with StopSignal() as stop:
        with stop.asking(answering(True, asked)):
            stop.ends_with(lambda: ended.append(True))
            send(number)
            assert (stop.wanted, asked, ended) == (True, [True], [])
            with pytest.raises(KeyboardInterrupt):
                send(number)
        assert (asked, ended) == ([True], [True])
        with pytest.raises(KeyboardInterrupt):
            send(number)
        assert ended == [True], "outside of the block nothing is there to be ended"


def test_workers_that_have_nothing_to_save_are_ended_at_once() -> None:
    asked: list[bool] = []
    with StopSignal() as stop, pytest.raises(KeyboardInterrupt), stop.asking(answering(False, asked)):
        send(signal.SIGTERM)
    assert (stop.wanted, asked) == (True, [False])


def test_who_ends_the_workers_takes_the_signals_back_from_whoever_came_in_between() -> None:
    with StopSignal() as stop, stop.asking(lambda: True):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as each `ray.init` does
        stop.ends_with(lambda: None)
        send(signal.SIGTERM)
        assert stop.wanted


def test_a_signal_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            send(signal.SIGHUP)
            assert not stop.wanted
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_no_handler_is_set() -> None:
    found: list[object] = []

    def enter() -> None:
        with StopSignal():
            found.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [before]

"""A thread that ends no step is noticed and described."""

import threading
import time

from segtrain.cluster.watchdog import Stuck, Watchdog


def stuck_worker(deadline_s: float, *, beats: int, first_s: float = 0.0, asleep_s: float = 120.0) -> list[Stuck]:
    """What is found of a thread that beats every 50 ms and then waits until it is found, or for `asleep_s`."""
    found: list[Stuck] = []
    noticed = threading.Event()

    def on_stuck(stuck: Stuck) -> None:
        found.append(stuck)
        noticed.set()

    def fall_asleep() -> None:
        noticed.wait(asleep_s)

    with Watchdog(deadline_s, on_stuck, first_s=first_s) as watchdog:
        for _ in range(beats):
            time.sleep(0.05)
            watchdog.beat()
        fall_asleep()
    return found


def test_a_thread_that_stops_beating_is_found_once_with_its_place_and_all_stacks() -> None:
    threading.Thread(target=threading.Event().wait, args=(120.0,), name="bystander", daemon=True).start()
    started = time.monotonic()
    [found] = stuck_worker(1.0, beats=30)
    assert time.monotonic() - started >= 1.5 + 1.0, "beats keep it quiet, then the deadline counts"
    assert found.seconds >= 1.0
    assert "threading.py" in found.where
    assert "in fall_asleep" in found.stacks
    assert found.stacks.startswith("thread MainThread")
    assert "thread bystander" in found.stacks
    assert not found.in_tensorflow


def test_before_the_first_beat_it_waits_longer() -> None:
    assert stuck_worker(0.1, beats=0, first_s=600.0, asleep_s=0.5) == []
    assert len(stuck_worker(0.1, beats=1, first_s=600.0)) == 1

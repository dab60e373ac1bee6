"""When a failed request is sent again."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 10.0


def retrying(
    action: Callable[[], T],
    is_passing: Callable[[Exception], bool],
    deadline_s: float,
    *,
    on_retry: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    uniform: Callable[[float, float], float] = random.uniform,
) -> T:
    """What `action` returns. It is called again after an error that `is_passing`, while `deadline_s` leaves time.

    - The wait before attempt n + 1 is uniform in [0, min(10 s, 0.2 s x 2^(n-1))]. This "full jitter" keeps workers that
      were throttled together from coming back together (Brooker, Exponential Backoff And Jitter, AWS 2015).
    - An attempt starts only if it would end before the deadline, should it take as long as the one before. None is cut
      short, so the first may outlast the deadline.
    - `on_retry` is called before each attempt but the first.

    Raises the last error.
    """
    started = clock()
    longest_s = FIRST_WAIT_S
    while True:
        attempt_started = clock()
        try:
            return action()
        except Exception as error:
            now = clock()
            wait_s = uniform(0.0, longest_s)
            if not is_passing(error) or (now - started) + wait_s + (now - attempt_started) >= deadline_s:
                raise
        sleep(wait_s)
        longest_s = min(LONGEST_WAIT_S, 2 * longest_s)
        on_retry()

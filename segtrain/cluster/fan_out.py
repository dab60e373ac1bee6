"""One function called for many tuples of arguments, side by side: on Ray's workers or on threads of this process."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Protocol, TypeVar

from segtrain.errors import RunError
from segtrain.process import usable_cores

logger = logging.getLogger(__name__)

# Ray takes 10 to 20 s to start, in which two cores check over a thousand Carvana pairs; Pillow and zlib let threads
# run side by side. Fewer pictures than this are done by a pool of threads.
RAY_FROM_PICTURES = 2000
# Calls for each CPU that are handed to Ray at once: the next is there when one is done, and an error loses few.
CALLS_PER_CPU = 2

T = TypeVar("T")


class FanOut(Protocol):
    """Calls a function once for each tuple of arguments, side by side; yields what they return as they finish."""

    def __call__(self, function: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> Iterator[T]: ...


@contextlib.contextmanager
def fan_out(pictures: int, *, parallel: bool, is_local: bool) -> Iterator[FanOut]:
    """What calls a function for this number of pictures: Ray tasks or threads, whichever is done first.

    Ray is used from 2,000 pictures on, unless `parallel` is False. Work on local files (`is_local`) stays on threads if
    the cluster has several nodes. A Ray that was started here is shut down again.

    Raises what `connection` raises.
    """
    if not parallel or pictures < RAY_FROM_PICTURES:
        yield on_threads
        return
    import ray

    from segtrain.cluster.connection import connection

    with connection():
        nodes = sum(node["Alive"] for node in ray.nodes())
        if is_local and nodes > 1:
            logger.info("the cluster has %d nodes and not all of them see local files: working on this one", nodes)
        yield on_threads if is_local and nodes > 1 else on_ray


def on_threads(function: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> Iterator[T]:
    """Call on a thread for each usable core. The first error ends it: calls that have not begun are dropped."""
    pool = ThreadPoolExecutor(usable_cores())
    try:
        yield from (future.result() for future in as_completed([pool.submit(function, *call) for call in calls]))
    finally:
        pool.shutdown(cancel_futures=True)


def on_ray(function: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> Iterator[T]:
    """Call as Ray tasks. A task whose worker died is done again, three times at most.

    No call is under way any more when this ends.

    Raises RunError if workers die more often. Raises any other error of a call as it was raised there.
    """
    import ray

    task = ray.remote(function)
    at_once = CALLS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = list(reversed(calls))
    running: list[Any] = []
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(task.remote(*waiting.pop()))
            finished, running = ray.wait(running)
            yield from ray.get(finished)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # our own error, without the text of the remote traceback
    except ray.exceptions.RayError as error:
        first = str(error).partition("\n")[0]
        raise RunError(f"Ray's workers died again and again: {first}; run the same command again to go on") from None
    finally:
        for each in running:
            ray.cancel(each)
        if running:
            ray.wait(running, num_returns=len(running))

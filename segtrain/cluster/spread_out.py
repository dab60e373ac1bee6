"""Pictures spread over the cluster: what the drivers of a prediction and of an evaluation share."""

from collections.abc import Callable, Sequence
from typing import Any

from segtrain.cluster import nodes
from segtrain.cluster.capacity import check_shared
from segtrain.cluster.fleet import work_through
from segtrain.cluster.throughput import Pace
from segtrain.config import Recipe


def spread_out(
    tasks: Sequence[Any],
    make_worker: Callable[[], Callable[[Any], Any]],
    recipe: Recipe,
    verb: str,
    paths: Sequence[tuple[str, str | None]],
    take: Callable[[Any], None],
) -> None:
    """Let workers on the cluster do the tasks. `take` is called here with each result; the log shows the progress.

    - A task has the `ids` of its pictures, and a result the `bytes` of their files.
    - `verb` says in the log what is done with the pictures.
    - `paths` are (argument, path) of everything that workers read and write.

    Nothing starts where there is no task.
    Raises UserError for a local path where there are several machines, and what `work_through` raises.
    """
    if not tasks:
        return
    pace = Pace(verb, sum(len(task.ids) for task in tasks), recipe.run.progress_every_s)

    def on_result(task: Any, result: Any) -> None:
        take(result)
        pace.add(len(task.ids), result.bytes)

    with nodes.connection():
        offer = nodes.offer()
        for argument, path in paths:
            check_shared({argument: path}, offer)
        work_through(tasks, make_worker, recipe.cluster, on_result, actors=recipe.inference.workers)

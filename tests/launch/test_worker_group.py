"""One group of workers through Ray Train; `tests/launch/test_train_run.py` has one after the other."""

from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train.v2.api.exceptions import WorkerGroupError

from segtrain.cluster.stop_signal import StopSignal
from segtrain.config import Recipe, override
from segtrain.launch.mailbox import Began, Mailbox
from segtrain.launch.train_run import causes_of
from segtrain.launch.worker_group import run_group
from segtrain.runs.status import Driver, Left, RunSummary, World

pytestmark = pytest.mark.ray


def leaves_or_fails(recipe: Recipe, world: World, driver: Driver) -> RunSummary:
    """Leave at step 7; with a seed of 1 the last of the workers fails instead."""
    assert (driver.claim, world.workers) == ("a token", recipe.cluster.max_workers)
    assert world.workers_on_machine == world.workers
    if recipe.train.seed == 1 and not world.is_chief:
        raise ConnectionResetError("peer")
    raise Left(7)


def test_a_group_returns_what_its_chief_returned_or_raises_with_the_rank_of_who_failed(
    ray_session: str, tmp_path: Path
) -> None:
    mailbox: Any = ray.remote(num_cpus=0)(Mailbox).remote()

    def run(*settings: str) -> RunSummary | Left:
        recipe = override(Recipe(), [f"run.storage={tmp_path}", "run.name=test", *settings])
        given = {"claim": "a token", "start_within_s": 300.0, "stop": StopSignal()}
        return run_group(recipe, leaves_or_fails, mailbox, **given)

    left = run()
    assert isinstance(left, Left)
    assert left.step == 7
    with pytest.raises(WorkerGroupError) as caught:
        run("cluster.workers=2", "train.seed=1")
    assert str(causes_of(caught.value)[1]) == "ConnectionResetError: peer"
    began = [told.rank for _, told in ray.get(mailbox.take.remote(0)) if isinstance(told, Began)]
    assert sorted(began) == [0, 0, 1]
    ray.kill(mailbox)

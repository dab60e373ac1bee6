"""What a trial costs beside its training: a sweep of one trial, with one worker and with two, on a Ray of its own.

    python -m tests.bench.trial_overhead

Prints the seconds from the call of the sweep, with Ray already there, to its return, and where they went: until the
trial's training function is called, importing TensorFlow there, training, and from its end to the sweep's. The project
allows 15 s beside training with one worker (the loop inside the trial's own process) and 35 s with several.
"""

import json
import os
import tempfile
import time
from pathlib import Path

from segtrain.config import Recipe
from segtrain.launch.train_run import train_with_tensorflow
from segtrain.runs.status import Driver, RunSummary, World
from tests.bench.measuring import REPOSITORY
from tests.support.labelled import write_set


def timed(recipe: Recipe, world: World, driver: Driver) -> RunSummary:
    """The real training; the chief leaves when it was called, had TensorFlow, and was done, in `times.json`."""
    times = [time.time()]
    import segtrain.training.loop  # noqa: F401

    times.append(time.time())
    summary = train_with_tensorflow(recipe, world, driver)
    times.append(time.time())
    if world.is_chief:
        Path(recipe.run.folder, "times.json").write_text(json.dumps(times))
    return summary


def main() -> None:
    import ray

    from segtrain.tune.sweep import run_sweep

    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", RAY_AUTH_MODE="disabled")
    started = time.time()
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY)}},
    )
    print(f"Ray itself: {time.time() - started:.1f} s")
    with tempfile.TemporaryDirectory() as folder:
        root = write_set(Path(folder) / "set").root
        for workers in (1, 2, 1, 2):
            recipe = Recipe.from_dict(
                {
                    "data": {"root": root, "height": 64, "width": 64},
                    "model": {"filters": 4, "depth": 2},
                    "train": {"epochs": 20, "global_batch_size": 4},
                    "cluster": {"workers": workers},
                    "run": {"storage": folder, "name": f"sweep-{time.time_ns()}"},
                    "tune": {"space": {"train.seed": {"grid": [0]}}, "search": "grid"},
                }
            )
            began = time.time()
            run_sweep(recipe, timed)
            ended = time.time()
            called, imported, done = json.loads(Path(recipe.run.folder, "trials/0000/times.json").read_text())
            print(
                f"{workers} worker(s): {ended - began - (done - imported):.1f} s beside {done - imported:.1f} s of "
                f"training: {called - began:.1f} until the function is called, {imported - called:.1f} for TensorFlow, "
                f"{ended - done:.1f} to the end (leaderboard and report included)",
                flush=True,
            )
    ray.shutdown()


if __name__ == "__main__":
    main()

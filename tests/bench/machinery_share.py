"""What surviving costs while nothing goes wrong: checkpoints in the background, the watchdog, the goodput record.

    python -m tests.bench.machinery_share [--pairs 8]

Checkpoints: stretches of 40 real steps (U-Net of 16 filters, depth 4, 96x128, batch 16; a checkpoint is 23 MB) with one
checkpoint in them and without one take turns; the difference is what a checkpoint costs in seconds, and divided by 60
its share of the time at one a minute. Local disk, so no network; its compression and sha256 take the same cores as the
steps do here, while on a machine with GPUs they do not.

Watchdog and record: far below the noise of step times, so they are counted: the seconds that each step spends in the
clock, the beats and the record of a step (many calls, one thread), and the CPU seconds that the threads beside the loop
take in a second (a process that does nothing else, for 20 s, on a real Ray). Both as a share of a step and of one core;
the allowed half percent is of the step.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from tests.bench.measuring import REPOSITORY

STEPS_IN_STRETCH = 40
CALLS = 20_000
IDLE_S = 20.0
CHECKPOINT_EVERY_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8)
    pairs = parser.parse_args().pairs
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", RAY_AUTH_MODE="disabled")
    beside_s = threads_beside_the_loop()
    with tempfile.TemporaryDirectory() as folder:
        step_s = checkpoints(Path(folder), pairs)
    in_step_s = clock_of_a_step()
    print(
        f"in each step   {in_step_s * 1e6:.0f} us for clock, beats and record: {in_step_s / step_s:.3%} of this step, "
        f"{in_step_s / 0.1:.3%} of one of 100 ms"
    )
    print(f"beside it      {beside_s * 1e3:.2f} ms of CPU a second in watchdog and line to the driver: {beside_s:.3%}")
    print(f"together       {in_step_s / step_s + beside_s:.3%} of a step, if nothing else could use the core meanwhile")


def checkpoints(folder: Path, pairs: int) -> float:
    """Print what a checkpoint costs; returns the seconds of a step without one."""
    from segtrain.config import Recipe, override
    from segtrain.process import before_tensorflow
    from tests.support.labelled import write_set

    before_tensorflow()
    from segtrain.runs.status import World
    from segtrain.training.run import Run

    settings = [f"data.root={write_set(folder / 'set').root}", f"run.storage={folder}", "train.global_batch_size=16"]
    recipe = override(Recipe(), [*settings, "model.filters=16", "model.depth=4", "data.height=96", "data.width=128"])
    with Run(recipe, World()) as run:
        batch = next(run.batches).replicas

        def stretch(*, saving: bool) -> float:
            started = time.perf_counter()
            if saving:
                run.save()
            for _ in range(STEPS_IN_STRETCH):
                run.step(batch, run.state.cursor.step, run.learning_rate(), whole=True).numpy()
                run.state.cursor.step += 1
            run.state.checkpoints.wait()
            return time.perf_counter() - started

        stretch(saving=True)
        taken = [(stretch(saving=True), stretch(saving=False)) for _ in range(pairs)]
        began = time.perf_counter()
        run.save()
        held_up_s = time.perf_counter() - began
        run.state.checkpoints.wait()
        whole_s = time.perf_counter() - began
        newest = sorted((folder / "run/checkpoints").iterdir())[-1]
        size = sum(file.stat().st_size for file in newest.iterdir())
    costs = [with_one - without for with_one, without in taken]
    step_s = statistics.median(without for _, without in taken) / STEPS_IN_STRETCH
    cost_s = statistics.median(costs)
    print(
        f"checkpoint     {size / 1e6:.0f} MB; the loop is held up {held_up_s * 1e3:.0f} ms, all of it takes "
        f"{whole_s:.2f} s; steps of {step_s * 1e3:.0f} ms"
    )
    print(f"               costs {cost_s:.2f} s ({' '.join(f'{cost:.2f}' for cost in costs)})")
    print(f"               at one a minute {cost_s / CHECKPOINT_EVERY_S:.2%} of the time")
    return step_s


def clock_of_a_step() -> float:
    """Seconds of `Watch.settled` with a beat and the driver's ear, as a worker has them, over many calls."""
    from segtrain.cluster.watchdog import Watchdog
    from segtrain.config import Recipe
    from segtrain.runs.status import Driver
    from segtrain.training.checkpoint import Cursor
    from segtrain.training.clock import Watch

    with Watchdog(60.0, lambda stuck: None, first_s=60.0) as watchdog:
        driver = Driver(lambda progress: None, lambda: False, watchdog.beat)
        watch = Watch(Recipe(), Cursor(), 100, driver)
        started = time.perf_counter()
        for _ in range(CALLS):
            with watch.waiting():
                driver.wants_to_leave()
            watch.settled(16.0)
        return (time.perf_counter() - started) / CALLS


def threads_beside_the_loop() -> float:
    """CPU seconds a second of what `launch/train_worker.py` runs beside the training, less those of none of it."""
    import ray

    from segtrain.cluster.watchdog import Watchdog
    from segtrain.launch.mailbox import Mailbox
    from segtrain.launch.train_worker import _asking

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY)}},
    )
    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    ray.get(mailbox.take.remote(0))  # type: ignore[attr-defined]
    idle = _cpu_share()
    with Watchdog(60.0, lambda stuck: None, first_s=60.0), _asking(mailbox):
        busy = _cpu_share()
    ray.shutdown()
    return busy - idle


def _cpu_share() -> float:
    cpu, wall = time.process_time(), time.perf_counter()
    time.sleep(IDLE_S)
    return (time.process_time() - cpu) / (time.perf_counter() - wall)


if __name__ == "__main__":
    main()

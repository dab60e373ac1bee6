"""What the host's Python costs a step: CPU time of the loop's thread and of the one that places batches.

    python -m tests.bench.host_time [--replicas 1] [--steps 400]

A U-Net of 2 filters and depth 1 at 32x32, so that little is left but the host's work. One line of JSON: milliseconds of
CPU time a step in both threads, in which other threads' decoding does not count; the part of it that drawing the keys
of collectives takes; and how often the loop has read values from the devices.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

WARM_STEPS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--norm", default="none")
    options = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measured(Path(folder), options.replicas, options.steps, options.norm)))


def measured(folder: Path, replicas: int, steps: int, norm: str) -> dict[str, float]:
    """Train `steps` steps with the real loop after some that warm up."""
    from segtrain.config import Recipe, override
    from segtrain.process import before_tensorflow
    from tests.support.labelled import write_rectangles

    before_tensorflow()
    from segtrain.runs.status import NOBODY, World
    from segtrain.training import collective_keys, loop, step
    from segtrain.training.clock import Watch
    from segtrain.training.run import Run

    settings = ["model.filters=2", "model.depth=1", "data.height=32", "data.width=32", f"model.norm={norm}"]
    write_rectangles(folder / "raw", str(folder / "set"), pictures=80 * replicas, height=32, width=48)
    batch = [f"train.global_batch_size={replicas}", f"data.root={folder / 'set'}", f"data.lanes={replicas}"]
    recipe = override(Recipe(), [*settings, *batch, f"run.storage={folder}", "train.epochs=100000"])
    reads, keys_s = 0, 0.0
    read, draw = step.read_results, collective_keys._StepKeys._vector

    def counted_read(vectors):  # type: ignore[no-untyped-def]
        nonlocal reads
        reads += 1
        return read(vectors)

    def timed_draw(self, count):  # type: ignore[no-untyped-def]
        nonlocal keys_s
        began = time.thread_time()
        try:
            return draw(self, count)
        finally:
            keys_s += time.thread_time() - began

    with (
        mock.patch.object(loop, "read_results", counted_read),
        mock.patch.object(collective_keys._StepKeys, "_vector", timed_draw),
        Run(recipe, World(replicas_per_worker=replicas)) as run,
    ):
        (placing,) = [thread for thread in threading.enumerate() if thread.name.startswith("segtrain-placing")]
        clock = time.pthread_getcpuclockid(placing.ident or 0)
        watch = Watch(recipe, run.state.cursor, run.training_data.steps_per_epoch, NOBODY)
        done, began = 0, (0.0, 0.0, 0.0)
        while done < WARM_STEPS + steps:
            if done >= WARM_STEPS and began == (0.0, 0.0, 0.0):
                began, reads, keys_s = (time.thread_time(), time.clock_gettime(clock), time.perf_counter()), 0, 0.0
                first = done
            loop.train_epoch(run, watch)
            done += run.training_data.steps_per_epoch
            run.state.cursor.start_epoch(run.state.cursor.epoch + 1)
        taken = done - first
        ended = (time.thread_time(), time.clock_gettime(clock), time.perf_counter())
    loop_s, placing_s, wall_s = (after - before for before, after in zip(began, ended, strict=True))
    return {
        "replicas": replicas,
        "steps": taken,
        "steps_an_epoch": run.training_data.steps_per_epoch,
        "loop_ms": round(1e3 * (loop_s - keys_s) / taken, 3),
        "placing_ms": round(1e3 * placing_s / taken, 3),
        "keys_ms": round(1e3 * keys_s / taken, 3),
        "wall_ms": round(1e3 * wall_s / taken, 3),
        "reads_a_step": round(reads / taken, 3),
    }


if __name__ == "__main__":
    main()

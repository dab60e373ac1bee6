"""The cells of the table of step times, in processes of their own; `tests.bench.gpu step` makes it."""

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segtrain.process import before_tensorflow
from tests.bench.gpu_bench import Bench, Results, devices, words_of

REPOSITORY = Path(__file__).parents[2]
WARM_UP_STEPS = 3
WORDS_LINES = 12

Cell = dict[str, Any]


def step(results: Results, cells: list[Cell], *, cell_timeout_s: float) -> None:
    """All cells, in as few processes as they allow."""
    waiting = list(cells)
    print(f"{'size':>14} {'precision':>15} {'layout':>6} {'norm':>12} {'xla':>3}  ", end="")
    print("ms synced  dispatch  pipelined  pictures/s  first s      peak  predicted", flush=True)
    while waiting:
        for found in _in_one_process(waiting, cell_timeout_s):
            cell = waiting.pop(0)
            results.add(f"{_name(cell)}  {_figures(found)}", ok="words" not in found, **cell, **found)


def _in_one_process(cells: list[Cell], cell_timeout_s: float) -> Iterator[dict[str, Any]]:
    """What came of the cells, in order, until one ends the process: that one gives the process's last words."""
    command = [sys.executable, "-m", "tests.bench.gpu", "cells"]
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        assert child.stdin
        assert child.stdout
        child.stdin.write(json.dumps(cells))
        child.stdin.close()
        done = 0
        while True:
            timer = threading.Timer(cell_timeout_s, child.kill)
            timer.start()
            line = child.stdout.readline()
            timer.cancel()
            if not line:
                break
            if line.startswith("{"):
                done += 1
                yield json.loads(line)
        code = child.wait()
        if done < len(cells):
            errors.seek(0)
            last = "\n".join(errors.read().strip().splitlines()[-WORDS_LINES:])
            yield {"words": f"the process ended with code {code} (-9: after {cell_timeout_s:g} s): {last}"}


def run_cells() -> None:
    """In a process of its own: one line of JSON for each cell that comes on stdin."""
    before_tensorflow()
    _, device = devices()
    for cell in json.load(sys.stdin):
        try:
            found = measure(cell, device)
        except Exception as error:  # whatever it is, its words are the result
            found = {"words": words_of(error)}
        print(json.dumps(found), flush=True)
        gc.collect()


def measure(cell: Cell, device: str) -> dict[str, Any]:
    """Times in ms and bytes of one cell; medians over its steps."""
    import keras
    import tensorflow as tf

    keras.utils.clear_session()
    tf.config.optimizer.set_experimental_options({"layout_optimizer": cell["layout"]})
    bench = Bench(
        device, [*cell["model"], f"train.precision={cell['precision']}", *_settings(cell, device)], cell["size"]
    )
    batch = bench.batch()
    at_rest = _start_of_peak(device)
    began = time.perf_counter()
    bench.result(batch, 0)
    first_s = time.perf_counter() - began
    for number in range(1, WARM_UP_STEPS):
        bench.result(batch, number)
    synced, dispatched = [], []
    for number in range(cell["steps"]):
        began = time.perf_counter()
        result = bench.start(batch, number)
        dispatched.append(1000 * (time.perf_counter() - began))
        result.numpy()
        synced.append(1000 * (time.perf_counter() - began))
    began = time.perf_counter()
    for number in range(cell["steps"]):
        result = bench.start(batch, number)
    result.numpy()
    pipelined = 1000 * (time.perf_counter() - began) / cell["steps"]
    return {
        "ms_synced": statistics.median(synced),
        "ms_dispatch": statistics.median(dispatched),
        "ms_pipelined": pipelined,
        "pictures_per_s": 1000 * bench.pictures / pipelined,
        "first_step_s": first_s,
        "peak_bytes": _peak(device) - at_rest,
        "predicted_bytes": predicted_bytes(bench),
    }


def _settings(cell: Cell, device: str) -> list[str]:
    xla, gpus = str(cell["xla"]).lower(), int(device.startswith("GPU"))
    train = [f"train.precision={cell['precision']}", f"train.xla={xla}", f"cluster.gpus_per_worker={gpus}"]
    return [*cell["model"], f"model.norm={cell['norm']}", *train]


def predicted_bytes(bench: Bench) -> int:
    from segtrain.memory import training_footprint

    recipe, batch = bench.recipe, bench.pictures
    return training_footprint(recipe, batch=batch, rematerialize=False, height=bench.height, width=bench.width).total


def _start_of_peak(device: str) -> int:
    """Begin to measure a new peak. On a GPU all that is held counts, on a CPU what comes on top from now on."""
    import tensorflow as tf

    if device.startswith("GPU"):
        tf.config.experimental.reset_memory_stats(device)
        return 0
    from tests.bench.measuring import process_memory

    Path("/proc/self/clear_refs").write_text("5")
    return process_memory("VmRSS")


def _peak(device: str) -> int:
    import tensorflow as tf

    if device.startswith("GPU"):
        return int(tf.config.experimental.get_memory_info(device)["peak"])
    from tests.bench.measuring import process_memory

    return process_memory("VmHWM")


def _name(cell: Cell) -> str:
    size, layout, xla = ("x".join(map(str, cell["size"])), *("on" if cell[key] else "off" for key in ("layout", "xla")))
    return f"{size:>14} {cell['precision']:>15} {layout:>6} {cell['norm']:>12} {xla:>3}"


def _figures(found: dict[str, Any]) -> str:
    if "words" in found:
        return str(found["words"])
    times = f"{found['ms_synced']:9.2f} {found['ms_dispatch']:9.2f} {found['ms_pipelined']:10.2f}"
    rates = f"{found['pictures_per_s']:11.1f} {found['first_step_s']:8.1f}"
    return f"{times} {rates} {found['peak_bytes'] / 2**20:6.0f} MiB {found['predicted_bytes'] / 2**20:6.0f} MiB"

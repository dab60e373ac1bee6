"""What a training step must do on any kind of device, each check in a process of its own; tests/training/test_gpu.py.

    python -m tests.support.on_devices CHECK CPU|GPU [recipe as JSON]

A process of its own, because TensorFlow's devices cannot be divided any more once they are in use. The last line of
stdout is what was found, as JSON.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from segtrain.config import Recipe
from segtrain.process import before_tensorflow
from tests.support.places import REPOSITORY

SIZE = (32, 48, 4)
MODEL = ("model.filters=8", "model.depth=2", "model.norm=none")
LOGICAL_GPU_MIB = 4096
"""Of each of two logical GPUs on one card."""
SMALL_GPU_MIB = 512
"""Of the GPU that is to run out of memory."""
CPU_TOO_LARGE = (2**20, 2**30)
"""Bytes in rows and columns, together more than an address space holds."""
LEAVE_AFTER_ASKED = 5
"""Steps that are asked about before the run is to leave."""


def run_check(check: str, kind: str, recipe: Recipe | None = None, *, timeout_s: float = 900.0) -> dict[str, Any]:
    """What a check finds, from a process of its own; what that writes to stderr is shown where it fails."""
    command = [sys.executable, "-m", "tests.support.on_devices", check, kind]
    command += [json.dumps(recipe.to_dict())] if recipe else []
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, f"{check} on {kind}: code {done.returncode}\n{done.stderr[-4000:]}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def missing_gpu() -> str | None:
    """What is missing for a test on a GPU; None where TensorFlow sees one."""
    if run_check("count", "GPU")["devices"]:
        return None
    if shutil.which("nvidia-smi") is None:
        return "TensorFlow sees no GPU: this machine has no NVIDIA driver (nvidia-smi is missing)"
    return (
        "TensorFlow sees no GPU, though nvidia-smi is there: the CUDA libraries are missing (pip install -e '.[gpu]')"
    )


def count(kind: str) -> dict[str, Any]:
    """Devices that TensorFlow sees."""
    import tensorflow as tf

    return {"devices": len(tf.config.list_physical_devices(kind))}


def gradients(kind: str) -> dict[str, Any]:
    """Relative differences (L2) of a first step's gradients from those in float64 on the CPU."""
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)
    # HeNormal draws other numbers in float64, so all start from those of float32.
    start = [variable.numpy() for variable in _sgd_bench("CPU:0", "float32").model.variables]
    exact = _first_gradients("CPU:0", "float64", start)
    found = {name: _first_gradients(f"{kind}:0", name, start) for name in ("float32", "mixed_bfloat16")}
    return {name: float(np.linalg.norm(one - exact) / np.linalg.norm(exact)) for name, one in found.items()}


def _sgd_bench(device: str, precision: str) -> Any:
    from tests.bench.gpu_bench import Bench

    sgd = ("optimizer.kind=sgd", "optimizer.learning_rate=1.0", f"train.precision={precision}")
    return Bench(device, [*MODEL, *sgd], SIZE)


def _first_gradients(device: str, precision: str, start: list[np.ndarray]) -> np.ndarray:
    """With plain SGD and a rate of 1 the change of the weights is the gradient."""
    bench = _sgd_bench(device, precision)
    for variable, value in zip(bench.model.variables, start, strict=True):
        variable.assign(value)
    before = bench.weights().astype(np.float64)
    bench.result(bench.batch(), 0)
    return before - bench.weights().astype(np.float64)


def overflow(kind: str) -> dict[str, Any]:
    """In mixed_float16 a sound step, and one with an infinity in a picture."""
    from tests.bench.gpu_bench import Bench

    half = ("train.precision=mixed_float16", "train.initial_loss_scale=128")
    bench = Bench(f"{kind}:0", [*MODEL, *half], SIZE)
    start = bench.weights()
    sound = bool(bench.result(bench.batch(), 0).applied)
    before = bench.weights()
    applied = bool(bench.result(bench.batch(damaged=True), 1).applied)
    return {
        "sound_applied": sound,
        "sound_changed": not np.array_equal(start, before),
        "damaged_applied": applied,
        "damaged_changed": not np.array_equal(before, bench.weights()),
        "scale": float(bench.step.loss_scale.scale.numpy()),
    }


def out_of_memory(kind: str) -> dict[str, Any]:
    """The message of a device that runs out of memory, and whether a step of a size that fits works afterwards.

    On a GPU it is a step of training that does not fit. On a CPU that would end the process, so there it is a tensor.
    """
    import tensorflow as tf

    from tests.bench.gpu_bench import Bench

    if kind == "GPU":
        _divide(kind, 1, SMALL_GPU_MIB)
    try:
        if kind == "GPU":
            too_large = Bench("GPU:0", [*MODEL, "model.filters=64"], (512, 512, 16))
            too_large.result(too_large.batch(), 0)
        else:
            tf.raw_ops.Empty(shape=CPU_TOO_LARGE, dtype=tf.uint8)
        message, kind_of_error = None, None
    except Exception as error:  # which class it has, and what it says, is the result
        message, kind_of_error = str(error), f"{type(error).__module__}.{type(error).__name__}"
    small = Bench(f"{kind}:0", [*MODEL], SIZE)
    return {"message": message, "error": kind_of_error, "loss_afterwards": small.result(small.batch(), 0).loss}


def two_devices(kind: str, recipe: Recipe) -> dict[str, Any]:
    """The same run on one and on two logical devices: losses, and the weights of the last checkpoint."""
    from segtrain.runs.status import World
    from segtrain.training.loop import train

    _divide(kind, 2, LOGICAL_GPU_MIB)
    gpus = int(kind == "GPU")
    ends: list[dict[str, np.ndarray]] = []
    losses = []
    for replicas in (1, 2):
        of_these = recipe.updated({"run.name": f"of-{replicas}"})
        train(of_these, World(replicas_per_worker=replicas, gpus_per_worker=gpus))
        losses.append([line["loss"] for line in _steps(of_these)])
        ends.append(_last_checkpoint(of_these))
    assert ends[0].keys() == ends[1].keys()
    weights = [name for name in ends[0] if name.startswith("model/")]
    difference = max(float(np.max(np.abs(ends[0][name] - ends[1][name]))) for name in weights)
    return {"losses": losses, "weights": difference}


def resumed(kind: str, recipe: Recipe) -> dict[str, Any]:
    """A run that left after some steps and went on, against one that did not: bit for bit."""
    from segtrain.runs.status import Driver, Left, World
    from segtrain.training.loop import train

    world = World(gpus_per_worker=int(kind == "GPU"))
    whole, halves = (recipe.updated({"run.name": name}) for name in ("whole", "halves"))
    train(whole, world)
    asked = 0

    def wants_to_leave() -> bool:
        nonlocal asked
        asked += 1
        return asked > LEAVE_AFTER_ASKED

    left_at = None
    try:
        train(halves, world, Driver(wants_to_leave=wants_to_leave))
    except Left as left:
        left_at = left.step
    train(halves, world)
    ends = [_last_checkpoint(one) for one in (whole, halves)]
    assert ends[0].keys() == ends[1].keys()
    return {
        "left_at": left_at,
        "steps": len(_steps(whole)),
        "same_losses": _steps(whole) == _steps(halves),
        "differing": [name for name in ends[0] if ends[0][name].tobytes() != ends[1][name].tobytes()],
        "arrays": len(ends[0]),
    }


def _divide(kind: str, parts: int, mib: int) -> None:
    """The first device of this kind as several logical ones, of so much memory where they are GPUs."""
    import tensorflow as tf

    part = tf.config.LogicalDeviceConfiguration(memory_limit=mib if kind == "GPU" else None)
    device, *others = tf.config.list_physical_devices(kind)
    tf.config.set_logical_device_configuration(device, [part] * parts)
    if kind == "GPU" and others:
        tf.config.set_visible_devices([device], "GPU")


def _steps(recipe: Recipe) -> list[dict[str, Any]]:
    """Lines of `metrics.jsonl` on single steps, without times."""
    lines = map(json.loads, (Path(recipe.run.folder) / "metrics.jsonl").read_text().splitlines())
    return [{key: line[key] for key in ("step", "loss", "dice")} for line in lines if line["kind"] == "step"]


def _last_checkpoint(recipe: Recipe) -> dict[str, np.ndarray]:
    last = max((Path(recipe.run.folder) / "checkpoints").glob("step-*"))
    with np.load(last / "arrays.npz") as stored:
        return {name: stored[name] for name in stored.files}


CHECKS = {one.__name__: one for one in (count, gradients, overflow, out_of_memory, two_devices, resumed)}


if __name__ == "__main__":
    before_tensorflow()
    name, on, *given = sys.argv[1:]
    print(json.dumps(CHECKS[name](on, *(Recipe.from_dict(json.loads(one)) for one in given))))

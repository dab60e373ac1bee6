"""The training step on a GPU: does it run, is it right, how long does it take. Needs neither Ray nor pyarrow.

    python -m tests.bench.gpu smoke                     the GPUs that TensorFlow sees, a convolution and its gradient
    python -m tests.bench.gpu equal                     first gradients against the CPU, overflow, the same bits twice
    python -m tests.bench.gpu step [--sizes 96x128x16]  a table of step times and of memory against the prediction

Without a GPU it computes on the CPU and says so: `equal` then compares the CPU with itself, and the peak of `step` is
how far the process grew, compilers included. `--out DIR` (`$OUT`, else the working folder) gets `gpu-<what>.json`,
rewritten after every line. Exit code 1 where something is wrong or failed.

`step` runs its cells in a process of their own, and in a new one after a cell that ends it; a cell that fails leaves
its exact words. XLA needs libdevice: XLA_FLAGS=--xla_gpu_cuda_data_dir=/usr/local/cuda where it is not found.
Small enough for a CPU: `step --sizes 48x64x2 --filters 4 --depth 2 --steps 3`.
"""

import argparse
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segtrain.config import Recipe, override
from segtrain.environment import before_tensorflow

REPOSITORY = Path(__file__).parents[2]
Cell = dict[str, Any]

BOUNDS = {"float32 without TF32": 1e-4, "float32 with TF32": 3e-3, "mixed_bfloat16": 3e-2}
"""Largest relative difference (L2, over all gradients) from the CPU's in float32. bfloat16's grows with the depth: on a
CPU it is 1.4e-2 at depth 3 and 8 filters, and 3.9e-2 at depth 4 and 16."""
WARM_UP_STEPS = 3
DETERMINISTIC_STEPS = 3
WORDS_LINES = 12
ON_OFF = {"on": True, "off": False}


class Bench:
    """A network and its step on one device, with a batch of bright ellipses on dark noise."""

    def __init__(self, device: str, settings: Sequence[str], size: tuple[int, int, int]) -> None:
        import tensorflow as tf

        from segtrain.models import build_model
        from segtrain.optimizers import build_optimizer
        from segtrain.training.step import TrainStep

        self.height, self.width, self.pictures = size
        shape = [f"data.height={self.height}", f"data.width={self.width}", f"train.global_batch_size={self.pictures}"]
        self.recipe = override(Recipe(), [*shape, "augment.flip=0.0", *settings])
        self.strategy = tf.distribute.MirroredStrategy([device])
        with self.strategy.scope():
            self.model = build_model(self.recipe.model, dtype_policy=self.recipe.train.precision, seed=7)
            self.step = TrainStep(self.strategy, self.model, build_optimizer(self.recipe.optimizer), self.recipe)

    def batch(self, *, damaged: bool = False) -> Any:
        """On the device. `damaged` plants an infinity in its last picture."""
        from segtrain.data.augment import draw
        from segtrain.data.batches import ReplicaBatch
        from segtrain.training.strategy import place

        random = np.random.default_rng(0)
        images: Any = random.integers(0, 60, (self.pictures, self.height, self.width, 3), np.uint8)
        masks = np.stack([self._ellipse(random) for _ in range(self.pictures)])
        images += masks * np.uint8(180)
        if damaged:
            images = images.astype(np.float32)
            images[-1] = np.inf
        keys = np.arange(self.pictures, dtype=np.int64)
        draws = draw(self.recipe.augment, 0, 0, keys, self.height, self.width)
        weights = np.ones(self.pictures, np.float32)
        return place(self.strategy, [ReplicaBatch(images, masks, weights, keys, draws)])

    def _ellipse(self, random: np.random.Generator) -> np.ndarray:
        """A mask uint8 {0, 1} (H, W, 1)."""
        y, x, height, width = random.uniform(0.3, 0.6, 4) * (self.height, self.width, self.height, self.width)
        rows, columns = np.ogrid[: self.height, : self.width]
        inside = ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 < 0.5
        return inside[..., None].astype(np.uint8)

    def weights(self) -> np.ndarray:
        values = [self.strategy.experimental_local_results(one.value)[0].numpy() for one in self.model.variables]
        return np.concatenate([value.ravel() for value in values])


class Results:
    """What was found, printed line by line and kept in one JSON file."""

    def __init__(self, what: str, out: str) -> None:
        self._path = Path(out) / f"gpu-{what}.json"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._tree: dict[str, Any] = {"what": what, "command": sys.argv, "results": []}
        self.failed = 0

    def facts(self, **facts: Any) -> None:
        self._tree.update(facts)
        print("  ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
        self._write()

    def add(self, line: str, *, ok: bool, **values: Any) -> None:
        self.failed += not ok
        self._tree["results"].append({**values, "ok": ok})
        print(line if ok else f"{line}  FAILED", flush=True)
        self._write()

    def _write(self) -> None:
        self._path.write_text(json.dumps(self._tree, indent=1, default=str))


def devices() -> tuple[list[Any], str]:
    """The GPUs that TensorFlow sees, which take no more memory than they need, and the device to compute on."""
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # every cell is a function of its own, which it would warn of
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    return gpus, "GPU:0" if gpus else "CPU:0"


def tell_machine(results: Results) -> str:
    """Write down versions and GPUs; the device to compute on."""
    import keras
    import tensorflow as tf

    gpus, device = devices()
    build = tf.sysconfig.get_build_info()
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    results.facts(
        tensorflow=tf.__version__,
        keras=keras.__version__,
        cuda=build.get("cuda_version"),
        cudnn=build.get("cudnn_version"),
        gpus=details,
        device=device,
    )
    return device


def smoke(results: Results) -> None:
    """A convolution and its gradient, in each precision."""
    import tensorflow as tf

    device = tell_machine(results)
    for kind in (tf.float32, tf.bfloat16, tf.float16):
        name = f"convolution in {kind.name}"
        try:
            began = time.perf_counter()
            with tf.device(device):
                x = tf.cast(tf.random.normal([4, 64, 64, 16]), kind)
                kernel = tf.cast(tf.random.normal([3, 3, 16, 16]), kind)
                with tf.GradientTape() as tape:
                    tape.watch(kernel)
                    y = tf.reduce_sum(tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME")))
                gradient = tape.gradient(y, kernel)
                finite = bool(tf.reduce_all(tf.math.is_finite(tf.cast(gradient, tf.float32))))
            seconds = time.perf_counter() - began
        except Exception as error:  # whatever it is, its words are the result
            results.add(f"{name}: {words_of(error)}", ok=False, name=name, words=words_of(error))
        else:
            line = f"{name} and its gradient on {gradient.device}: {seconds:.2f} s"
            # A sum over so many products may be beyond float16, which has no larger number than 65,504.
            results.add(line, ok=finite or kind == tf.float16, name=name, seconds=seconds, on=gradient.device)


def equal(results: Results, size: tuple[int, int, int], model: list[str]) -> None:
    """First gradients against the CPU's, a planted overflow, and two runs under deterministic ops."""
    import tensorflow as tf

    device = tell_machine(results)
    if device == "CPU:0":
        print("no GPU: the CPU is compared with itself", flush=True)
    reference = _first_gradients("CPU:0", [*model, "train.precision=float32"], size)
    for name, bound in BOUNDS.items():
        precision = "mixed_bfloat16" if name == "mixed_bfloat16" else "float32"
        tf.config.experimental.enable_tensor_float_32_execution(name != "float32 without TF32")
        found = _first_gradients(device, [*model, f"train.precision={precision}"], size)
        difference = float(np.linalg.norm(found - reference) / np.linalg.norm(reference))
        line = f"gradients, {name} on {device} against float32 on CPU:0: {difference:.1e} (at most {bound:.0e})"
        results.add(line, ok=difference < bound, name=name, difference=difference, bound=bound, device=device)
    _overflow(results, device, size, model)
    _bits(results, device, size, model)


def _first_gradients(device: str, settings: list[str], size: tuple[int, int, int]) -> np.ndarray:
    """With plain SGD and a rate of 1 the change of the weights is the gradient."""
    bench = Bench(device, [*settings, "optimizer.kind=sgd", "optimizer.learning_rate=1.0", "model.norm=none"], size)
    before = bench.weights()
    bench.step(bench.batch(), 0)
    return before - bench.weights()


def _overflow(results: Results, device: str, size: tuple[int, int, int], model: list[str]) -> None:
    """A sound step in mixed_float16 is applied; one with an infinity is skipped, and the loss scale halves."""
    bench = Bench(
        device, [*model, "train.precision=mixed_float16", "train.initial_loss_scale=128", "model.norm=none"], size
    )
    sound = bool(bench.step(bench.batch(damaged=False), 0).applied)
    before, scale = bench.weights(), float(bench.step.loss_scale.scale.numpy())
    applied = bool(bench.step(bench.batch(damaged=True), 1).applied)
    unchanged = bool(np.array_equal(before, bench.weights()))
    halved = float(bench.step.loss_scale.scale.numpy()) == scale / 2
    line = f"float16: sound step applied {sound}; overflow skipped {not applied}, weights kept {unchanged}, "
    line += f"scale halved {halved}"
    ok = sound and not applied and unchanged and halved
    results.add(line, ok=ok, name="overflow", sound=sound, skipped=not applied, unchanged=unchanged, halved=halved)


def _bits(results: Results, device: str, size: tuple[int, int, int], model: list[str]) -> None:
    """Comes last: deterministic ops stay on."""
    import keras
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    ends = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        bench = Bench(device, [*model, "train.deterministic=true", "model.dropout=0.2"], size)
        for number in range(DETERMINISTIC_STEPS):
            bench.step(bench.batch(), number)
        ends.append(bench.weights())
    same = bool(np.array_equal(*ends))
    line = f"two runs of {DETERMINISTIC_STEPS} steps under deterministic ops on {device}: bit-equal {same}"
    results.add(line, ok=same, name="deterministic", device=device)


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
    import tensorflow as tf

    tf.keras.backend.clear_session()
    tf.config.optimizer.set_experimental_options({"layout_optimizer": cell["layout"]})
    bench = Bench(
        device, [*cell["model"], f"train.precision={cell['precision']}", *_settings(cell, device)], cell["size"]
    )
    batch = bench.batch()
    at_rest = _start_of_peak(device)
    began = time.perf_counter()
    float(bench.step(batch, 0).loss)
    first_s = time.perf_counter() - began
    for number in range(1, WARM_UP_STEPS):
        float(bench.step(batch, number).loss)
    synced, dispatched = [], []
    for number in range(cell["steps"]):
        began = time.perf_counter()
        result = bench.step(batch, number)
        dispatched.append(1000 * (time.perf_counter() - began))
        float(result.loss)
        synced.append(1000 * (time.perf_counter() - began))
    began = time.perf_counter()
    for number in range(cell["steps"]):
        result = bench.step(batch, number)
    float(result.loss)
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


def words_of(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _name(cell: Cell) -> str:
    size, layout, xla = ("x".join(map(str, cell["size"])), *("on" if cell[key] else "off" for key in ("layout", "xla")))
    return f"{size:>14} {cell['precision']:>15} {layout:>6} {cell['norm']:>12} {xla:>3}"


def _figures(found: dict[str, Any]) -> str:
    if "words" in found:
        return str(found["words"])
    times = f"{found['ms_synced']:9.2f} {found['ms_dispatch']:9.2f} {found['ms_pipelined']:10.2f}"
    rates = f"{found['pictures_per_s']:11.1f} {found['first_step_s']:8.1f}"
    return f"{times} {rates} {found['peak_bytes'] / 2**20:6.0f} MiB {found['predicted_bytes'] / 2**20:6.0f} MiB"


def _size(text: str) -> tuple[int, int, int]:
    height, width, pictures = (int(part) for part in text.split("x"))
    return height, width, pictures


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("smoke", "equal", "step", "cells"))
    parser.add_argument("--out", default=os.environ.get("OUT", "."))
    sizes = "height x width x pictures, separated by commas"
    parser.add_argument("--sizes", default="96x128x16,640x960x4,1280x1918x2", help=f"for `step`: {sizes}")
    parser.add_argument("--size", default="96x128x4", help="for `equal`")
    parser.add_argument("--precisions", default="float32,mixed_bfloat16")
    parser.add_argument("--layout", default="on,off", help="TensorFlow's layout optimizer")
    parser.add_argument("--norms", default="none,batch,synchronized")
    parser.add_argument("--xla", default="off,on")
    parser.add_argument("--filters", type=int, help="32 for `step`, 8 for `equal`")
    parser.add_argument("--depth", type=int, help="4 for `step`, 3 for `equal`")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cell-timeout-s", type=float, default=300.0)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.what == "cells":
        run_cells()
        return 0
    before_tensorflow()
    filters, depth = (8, 3) if args.what == "equal" else (32, 4)
    model = [f"model.filters={args.filters or filters}", f"model.depth={args.depth or depth}"]
    results = Results(args.what, args.out)
    if args.what == "smoke":
        smoke(results)
    elif args.what == "equal":
        equal(results, _size(args.size), model)
    else:
        axes = (args.sizes, args.precisions, args.layout, args.norms, args.xla)
        cells = [
            {
                "size": _size(size),
                "precision": precision,
                "layout": ON_OFF[layout],
                "norm": norm,
                "xla": ON_OFF[xla],
                "model": model,
                "steps": args.steps,
            }
            for size, precision, layout, norm, xla in itertools.product(*(axis.split(",") for axis in axes))
        ]
        step(results, cells, cell_timeout_s=args.cell_timeout_s)
    print(f"{results.failed} failed" if results.failed else "all right", flush=True)
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The training step on a GPU: does it run, is it right, how long does it take. No Ray; pyarrow for `loop` alone.

    python -m tests.bench.gpu smoke                     the GPUs that TensorFlow sees, a convolution and its gradient
    python -m tests.bench.gpu equal                     first gradients against the CPU, overflow, the same bits twice
    python -m tests.bench.gpu step [--sizes 96x128x16]  a table of step times and of memory against the prediction
    python -m tests.bench.gpu split [--sizes 96x128x16] forward, backward, sums, update; dispatch alone against synced
    python -m tests.bench.gpu collective [--mib 1,64]   sums over two logical devices, by bytes and number of tensors
    python -m tests.bench.gpu loop [--pictures 200]     the real loop on drawn pictures: rate, waiting, utilization

Without a GPU it computes on the CPU and says so: `equal` then compares the CPU with itself, and the peak of `step` is
how far the process grew, compilers included. `--out DIR` (`$OUT`, else the working folder) gets `gpu-<what>.json`,
rewritten after every line; at the end all of it is printed in one line of JSON. Exit code 1 where something is wrong
or failed.

`step` runs its cells in a process of their own, and in a new one after a cell that ends it; a cell that fails leaves
its exact words. XLA needs libdevice: XLA_FLAGS=--xla_gpu_cuda_data_dir=/usr/local/cuda where it is not found.
Small enough for a CPU: `step --sizes 48x64x2 --filters 4 --depth 2 --steps 3`, `split` likewise,
`collective --mib 0.1 --tensors 1,4 --steps 3`, `loop --sizes 48x64x4 --filters 4 --depth 2 --pictures 20`.
`split` and `loop` take each size with the first of the precisions, norms and xla; two GPUs that are one card's logical
ones sum by TensorFlow's own ring, which says nothing about NCCL.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Sequence

import numpy as np

from segtrain.process import before_tensorflow
from tests.bench.gpu_bench import Bench, Results, devices, two_devices, words_of
from tests.bench.gpu_cells import run_cells, step
from tests.bench.gpu_loop import loop
from tests.bench.gpu_parts import collective, split

BOUNDS = {"float32 without TF32": 1e-4, "float32 with TF32": 3e-3, "mixed_bfloat16": 3e-2}
"""Largest relative difference (L2, over all gradients) from the CPU's in float32. bfloat16's grows with the depth: on a
CPU it is 1.4e-2 at depth 3 and 8 filters, and 3.9e-2 at depth 4 and 16."""
DETERMINISTIC_STEPS = 3
ON_OFF = {"on": True, "off": False}


def tell_machine(results: Results, pair: list[str] | None = None) -> str:
    """Write down versions and GPUs; the device to compute on. `pair` are the two that have been made already."""
    import keras
    import tensorflow as tf

    gpus, device = (tf.config.list_physical_devices("GPU"), pair[0]) if pair else devices()
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
    bench.result(bench.batch(), 0)
    return before - bench.weights()


def _overflow(results: Results, device: str, size: tuple[int, int, int], model: list[str]) -> None:
    """A sound step in mixed_float16 is applied; one with an infinity is skipped, and the loss scale halves."""
    bench = Bench(
        device, [*model, "train.precision=mixed_float16", "train.initial_loss_scale=128", "model.norm=none"], size
    )
    sound = bool(bench.result(bench.batch(damaged=False), 0).applied)
    before, scale = bench.weights(), float(bench.step.loss_scale.scale.numpy())
    applied = bool(bench.result(bench.batch(damaged=True), 1).applied)
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
            bench.result(bench.batch(), number)
        ends.append(bench.weights())
    same = bool(np.array_equal(ends[0], ends[1]))
    line = f"two runs of {DETERMINISTIC_STEPS} steps under deterministic ops on {device}: bit-equal {same}"
    results.add(line, ok=same, name="deterministic", device=device)


def _whole_steps(results: Results, args: argparse.Namespace, model: list[str]) -> None:
    """`split` and `loop`, at each size."""
    device = tell_machine(results)
    precision, norm, xla = (axis.split(",")[0] for axis in (args.precisions, args.norms, args.xla))
    xla = str(ON_OFF[xla]).lower()
    settings = [*model, f"train.precision={precision}", f"model.norm={norm}", f"train.xla={xla}"]
    for size in map(_size, args.sizes.split(",")):
        if args.what == "split":
            split(results, device, size, settings, args.steps)
        else:
            gpus = int(device.startswith("GPU"))
            loop(results, size, settings, pictures=args.pictures, epochs=args.epochs, gpus=gpus)


def _size(text: str) -> tuple[int, int, int]:
    height, width, pictures = (int(part) for part in text.split("x"))
    return height, width, pictures


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("smoke", "equal", "step", "split", "collective", "loop", "cells"))
    parser.add_argument("--out", default=os.environ.get("OUT", "."))
    sizes = "height x width x pictures, separated by commas"
    parser.add_argument(
        "--sizes", default="96x128x16,640x960x4,1280x1918x2", help=f"for `step`, `split`, `loop`: {sizes}"
    )
    parser.add_argument("--size", default="96x128x4", help="for `equal`")
    parser.add_argument("--precisions", default="float32,mixed_bfloat16")
    parser.add_argument("--layout", default="on,off", help="TensorFlow's layout optimizer")
    parser.add_argument("--norms", default="none,batch,synchronized")
    parser.add_argument("--xla", default="off,on")
    parser.add_argument("--filters", type=int, help="32, but 8 for `equal`")
    parser.add_argument("--depth", type=int, help="4, but 3 for `equal`")
    parser.add_argument("--steps", type=int, default=20, help="steps, or calls, that are timed")
    parser.add_argument("--mib", default="0.01,1,16,128", help="for `collective`: MiB summed at once")
    parser.add_argument("--tensors", default="1,4,16,64", help="for `collective`: tensors that they are cut into")
    parser.add_argument("--pictures", type=int, default=200, help="for `loop`")
    parser.add_argument("--epochs", type=int, default=3, help="for `loop`; rates are those of the last one")
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
    elif args.what == "collective":
        pair = two_devices()
        tell_machine(results, pair)
        sizes_mib, tensors = [float(one) for one in args.mib.split(",")], [int(one) for one in args.tensors.split(",")]
        collective(results, pair, sizes_mib, tensors, args.steps)
    elif args.what in ("split", "loop"):
        _whole_steps(results, args, model)
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
    results.print_json()
    print(f"{results.failed} failed" if results.failed else "all right", flush=True)
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())

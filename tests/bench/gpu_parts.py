"""Where a step's time goes, and what sums over replicas take; `tests.bench.gpu split` and `collective`."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from tests.bench.gpu_bench import Bench, Results

WARM_UP_CALLS = 3
SUMS_REPEATED = 8
"""Sums in one call of `collective`, one after the other, so that starting the call counts little."""


def split(results: Results, device: str, size: tuple[int, int, int], settings: list[str], calls: int) -> None:
    """Time the parts of a step: forward, forward and backward, sums, update, and the whole.

    Each part is a compiled function of its own, so the parts together are slower than the whole, where TensorFlow
    joins them. `backward` is what the gradients take beyond a forward pass.
    """
    bench = Bench(device, settings, size)
    batch = bench.batch()
    found = {name: _timed(part, calls) for name, part in _parts(bench, batch).items()}
    found["step"] = _timed(lambda: bench.start(batch, 0), calls)
    synced = {name: times["ms_synced"] for name, times in found.items()}
    backward_ms = synced["gradients"] - synced["forward"]
    dispatch_share = found["step"]["ms_dispatch"] / found["step"]["ms_synced"]
    shown = "  ".join(f"{name} {ms:.2f}" for name, ms in synced.items())
    line = f"{'x'.join(map(str, size))}, ms: {shown}  backward {backward_ms:.2f}; "
    line += f"dispatch alone {found['step']['ms_dispatch']:.2f} ({dispatch_share:.0%} of a step)"
    results.add(line, ok=True, size=size, settings=settings, parts=found, backward_ms=backward_ms)


def _parts(bench: Bench, batch: Any) -> dict[str, Callable[[], Any]]:
    """Functions that start one part of the step each; every one returns a value to wait for."""
    import tensorflow as tf

    from segtrain.models.step_context import forward_pass
    from segtrain.pipeline.batches import unpacked
    from segtrain.training.strategy import sum_over_replicas

    step, strategy = bench.step, bench.strategy
    part = unpacked(batch[0])
    number = tf.constant(0, tf.int64)

    def forward(part: Any) -> Any:
        part = step._augmented(part, [])
        known = {"step": number, "keys": part.keys, "weights": part.weights, "whole": True}
        with forward_pass(**known, compiled=step.recipe.train.xla, update_statistics=False):
            return tf.reduce_sum(step.model(part.images, training=True))

    def gradients(part: Any) -> Any:
        return step._gradients(step._augmented(part, []), number, None, True)

    def sums(tensors: Any) -> Any:
        # An argument has no device yet, which the reduction asks for; what an operation returns has one.
        return sum_over_replicas([tf.identity(tensor) for tensor in tensors])

    with strategy.scope():
        given = strategy.run(tf.function(gradients, autograph=False), args=(part,))[0]
        factors = strategy.run(lambda: step.update.factors(tf.constant(0.0, step.dtype)))

    def of_replicas(part: Callable[..., Any]) -> Any:
        """Compiled, run on all replicas, and brought down to one number that depends on all of it."""

        def run(*args: Any) -> Any:
            values = tf.nest.flatten(part(*args))
            return tf.add_n([tf.cast(tf.reshape(value, [-1])[0], tf.float32) for value in values])

        return tf.function(lambda *args: strategy.run(run, args=args), autograph=False)

    @tf.function(autograph=False)
    def update() -> Any:
        step._apply(given, factors)  # with a rate of 0
        return tf.reduce_sum(strategy.experimental_local_results(step.weights[-1])[0])

    forward_on, gradients_on, sums_on = of_replicas(forward), of_replicas(gradients), of_replicas(sums)

    def local(value: Any) -> Any:
        return strategy.experimental_local_results(value)[0]

    def in_scope(call: Callable[[], Any]) -> Callable[[], Any]:
        def scoped() -> Any:
            with strategy.scope():
                return call()

        return scoped

    return {
        "forward": in_scope(lambda: local(forward_on(part))),
        "gradients": in_scope(lambda: local(gradients_on(part))),
        "sums": in_scope(lambda: local(sums_on(given))),
        "update": in_scope(update),
    }


def collective(results: Results, devices: list[str], mib: list[float], packs: list[int], calls: int) -> None:
    """Time sums of as many MiB over two logical devices, cut into several numbers of tensors."""
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(devices)
    for size_mib in mib:
        for number in packs:
            length = max(1, int(size_mib * 2**20 / 4 / number))
            ms = _timed(_sums(strategy, length, number), calls)["ms_synced"] / SUMS_REPEATED
            rate = 4 * length * number / 2**30 / (ms / 1000)
            line = f"{size_mib:g} MiB in {number} tensors over {' and '.join(devices)}: {ms:.3f} ms, {rate:.2f} GiB/s"
            results.add(line, ok=True, mib=size_mib, tensors=number, ms=ms, gib_per_s=rate, devices=devices)


def _sums(strategy: Any, length: int, number: int) -> Callable[[], Any]:
    """Several sums one after the other: each adds what the one before it gave."""
    import tensorflow as tf

    from segtrain.training.strategy import sum_over_replicas

    def on_replica() -> Any:
        tensors = [tf.ones([length]) for _ in range(number)]
        for _ in range(SUMS_REPEATED):
            # Halved, so that no number grows; a sum starts once the whole of the one before it is there.
            summed = sum_over_replicas(tensors)
            with tf.control_dependencies(summed):
                tensors = [tensor / 2.0 for tensor in summed]
        return tf.add_n([tensor[0] for tensor in tensors])

    compiled = tf.function(lambda: strategy.run(on_replica), autograph=False)

    def start() -> Any:
        with strategy.scope():
            return strategy.experimental_local_results(compiled())[0]

    return start


def _timed(start: Callable[[], Any], calls: int) -> dict[str, float]:
    """Medians in ms: of the call alone, and until its value is on the host."""
    for _ in range(WARM_UP_CALLS):
        start().numpy()
    dispatched, synced = [], []
    for _ in range(calls):
        began = time.perf_counter()
        value = start()
        dispatched.append(1000 * (time.perf_counter() - began))
        value.numpy()
        synced.append(1000 * (time.perf_counter() - began))
    return {"ms_dispatch": statistics.median(dispatched), "ms_synced": statistics.median(synced)}

"""What TensorFlow makes of a training step: `step_graphs.py REPLICAS OUT.json NAME...` counts some settings.

The graphs are those that run after optimization, on CPU devices and without oneDNN, whose kernels exist on CPUs alone.
Collective operations remember the size of their group, so each number of replicas needs a process of its own.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.framework import kernels, op_def_registry

from segtrain.runs.status import World
from segtrain.training.strategy import build_strategy, configure_process
from tests.support.worlds import BATCH, Trained

DEEP = [f"train.global_batch_size={BATCH}", "model.depth=4", "model.filters=2", "model.norm=synchronized"]
SMALL = [f"train.global_batch_size={BATCH}", "model.depth=1", "model.filters=2", "model.norm_groups=2"]
ALL_ON = ["optimizer.amsgrad=true", "train.clip_norm=1.0", "train.ema_momentum=0.99"]
SETTINGS = {
    "adam": DEEP,
    "adamw": [*DEEP, "optimizer.kind=adamw"],
    "rmsprop": [*DEEP, "optimizer.kind=rmsprop"],
    "sgd with momentum": [*DEEP, "optimizer.kind=sgd", "optimizer.momentum=0.9"],
    "all on": [*DEEP, *ALL_ON],
    "no norm": [*DEEP, "model.norm=none"],
    "batch norm": [*DEEP, "model.norm=batch"],
    "depth 2": [*DEEP, "model.depth=2"],
    "wide": [*DEEP, "model.filters=64"],
    "dropout": [*DEEP, "model.dropout=0.2"],
    "dropout, batch of 4": [*DEEP, "model.dropout=0.2", "train.global_batch_size=4"],
    "small": SMALL,
    "small, synchronized": [*SMALL, "model.norm=synchronized"],
    "small, batch norm": [*SMALL, "model.norm=batch"],
    "small, group norm": [*SMALL, "model.norm=group"],
    "small, bfloat16": [*SMALL, "model.norm=synchronized", "train.precision=mixed_bfloat16"],
    "small, float16": [*SMALL, "model.norm=synchronized", "train.precision=mixed_float16"],
    "small, float64": [*SMALL, "model.norm=synchronized", "train.precision=float64"],
    "small, rematerialized": [*SMALL, "train.rematerialize=true"],
    "small, dice over the batch": [*SMALL, "loss.dice_over=batch"],
    "small, all on": [*SMALL, *ALL_ON],
    "small, adamw": [*SMALL, "optimizer.kind=adamw"],
    "small, rmsprop": [*SMALL, "optimizer.kind=rmsprop", "optimizer.centered=true"],
    "small, sgd": [*SMALL, "optimizer.kind=sgd"],
    "small, augmented": [*SMALL, "augment.flip=0.5", "augment.rotate_degrees=10", "augment.brightness=0.2"],
    "small, dropout": [*SMALL, "model.dropout=0.2"],
    "small, fcn": ["model.kind=fcn", f"train.global_batch_size={BATCH}"],
}
FREE = {
    *("Const", "Placeholder", "Identity", "IdentityN", "NoOp", "StopGradient", "Reshape", "Squeeze", "ExpandDims"),
    *("_Arg", "_Retval", "_DeviceArg", "_DeviceRetval", "_HostArg", "VarHandleOp", "ReadVariableOp"),
    *("_Send", "_Recv", "_HostSend", "_HostRecv", "CollectiveReduceV2"),
}
"""Operations that start no kernel of their own, and transfers, which are counted beside."""
CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
"""Calls of functions, whose nodes are counted; and of what XLA compiles."""


def optimized(strategy: tf.distribute.Strategy, world: World, settings: list[str]) -> Any:
    """Take one step on a batch without padding; returns the optimized graph of the first device."""
    trained = Trained(strategy, world, settings)
    batch = trained.batch(0)
    context.context().enable_run_metadata()
    trained.step(batch, 0, 0.01, whole=True)
    graphs = context.context().export_run_metadata().function_graphs
    context.context().disable_run_metadata()
    return max((part for found in graphs for part in found.partition_graphs), key=lambda part: len(part.node))


def counts(graph: Any) -> dict[str, Any]:
    """Of one device's graph. What XLA compiles counts as one operation."""
    ops = Counter(node.op for node in _all_nodes(graph))
    return {
        "operations": sum(ops.values()),
        "kernels": sum(number for op, number in ops.items() if op not in FREE | CALLS),
        "collectives": ops["CollectiveReduceV2"],
        "sends": ops["_Send"] + ops["_HostSend"],
        "without GPU kernel": sorted({node.op for node in _all_nodes(graph) if _kernel(node) is None} - FREE),
        "back to the host": sorted(set(back_to_the_host(graph))),
        "packs that wait for the first level": _packs(graph),
    }


def _all_nodes(graph: Any) -> Iterator[Any]:
    """Nodes of a graph and of the functions that it calls, once each, but for those that XLA compiles."""
    yield from graph.node
    for function in graph.library.function:
        if not function.attr["_XlaMustCompile"].b:
            yield from function.node_def


def _kernel(node: Any) -> Any:
    """The registered GPU kernel that would run a node; None where there is none."""
    for kernel in kernels.get_registered_kernels_for_op(node.op).kernel:
        if kernel.device_type in ("GPU", "DEFAULT") and all(
            node.attr[constraint.name].type in constraint.allowed_values.list.type for constraint in kernel.constraint
        ):
            return kernel
    return None


def _arguments(node: Any, described: Any) -> list[str]:
    """The name of the argument that each input, or each output, of a node belongs to."""
    names = []
    for argument in described:
        count = 1
        if argument.number_attr:
            count = node.attr[argument.number_attr].i
        elif argument.type_list_attr:
            count = len(node.attr[argument.type_list_attr].list.type)
        names += [argument.name] * count
    return names


def back_to_the_host(graph: Any) -> Iterator[str]:
    """Operations of a graph that read on the host what a kernel on the GPU has written."""
    nodes = {node.name: node for node in graph.node}
    for node in graph.node:
        kernel = _kernel(node)
        if kernel is None or node.op in FREE:
            continue
        names = _arguments(node, op_def_registry.get(node.op).input_arg)
        for name, source in zip(names, (name for name in node.input if not name.startswith("^")), strict=True):
            if name in kernel.host_memory_arg and _on_device(nodes, source):
                yield node.op


def _on_device(nodes: dict[str, Any], source: str) -> bool:
    """Whether an output, `name:index`, lies in the memory of the GPU."""
    name, _, index = source.partition(":")
    node = nodes[name]
    if node.op in ("Identity", "Reshape", "Squeeze", "ExpandDims", "StopGradient"):
        return _on_device(nodes, node.input[0])
    kernel = _kernel(node)
    if kernel is None or node.op in FREE:
        return False
    return _arguments(node, op_def_registry.get(node.op).output_arg)[int(index or 0)] not in kernel.host_memory_arg


def _packs(graph: Any) -> list[bool]:
    """For each sum of gradients, in any order: whether it waits for a gradient of the first level's kernels."""
    nodes = {node.name: node for node in graph.node}
    return [
        any("down0" in name and "BackpropFilter" in name for name in _before(nodes, node.name))
        for node in graph.node
        if node.op == "CollectiveReduceV2" and any("BackpropFilter" in name for name in _summed(nodes, node))
    ]


def _summed(nodes: dict[str, Any], collective: Any) -> Iterator[str]:
    """Names of the values that were joined for a sum."""
    joined = nodes[_name(collective.input[0])]
    for source in joined.input:
        node = nodes[_name(source)]
        yield _name(node.input[0]) if node.op == "Reshape" else node.name


def _before(nodes: dict[str, Any], name: str) -> set[str]:
    """All that a node waits for, control edges included."""
    found, left = set(), [name]
    while left:
        for source in map(_name, nodes[left.pop()].input):
            if source not in found:
                found.add(source)
                left.append(source)
    return found


def _name(source: str) -> str:
    return source.removeprefix("^").partition(":")[0]


if __name__ == "__main__":
    world = World(replicas_per_worker=int(sys.argv[1]))
    configure_process(world, deterministic=False, seed=0, tf32=True)
    strategy = build_strategy(world)
    found = {name: counts(optimized(strategy, world, SETTINGS[name])) for name in sys.argv[3:]}
    Path(sys.argv[2]).write_text(json.dumps(found))

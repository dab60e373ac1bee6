"""How a step's time goes with the number of GPUs, on paper: 1 to 512 of them, from figures that were measured.

    .venv/bin/python -m tests.bench.scaling                     seconds: tables, and published figures beside the model
    .venv/bin/python -m tests.bench.scaling --measure           two minutes: input, packing and a step on this machine
    .venv/bin/python -m tests.bench.scaling jobs/recipes/carvana.yaml model.filters=64 --pictures-per-gpu 4

A step is the longest of three things that go on at once:
- the device's work: computing, waiting for the slowest GPU, adding up gradients and batch norm's statistics, and a
  share of copying checkpoints to the host;
- reading and decoding the next pictures on the machine's cores;
- in an epoch without a cache, fetching their bytes from S3.

What a step starts, moves and sums is counted, and its time an estimate from that (`tests/bench/counted_step.py`).
Nothing of the sums counts as hidden behind the gradient, though packs of it are summed while the rest is computed.
Collectives are those that NCCL makes: rings or trees, over the GPUs of a machine first and between machines then, each
GPU with its share. In the first tables each GPU keeps its pictures (weak scaling), so the global batch grows; in the
third one the global batch is the recipe's, as in a run of segtrain, and the pictures of a GPU become fewer.

What is assumed stands in `Node` and in the constants, with a unit in its name and its source beside it. "Assumed" means
that there is no source: no GPU was at hand. Published figures are read from `../shared/research/segmentation.md`, part
2, which has them from the READMEs of NVIDIA's DeepLearningExamples (`UNet_Medical` in TensorFlow 2, `nnUNet`).
"""

import argparse
import io
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from statistics import NormalDist

import numpy as np
from rich.console import Console
from rich.table import Table

from segtrain.config import Recipe, UNetConfig, load_recipe
from segtrain.memory import parameters
from segtrain.memory.footprint import slots
from segtrain.memory.kernels import DNN
from segtrain.memory.operations import OperationList, network
from tests.bench.counted_step import collectives, launching_s, layers_with_weights, norm_bytes
from tests.bench.measuring import run_module

GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
FLOAT32_BYTES = 4
GBIT_BYTES = 1e9 / 8

LINK_SHARE = 0.75
"""What collectives keep of a link's rate inside a machine. Assumed."""
NETWORK_SHARE = 0.8
"""Likewise of the network's, over several connections: AWS limits a single one to 5 to 10 Gbit/s (EC2 user guide,
"Amazon EC2 instance network bandwidth"). Assumed."""
STEP_SPREAD = 0.01
"""Standard deviation of one GPU's step over its mean. Assumed."""
TO_HOST_BYTES_PER_S = 6e9
"""Weights and slots on their way from a GPU into ordinary memory. Assumed, half of what PCIe 3 x16 has."""
PUT_BYTES_PER_S = 200e6
"""A checkpoint on its way into S3. Assumed; it goes up in parts, several at once."""
GET_BYTES_PER_S = 1.25e9
"""What a machine gets from S3. Assumed: 10 Gbit/s, of large machines' 40 to 400."""
MEMORY_SHARE = 0.8
"""What passes over activations keep of a memory's rate. Assumed."""
PICTURE_BYTES = 104e3
"""Stored bytes of a Carvana picture (100 kB of JPEG on average) and its mask (3.5 kB), research/data-loading.md."""
PAIRS_PER_CORE_S = 230 / 2
"""Decoded at full resolution: 224 to 245 a second on 2 cores (`make bench-input`, notes of the project)."""
PACKED_BYTES_PER_S = 190e6
"""A checkpoint's arrays into a file, and its sha256: `--measure` on one of two busy cores."""


@dataclass(frozen=True)
class Node:
    """A machine with GPUs, and what its links give to collectives."""

    name: str
    gpus: int
    link_bytes_per_s: float
    """Of one GPU inside the machine, each way."""
    link_latency_s: float
    network_bytes_per_s: float
    """Of the machine, each way."""
    network_latency_s: float
    cores: int
    speed: float = 1.0
    """Of one GPU's convolutions, over an A100's."""
    memory_bytes_per_s: float = math.inf
    """Of one GPU, for passes over activations."""


# vCPUs, GPUs and network: AWS's pages of the instance types. NVLink 3 gives an A100 300 GB/s each way and NVLink 2 a
# V100 150 GB/s (NVIDIA's data sheets); an A10G has PCIe 4 alone, through the host, of which 16 GB/s are assumed. Hops:
# 5 us inside a machine, 25 us over EFA, 50 us over TCP, all assumed.
# In half precision an A10G multiplies at 70 TFLOP/s where an A100 does at 312, and it has 600 GB/s of memory where an
# A100 of 40 GB has 1,555 (data sheets).
P4D = Node(
    *("p4d.24xlarge", 8, LINK_SHARE * 300e9, 5e-6, NETWORK_SHARE * 400 * GBIT_BYTES, 25e-6, 96),
    memory_bytes_per_s=MEMORY_SHARE * 1555e9,
)
G5 = Node(
    *("g5.12xlarge", 4, LINK_SHARE * 16e9, 5e-6, NETWORK_SHARE * 40 * GBIT_BYTES, 50e-6, 48),
    speed=70 / 312,
    memory_bytes_per_s=MEMORY_SHARE * 600e9,
)
DGX_A100 = replace(P4D, name="DGX A100")
DGX_V100 = replace(P4D, name="DGX-1 V100", link_bytes_per_s=LINK_SHARE * 150e9)
NODES = (P4D, G5)


@dataclass(frozen=True)
class Load:
    """What a step of one GPU is."""

    pictures: float
    picture_s: float
    """Of computing, a picture, on a GPU of speed 1."""
    gradient_bytes: float
    fixed_s: float = 0.0
    """Of one replica's step, however few pictures it has: its kernels are started."""
    fixed_together_s: float | None = None
    """Likewise with several replicas; None where it is the same."""
    passes_bytes: float = 0.0
    """Through the memory, a picture, beside what `picture_s` has."""
    small_collectives: int = 0
    """Sums of a few kB, and every pack of gradients beyond the first, whose bytes `gradient_bytes` has."""
    checkpoint_bytes: float = 0.0
    checkpoint_every_s: float = 60.0
    packed_bytes_per_s: float = PACKED_BYTES_PER_S
    pairs_per_core_s: float = PAIRS_PER_CORE_S
    picture_bytes: float = PICTURE_BYTES


@dataclass(frozen=True)
class Step:
    """Seconds of one step and of its parts."""

    compute_s: float
    gradients_s: float
    statistics_s: float
    waiting_s: float
    checkpoint_s: float
    input_s: float
    storage_s: float
    """From S3, while no cache has the data."""

    @property
    def device_s(self) -> float:
        return self.compute_s + self.gradients_s + self.statistics_s + self.waiting_s + self.checkpoint_s

    @property
    def seconds(self) -> float:
        return max(self.device_s, self.input_s)

    @property
    def first_epoch_s(self) -> float:
        return max(self.seconds, self.storage_s)

    @property
    def bound(self) -> str:
        """What takes longest: of the device's parts where the device is slowest."""
        if self.input_s > self.device_s:
            return "input"
        names = ("compute", "gradients", "statistics", "waiting", "checkpoint")
        return max(names, key=lambda name: float(getattr(self, f"{name}_s")))


def ring_s(size_bytes: float, members: int, bytes_per_s: float, latency_s: float) -> float:
    """A ring's all-reduce: each member sends 2 (n-1)/n of the bytes in 2 (n-1) hops (Patarasuk and Yuan 2009)."""
    hops = 2 * (members - 1)
    return hops / members * size_bytes / bytes_per_s + hops * latency_s


def tree_s(size_bytes: float, members: int, bytes_per_s: float, latency_s: float) -> float:
    """A double binary tree's all-reduce: all bytes up and down, in twice log2(n) hops (Sanders et al. 2009)."""
    if members == 1:
        return 0.0
    return 2 * size_bytes / bytes_per_s + 2 * math.ceil(math.log2(members)) * latency_s


def collective_s(size_bytes: float, members: int, bytes_per_s: float, latency_s: float) -> float:
    """The faster of both, as NCCL chooses: trees for few bytes, rings for many."""
    choices = (size_bytes, members, bytes_per_s, latency_s)
    return min(ring_s(*choices), tree_s(*choices))


def all_reduce_s(size_bytes: float, gpus: int, node: Node) -> float:
    """Inside the machines and between them, where each GPU sends its share and all of them the network's whole load."""
    inside, machines = min(gpus, node.gpus), -(-gpus // node.gpus)
    return collective_s(size_bytes, inside, node.link_bytes_per_s, node.link_latency_s) + collective_s(
        size_bytes, machines, node.network_bytes_per_s, node.network_latency_s
    )


def slowest_of(members: int) -> float:
    """Expected largest of so many standard normal values, by Blom's formula (1958)."""
    return NormalDist().inv_cdf((members - 0.375) / (members + 0.25))


def step_of(load: Load, gpus: int, node: Node) -> Step:
    """One step with so many GPUs."""
    fixed_s = load.fixed_s if gpus == 1 or load.fixed_together_s is None else load.fixed_together_s
    picture_s = load.picture_s / node.speed + load.passes_bytes / node.memory_bytes_per_s
    compute_s = fixed_s + load.pictures * picture_s
    gradients_s = all_reduce_s(load.gradient_bytes, gpus, node)
    statistics_s = load.small_collectives * all_reduce_s(0.0, gpus, node)
    waiting_s = compute_s * STEP_SPREAD * slowest_of(gpus)
    copying_s = load.checkpoint_bytes / TO_HOST_BYTES_PER_S
    background_s = load.checkpoint_bytes * (1 / load.packed_bytes_per_s + 1 / PUT_BYTES_PER_S)
    # A save waits for the one before it.
    share = (copying_s + max(0.0, background_s - load.checkpoint_every_s)) / load.checkpoint_every_s
    pictures_of_node = load.pictures * min(gpus, node.gpus)
    return Step(
        compute_s=compute_s,
        gradients_s=gradients_s,
        statistics_s=statistics_s,
        waiting_s=waiting_s,
        checkpoint_s=share * (compute_s + gradients_s + statistics_s + waiting_s),
        input_s=pictures_of_node / (load.pairs_per_core_s * node.cores),
        storage_s=pictures_of_node * load.picture_bytes / min(node.network_bytes_per_s, GET_BYTES_PER_S),
    )


def rate_of(load: Load, gpus: int, node: Node) -> float:
    """Pictures a second of so many GPUs together."""
    return gpus * load.pictures / step_of(load, gpus, node).seconds


def share_of(load: Load, global_batch: int, gpus: int) -> Load:
    """A GPU's load where the global batch stays what it is."""
    return replace(load, pictures=global_batch / gpus)


def multiplications(net: OperationList) -> float:
    """Of a forward pass: each weight once a pixel, at an up-convolution once a pixel of what it scales up."""
    return float(
        sum(layer.trainable * min(layer.inputs[0].pixels, layer.output.pixels) for layer in net.operations),
    )


def unpadded_multiplications(size: int, *, filters: int = 64, depth: int = 4, channels: int = 1) -> float:
    """Of a forward pass of the U-Net of 2015, whose convolutions shrink the picture; two classes, no biases."""
    total, inputs, side = 0, channels, size
    down = [filters * 2**level for level in range(depth + 1)]
    for number, outputs in enumerate([*down, *down[-2::-1]]):
        if number > depth:
            total += side**2 * inputs * outputs * 4
            side, inputs = 2 * side, 2 * outputs
        for _ in range(2):
            side -= 2
            total += side**2 * inputs * outputs * 9
            inputs = outputs
        if number < depth:
            side //= 2
    return float(total + side**2 * inputs * 2)


@dataclass(frozen=True)
class Published:
    """A U-Net's pictures a second on one GPU and on the eight of a machine."""

    name: str
    node: Node
    pictures: int
    one: float
    eight: float

    @property
    def speed_up(self) -> float:
        return self.eight / self.one

    def modelled(self) -> Step:
        """The same step by this model, from the figure of one GPU; pictures are in memory and nothing is saved."""
        gradients = FLOAT32_BYTES * parameters(PUBLISHED_MODEL, channels=1)
        return step_of(Load(self.pictures, 1 / self.one, gradients, pairs_per_core_s=math.inf), 8, self.node)

    @property
    def missing_s(self) -> float:
        """Seconds of the published step with eight GPUs that the model does not have."""
        return 8 * self.pictures / self.eight - self.modelled().seconds


PUBLISHED_MODEL = UNetConfig(filters=64, depth=4, norm="none", up="transpose_2x2")
PUBLISHED_SIZE = 572
PUBLISHED = (
    Published("UNet_Medical V100 FP32", DGX_V100, 8, 19.40, 137.11),
    Published("UNet_Medical V100 AMP", DGX_V100, 8, 60.65, 419.99),
    Published("UNet_Medical A100 TF32", DGX_A100, 8, 63.33, 470.50),
    Published("UNet_Medical A100 AMP", DGX_A100, 8, 141.03, 1000.89),
    Published("nnUNet 2D A100 AMP", DGX_A100, 128, 1845.0, 13680.0),
)
"""nnUNet's network has about as many parameters."""
INDUSTRIAL_4, INDUSTRIAL_8 = 691.0, 666.0
"""UNet_Industrial in TensorFlow 1 on 4 and 8 A100s, AMP: the same global batch of 16."""


def missing_share(published: Sequence[Published] = PUBLISHED) -> float:
    """Mean share of a step that eight GPUs in one machine lose beyond what the model has."""
    return sum(each.missing_s / each.modelled().seconds for each in published) / len(published)


def load_of(recipe: Recipe, pictures: int) -> Load:
    """What a recipe asks of a GPU: an estimate.

    Convolutions by the multiplications that NVIDIA's A100 did in mixed precision, in a network without norms; batch
    norms by the bytes that they pass; and the start of counted kernels.
    """
    net = network(
        recipe.model,
        batch=1,
        height=recipe.data.height,
        width=recipe.data.width,
        channels=3,
        precision=recipe.train.precision,
        kernels=DNN,
    )
    published = network(
        PUBLISHED_MODEL, batch=1, height=64, width=64, channels=1, precision="mixed_float16", kernels=DNN
    )
    started_s = launching_s(layers_with_weights(published), 1)
    published_s = 1 / PUBLISHED[3].one - started_s / PUBLISHED[3].pictures
    layers = layers_with_weights(net)
    copies = 1 + slots(recipe.optimizer) + (recipe.train.ema_momentum is not None)
    return Load(
        pictures=pictures,
        picture_s=published_s * multiplications(net) / unpadded_multiplications(PUBLISHED_SIZE),
        fixed_s=launching_s(layers, 1),
        fixed_together_s=launching_s(layers, 2),
        passes_bytes=norm_bytes(net),
        gradient_bytes=FLOAT32_BYTES * net.trainable,
        small_collectives=collectives(net, getattr(recipe.model, "norm", "none")) - 1,
        checkpoint_bytes=FLOAT32_BYTES * net.trainable * copies,
    )


def table_of(load: Load, node: Node, missing: float, global_batch: int | None = None) -> Table:
    """The steps for each number of GPUs; `missing` is the share that a full machine loses besides."""
    what = f"{load.pictures:g} pictures a GPU" if global_batch is None else f"a global batch of {global_batch}"
    table = Table(title=f"{node.name}: {node.gpus} GPUs a machine, {what}, {node.cores} cores", title_justify="left")
    for name in (
        *("GPUs", "machines", "step ms", "gradients", "statistics", "waiting", "pictures/s", "speed-up"),
        *("efficiency", "as published", "input ms", "S3, 1st epoch", "bound by"),
    ):
        table.add_column(name, justify="right")
    loads = {gpus: load if global_batch is None else share_of(load, global_batch, gpus) for gpus in GPUS}
    for gpus, share in loads.items():
        if share.pictures < 1:
            break
        step, rate = step_of(share, gpus, node), rate_of(share, gpus, node)
        faster = rate / rate_of(loads[1], 1, node)
        # What eight published GPUs lose grows with the GPUs of a machine, and not beyond it.
        lost = missing * (min(gpus, node.gpus, 8) - 1) / 7
        table.add_row(
            f"{gpus}",
            f"{-(-gpus // node.gpus)}",
            *(f"{1e3 * each:.1f}" for each in (step.seconds, step.gradients_s, step.statistics_s, step.waiting_s)),
            f"{rate:,.0f}",
            f"{faster:.1f}x",
            f"{faster / gpus:.0%}",
            f"{faster / gpus / (1 + lost):.0%}",
            f"{1e3 * step.input_s:.1f}",
            f"{1e3 * step.storage_s:.1f}",
            step.bound,
        )
    return table


def published_table() -> Table:
    """Published speed-ups of eight GPUs beside the model's."""
    table = Table(title="Eight GPUs in one machine", title_justify="left")
    for name in ("", "published", "model", "step ms", "model ms", "of it gradients", "missing ms", "missing"):
        table.add_column(name, justify="left" if not name else "right")
    for each in PUBLISHED:
        step = each.modelled()
        table.add_row(
            each.name,
            f"{each.speed_up:.2f}x",
            f"{8 * each.pictures / each.one / step.seconds:.2f}x",
            f"{1e3 * 8 * each.pictures / each.eight:.1f}",
            f"{1e3 * step.seconds:.1f}",
            f"{1e3 * step.gradients_s:.2f}",
            f"{1e3 * each.missing_s:.1f}",
            f"{each.missing_s / step.seconds:.1%}",
        )
    return table


def show(console: Console, recipe: Recipe, load: Load) -> None:
    """Print the facts, the tables and what differs."""
    missing = missing_share()
    background_s = load.checkpoint_bytes * (1 / load.packed_bytes_per_s + 1 / PUT_BYTES_PER_S)
    console.print(
        f"{load.gradient_bytes / FLOAT32_BYTES:,.0f} parameters, {load.gradient_bytes / 1e6:.0f} MB of gradients and "
        f"{load.small_collectives} small sums a step; a checkpoint has {load.checkpoint_bytes / 1e6:.0f} MB: "
        f"{load.checkpoint_bytes / TO_HOST_BYTES_PER_S:.2f} s of each {load.checkpoint_every_s:.0f} s stand still, "
        f"{background_s:.1f} s go on behind the steps.\n"
        f"{recipe.data.height}x{recipe.data.width}: {1e3 * load.picture_s:.2f} ms a picture on an A100, by "
        f"multiplications from NVIDIA's {PUBLISHED[3].one} pictures/s at {PUBLISHED_SIZE}x{PUBLISHED_SIZE}, networks "
        f"of fewer filters reach less; and {load.passes_bytes / 1e9:.2f} GB that batch norms pass. Kernels take "
        f"{1e3 * load.fixed_s:.1f} ms a step to start on one GPU. All this is estimated "
        f"from counts. {load.pairs_per_core_s:.0f} pictures/s are decoded a core.\n"
    )
    for node in NODES:
        console.print(table_of(load, node, missing))
    batch = recipe.train.global_batch_size
    console.print(table_of(load, P4D, missing, batch))
    industrial = rate_of(share_of(load, 16, 8), 8, DGX_A100) / rate_of(share_of(load, 16, 4), 4, DGX_A100)
    console.print(
        f'"As published" also takes off what the published machines lose ({missing:.1%} of a step with eight GPUs, '
        f'below). "Statistics" are the small sums, as if no computing went on beside them: one on the '
        f"way forward and one on the way back in each layer of synchronized batch norm.\n"
        f"With two pictures a GPU the model is too kind: from 4 to 8 A100s at a global batch of 16 it gives "
        f"{industrial:.2f}x, NVIDIA's UNet_Industrial {INDUSTRIAL_8 / INDUSTRIAL_4:.2f}x ({INDUSTRIAL_4:.0f} and "
        f"{INDUSTRIAL_8:.0f} pictures/s): small batches do not fill a GPU.\n"
    )
    console.print(published_table())
    models = [8 * each.pictures / each.one / each.modelled().seconds for each in PUBLISHED]
    found = [each.speed_up for each in PUBLISHED]
    lacks_ms = [1e3 * each.missing_s for each in PUBLISHED[:4]]
    console.print(
        f"The model gives {min(models):.2f}x to {max(models):.2f}x, published are {min(found):.2f}x to "
        f"{max(found):.2f}x: in UNet_Medical's steps it lacks {min(lacks_ms):.0f} to {max(lacks_ms):.0f} ms. Gradients "
        f"are not the reason: all four rows add up the same 124 MB, while what is missing goes with the length of the "
        f"step (on V100s FP32 lacks {lacks_ms[0] / lacks_ms[1]:.1f} times what AMP does). What makes GPUs slower "
        f"beside each other does that: one host feeds eight, they share power and cooling, and steps may spread by "
        f"more than {STEP_SPREAD:.0%}. Which of these it is cannot be told without GPUs, so the loss is taken from "
        f"the published figures and kept apart.\n"
        f"Carvana has some 4,000 pictures to train on: with more than 64 GPUs an epoch has fewer than eight steps of "
        f"8 pictures a GPU. Those rows are for larger data sets."
    )


def measured_input() -> float:
    """Pairs a second and core that segtrain's own pipeline decodes at full resolution here."""
    from tests.bench.feed import full_recipe, steady_epochs
    from tests.bench.pairs import make_pairs

    with tempfile.TemporaryDirectory(prefix="segtrain-bench-") as folder:
        pairs = make_pairs(Path(folder), 48, 12)
        return steady_epochs(full_recipe(pairs.root)).rate / (os.cpu_count() or 1)


def measured_packing(size_bytes: float) -> float:
    """Bytes a second, written as a checkpoint is and hashed; at most 400 MB are tried."""
    array = np.random.default_rng(0).random(int(min(size_bytes, 400e6)) // FLOAT32_BYTES, np.float32)
    started = time.perf_counter()
    buffer = io.BytesIO()
    np.savez(buffer, a=array)
    sha256(buffer.getvalue()).hexdigest()
    return array.nbytes / (time.perf_counter() - started)


CPU_STEP = ("model.filters=16", "data.height=96", "data.width=128", "train.global_batch_size=16")


def measured_step_s() -> float:
    """Median seconds of a real `TrainStep` on this CPU."""
    _, _, seconds = run_module("tests.bench.full_resolution", "--child", "plain", "8", *CPU_STEP)
    return float(seconds)


def show_measured_step(console: Console, seconds: float, load: Load) -> None:
    """The same model from a step that was measured: machines like this one instead of GPUs."""
    recipe = load_recipe(None, list(CPU_STEP))
    pictures, cores = recipe.train.global_batch_size, os.cpu_count() or 1
    here = Node("machines like this one, 10 Gbit/s", 1, 1.0, 0.0, NETWORK_SHARE * 10 * GBIT_BYTES, 50e-6, cores)
    cpu = replace(load_of(recipe, pictures), picture_s=seconds / pictures, fixed_s=0.0, passes_bytes=0.0)
    cpu = replace(cpu, fixed_together_s=None)
    cpu = replace(cpu, pairs_per_core_s=load.pairs_per_core_s, packed_bytes_per_s=load.packed_bytes_per_s)
    console.print(f"Measured: {1e3 * seconds:.0f} ms a step of {pictures} pictures, {' '.join(CPU_STEP)}")
    console.print(table_of(cpu, here, 0.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="jobs/recipes/carvana.yaml", metavar="RECIPE.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--pictures-per-gpu", type=int, default=8, help="as in the published figures")
    parser.add_argument("--picture-ms", type=float, help="computing of a picture on a GPU, where it is known")
    parser.add_argument("--pairs-per-core", type=float, help="pictures a second that a core decodes, where it is known")
    parser.add_argument("--checkpoint-every", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--measure", action="store_true", help="input, packing and a CPU's step on this machine")
    parser.add_argument("--json", help="file for every figure")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    load = replace(load_of(recipe, arguments.pictures_per_gpu), checkpoint_every_s=arguments.checkpoint_every)
    cpu_step_s = None
    if arguments.measure:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        cpu_step_s = measured_step_s()
        packed = measured_packing(load.checkpoint_bytes)
        load = replace(load, packed_bytes_per_s=packed, pairs_per_core_s=measured_input())
    if arguments.picture_ms is not None:
        load = replace(load, picture_s=arguments.picture_ms / 1e3)
    if arguments.pairs_per_core is not None:
        load = replace(load, pairs_per_core_s=arguments.pairs_per_core)
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    show(console, recipe, load)
    if cpu_step_s is not None:
        console.print(f"\nMeasured here: a checkpoint is packed at {load.packed_bytes_per_s / 1e6:.0f} MB/s.")
        show_measured_step(console, cpu_step_s, load)
    if arguments.json:
        steps = {node.name: {count: vars(step_of(load, count, node)) for count in GPUS} for node in NODES}
        facts = {"load": vars(load), "steps": steps, "missing_share": missing_share(), "cpu_step_s": cpu_step_s}
        Path(arguments.json).write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()

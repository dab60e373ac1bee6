"""The same U-Net in PyTorch, as the peer of `tests.bench.gpu step`. Needs torch (`pip install -e '.[bench]'`).

    python -m tests.bench.torch_unet [--sizes 96x128x16,640x960x4] [--precisions float32,mixed_bfloat16] [--compile on]

It reads segtrain's own list of layers, so it has the same layers, and refuses to start unless it has as many trainable
parameters as segtrain counts. Padding takes other border pixels, which makes no difference to the time. A step does
what segtrain's does on one device: pictures uint8 to float32, flip, forward, binary cross-entropy and dice, backward,
Adam. The pictures are on the device already. Each cell prints one line of JSON: ms a step until its loss is on the host
(`ms_synced`), ms a step where only the last loss is read (`ms_pipelined`), pictures/s of that, and the peak of memory
on a GPU. Exit code 1 where a cell fails.

norm: `none`, or `batch` (of one device: there `synchronized` is the same). On a CPU:
`--sizes 48x64x2 --filters 4 --depth 2 --steps 3`. Needs neither TensorFlow nor Ray.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from segtrain.architectures.layer_list import layer_list
from segtrain.architectures.layer_records import (
    PICTURE,
    Convolve,
    CropBack,
    LayerRecord,
    MakeLogits,
    NormalizeBatch,
    Pad,
    PoolMax,
    Rectify,
)
from segtrain.config import Recipe, override
from segtrain.memory import parameters

WARM_UP_STEPS = 3
BATCH_NORM_EPSILON = 1e-3
ON_OFF = {"on": True, "off": False}


class Network(nn.Module):
    """The layers of a segtrain network, for pictures (B, 3, H, W) to logits (B, 1, H, W)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.records = layer_list(recipe.model)
        channels = {PICTURE: 3}
        self.layers = nn.ModuleDict()
        for record in self.records:
            into = sum(channels[name] for name in record.inputs)
            layer, channels[record.name] = _layer(record, into, channels[record.inputs[0]])
            if layer is not None:
                self.layers[record.name] = layer

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Logits float32."""
        values = {PICTURE: pictures}
        for record in self.records:
            inputs = [values[name] for name in record.inputs]
            values[record.name] = self._apply_record(record, inputs)
        return values[self.records[-1].name]

    def _apply_record(self, record: LayerRecord, inputs: list[torch.Tensor]) -> torch.Tensor:
        first = inputs[0]
        match record.kind:
            case Pad(multiple):
                down, right = -first.shape[2] % multiple, -first.shape[3] % multiple
                edges = (right // 2, right - right // 2, down // 2, down - down // 2)
                return functional.pad(first, edges, mode="reflect") if any(edges) else first
            case CropBack():
                height, width = inputs[1].shape[2:]
                top, left = (first.shape[2] - height) // 2, (first.shape[3] - width) // 2
                return first[:, :, top : top + height, left : left + width]
            case Rectify():
                return functional.relu(first, inplace=True)
            case PoolMax():
                return functional.max_pool2d(first, 2)
            case MakeLogits():
                with torch.autocast(first.device.type, enabled=False):
                    return self.layers[record.name](first.float())
            case Convolve(relu=relu):
                found = self.layers[record.name](torch.cat(inputs, 1) if len(inputs) > 1 else first)
                return functional.relu(found) if relu else found
            case _:
                return self.layers[record.name](first)


def _layer(record: LayerRecord, into: int, first: int) -> tuple[nn.Module | None, int]:
    """The module of a record, or None where it has no weights, and its channels. `first` are its first input's."""
    match record.kind:
        case Convolve(filters, size, strides, transposed, bias):
            if transposed:
                edge = (size - 1) // 2
                grown = 2 * edge - size + strides  # so that height and width are exactly `strides` times as large
                return nn.ConvTranspose2d(into, filters, size, strides, edge, grown, bias=bias), filters
            return nn.Conv2d(into, filters, size, strides, padding=size // 2, bias=bias), filters
        case NormalizeBatch(_, momentum):
            return nn.BatchNorm2d(into, eps=BATCH_NORM_EPSILON, momentum=1.0 - momentum), into
        case MakeLogits():
            return nn.Conv2d(into, 1, 1), 1
        case Pad() | CropBack() | Rectify() | PoolMax():
            return None, first
        case _:
            raise ValueError(f"{record.name}: {type(record.kind).__name__} is not there in PyTorch")


def checked_network(recipe: Recipe) -> tuple[Network, int]:
    """The network and its number of trainable parameters. Raises ValueError where segtrain counts another number."""
    network = Network(recipe)
    found, expected = sum(one.numel() for one in network.parameters()), parameters(recipe.model)
    if found != expected:
        raise ValueError(f"{found:,} parameters in PyTorch, {expected:,} in segtrain: these are two networks")
    return network, found


def loss_of(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Mean over the pictures of binary cross-entropy and dice loss, in float32; masks float32 (B, 1, H, W)."""
    entropy = functional.binary_cross_entropy_with_logits(logits, masks)
    shares = torch.sigmoid(logits)
    overlap, size = ((one).sum((1, 2, 3)) for one in (shares * masks, shares + masks))
    return entropy + (1.0 - (2.0 * overlap + 1.0) / (size + 1.0)).mean()


def measure(cell: dict[str, Any], device: str, tf32: bool) -> dict[str, Any]:
    """Times in ms of one cell; medians over its steps."""
    height, width, pictures = cell["size"]
    recipe = override(Recipe(), [*cell["model"], f"model.norm={cell['norm']}"])
    torch.manual_seed(7)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    network, count = checked_network(recipe)
    layout = torch.channels_last if cell["channels_last"] else torch.contiguous_format
    network = network.to(device, memory_format=layout).train()
    adam = torch.optim.Adam(network.parameters(), lr=recipe.optimizer.learning_rate, fused=device == "cuda")
    images = torch.randint(0, 256, (pictures, 3, height, width), dtype=torch.uint8)
    images = images.to(device, memory_format=layout)
    masks = (torch.rand(pictures, 1, height, width) < 0.3).to(device, torch.float32)
    forward: Callable[[torch.Tensor], torch.Tensor] = torch.compile(network) if cell["compile"] else network

    def start() -> torch.Tensor:
        """Start a step; its loss, on the device."""
        adam.zero_grad(set_to_none=True)
        flipped = (torch.rand(pictures, 1, 1, 1, device=device) < 0.5).float()
        shown = images.float() / 255.0
        shown = flipped * shown.flip(3) + (1.0 - flipped) * shown
        truth = flipped * masks.flip(3) + (1.0 - flipped) * masks
        with torch.autocast(device, torch.bfloat16, enabled=cell["precision"] == "mixed_bfloat16"):
            logits = forward(shown)
        loss = loss_of(logits.float(), truth)
        loss.backward()
        adam.step()
        return loss.detach()

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    losses = [start().item()]
    first_s = time.perf_counter() - began
    losses += [start().item() for _ in range(WARM_UP_STEPS - 1)]
    synced = []
    for _ in range(cell["steps"]):
        began = time.perf_counter()
        losses.append(start().item())
        synced.append(1000 * (time.perf_counter() - began))
    began = time.perf_counter()
    for _ in range(cell["steps"]):
        last = start()
    losses.append(last.item())
    pipelined = 1000 * (time.perf_counter() - began) / cell["steps"]
    return {
        "parameters": count,
        "ms_synced": statistics.median(synced),
        "ms_pipelined": pipelined,
        "pictures_per_s": 1000 * pictures / pipelined,
        "first_step_s": first_s,
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "loss_first": losses[0],
        "loss_last": losses[-1],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="96x128x16,640x960x4,572x572x8", help="height x width x pictures")
    parser.add_argument("--precisions", default="float32,mixed_bfloat16")
    parser.add_argument("--norms", default="none,batch")
    parser.add_argument("--channels-last", default="on", help="on, off, or both: on,off")
    parser.add_argument("--compile", default="off", help="torch.compile: on, off, or both")
    parser.add_argument("--tf32", choices=tuple(ON_OFF), default="on", help="TF32 in float32")
    parser.add_argument("--filters", type=int, default=32)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    model = [f"model.filters={args.filters}", f"model.depth={args.depth}"]
    failed = 0
    axes = (args.sizes, args.precisions, args.norms, args.channels_last, args.compile)
    for size, precision, norm, layout, compiled in itertools.product(*(axis.split(",") for axis in axes)):
        cell = {
            "size": [int(part) for part in size.split("x")],
            "precision": precision,
            "norm": norm,
            "channels_last": ON_OFF[layout],
            "compile": ON_OFF[compiled],
            "model": model,
            "steps": args.steps,
        }
        try:
            found = measure(cell, device, ON_OFF[args.tf32])
        except Exception as error:  # whatever it is, its words are the result
            failed += 1
            found = {"words": f"{type(error).__name__}: {error}"}
        print(json.dumps({"torch": torch.__version__, "device": name, **cell, **found}), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Memory of predicting a huge picture in tiles, from a memory-mapped picture into a memory-mapped result.

    .venv/bin/python -m tests.bench.tiles [--sides 5000,20000] [--tile 1024] [--network unet]

Each side has a process of its own, which reads its anonymous resident memory (RssAnon in Linux's /proc: what is mapped
from files does not count) every 5 ms. The aim is at most 1.5 GiB more than before the first tile. Rows of tiles are
held, so memory grows with the picture's width and not with its height. Without `--network` NumPy stands in for the
network, so that what is left is the blending.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from segtrain.inference.tiles import blend
from tests.bench.measuring import run_module

AT_MOST = 1.5 * 2**30
SAMPLE_EVERY_S = 0.005
MARKED_ROWS = 997
"""Every so many rows of the picture are white, to be found again in the result."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=lambda text: [int(side) for side in text.split(",")], default=[5000, 20000])
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--network", choices=("none", "unet"), default="none")
    parser.add_argument("--child", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(Path(arguments.child), arguments.sides[0], arguments.tile, arguments.network)))
        return
    table = Table("picture", "peak above the start, MiB", "s", "aim")
    for side in arguments.sides:
        found = in_process(side, arguments.tile, arguments.network)
        within = "met" if found["above"] <= AT_MOST else "missed"
        table.add_row(f"{side} x {side}", f"{found['above'] / 2**20:.0f}", f"{found['seconds']:.1f}", within)
    Console().print(table)


def in_process(side: int, tile: int, network: str = "none") -> dict[str, Any]:
    """`measure` in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="segtrain-bench-") as folder:
        options = ["--child", folder, "--sides", side, "--tile", tile, "--network", network]
        found: dict[str, Any] = run_module("tests.bench.tiles", *options, environment={"TF_CPP_MIN_LOG_LEVEL": "3"})
    return found


def measure(folder: Path, side: int, tile: int, network: str) -> dict[str, Any]:
    """Blend one square picture in `folder`: bytes above the start, seconds, and whether the result is right."""
    picture = np.memmap(folder / "picture", np.uint8, "w+", shape=(side, side, 3))
    target = np.memmap(folder / "result", np.float32, "w+", shape=(side, side, 1))
    picture[::MARKED_ROWS] = 255
    forward = brightest if network == "none" else unet()
    with Watch() as watch:
        started = time.perf_counter()
        blend(picture, target, (tile, tile), 0.25, forward, 2, multiple=16)
        seconds = time.perf_counter() - started
    right = network != "none" or bool(
        np.abs(target[::MARKED_ROWS] - 255).max() < 0.01 and np.abs(target[1::MARKED_ROWS]).max() < 0.01
    )
    return {"above": watch.peak - watch.start, "seconds": seconds, "right": right}


def brightest(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    return tiles.max(axis=-1, keepdims=True).astype(np.float32)


def unet() -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """A small network, 4 filters and 4 levels."""
    import tensorflow as tf

    from segtrain.config import UNetConfig
    from segtrain.models import build_model
    from segtrain.pipeline.augment import to_float

    model = build_model(UNetConfig(filters=4, depth=4, convolutions=1, norm="none"))
    forward = tf.function(lambda tiles: model(to_float(tiles), training=False), reduce_retracing=True)
    return lambda tiles: np.asarray(forward(tf.constant(tiles)))


class Watch:
    """The highest anonymous resident memory of this process while the block runs."""

    def __enter__(self) -> "Watch":
        self.start = self.peak = anonymous()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(SAMPLE_EVERY_S):
            self.peak = max(self.peak, anonymous())


def anonymous() -> int:
    """Bytes of RssAnon, proc_pid_status(5)."""
    lines: Sequence[str] = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()

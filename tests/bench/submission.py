"""Submission: masks to run lengths, and the file of 100,064 rows, in time and memory.

    python -m tests.bench.submission [--rows 100064] [--rounds 5]

Masks are those of a drawn car at 1918x1280; their texts are 9 KB on average, Carvana's 5 KB. Seconds are CPU seconds of
one process (waiting for the disk is not in them), so that other work on the machine disturbs as little as it can. The
encoder is timed in turns with the plain one that it replaced, a difference over the padded mask.
"""

import argparse
import csv
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segtrain import rle
from segtrain.config import SyntheticSource
from segtrain.prediction.part_files import Part, PredictedMask, write_part
from segtrain.prediction.submission import write
from segtrain.prepare.sources.synthetic import draw_cars
from segtrain.storage.files import Storage
from tests.bench.measuring import Measured, run_module, take_turns

HEIGHT, WIDTH, VIEWS = 1280, 1918, 16
ROWS = 100_064
A_PART = 20
AT_LEAST = 400
"""Masks a second a core, from the mask to its row in the file."""
PEAK_MIB = 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--assemble", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.assemble:
        print(json.dumps(assemble(args.assemble)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        masks = drawn_masks(folder / "cars")
        encoded = encoding(masks, args.rounds)
        texts = [rle.encode(mask) for mask in masks]
        for mask, text in zip(masks, texts, strict=True):
            np.testing.assert_array_equal(rle.decode(text, HEIGHT, WIDTH), mask)
        print(f"{args.rows} masks, {np.mean([len(text) for text in texts]) / 1000:.1f} KB of text each on average")
        writing_s = write_parts(folder, texts, args.rows)
        assembled = run_module("tests.bench.submission", "--assemble", folder)
        check(folder, texts, args.rows)
    return report(args.rows, encoded, writing_s, assembled)


def drawn_masks(folder: Path) -> list[np.ndarray]:
    """The masks of one car, and an empty and a full one: bool (1280, 1918)."""
    draw_cars(SyntheticSource(cars=1, views=VIEWS, height=HEIGHT, width=WIDTH), folder)
    with (folder / "train_masks.csv").open() as file:
        masks = [rle.decode(row["rle_mask"], HEIGHT, WIDTH) != 0 for row in csv.DictReader(file)]
    return [*masks, np.zeros((HEIGHT, WIDTH), np.bool_), np.ones((HEIGHT, WIDTH), np.bool_)]


def encoding(masks: Sequence[np.ndarray], rounds: int) -> dict[str, float]:
    """Masks a second a core, of each encoder: the median of its turns."""

    def measure(encode: Callable[[np.ndarray], str]) -> Measured:
        started = time.process_time()
        for mask in masks:
            encode(mask)
        return Measured(len(masks), time.process_time() - started)

    encoders = {"plain": plain_encode, "segtrain": rle.encode}
    assert all(len({encode(mask) for encode in encoders.values()}) == 1 for mask in masks)
    turns = {name: (lambda encode=encode: measure(encode)) for name, encode in encoders.items()}
    measured = take_turns(turns, rounds, lambda number, name: None)
    return {name: float(np.median([one.rate for one in several])) for name, several in measured.items()}


def plain_encode(mask: np.ndarray) -> str:
    """Run lengths from the differences of the whole mask."""
    padded = np.zeros(mask.size + 2, np.int8)
    padded[1:-1] = mask.reshape(-1) != 0
    edges = np.flatnonzero(np.diff(padded))
    starts, ends = edges[::2], edges[1::2]
    return " ".join(map(str, np.column_stack([starts + 1, ends - starts]).reshape(-1).tolist()))


def picture(number: int) -> str:
    return f"{number // 16:012x}_{number % 16 + 1:02}"


def write_parts(folder: Path, texts: Sequence[str], rows: int) -> float:
    """Part files of all pictures in a random order, and the sample in order; the CPU seconds of the parts."""
    order = random.Random(0).sample(range(rows), rows)
    started = time.process_time()
    for start in range(0, rows, A_PART):
        masks = [
            PredictedMask(picture(number), HEIGHT, WIDTH, texts[number % len(texts)])
            for number in order[start : start + A_PART]
        ]
        write_part(Storage(), str(folder / f"parts/{start:06}.part"), Part(masks))
    seconds = time.process_time() - started
    with (folder / "sample.csv").open("w") as file:
        file.write("img,rle_mask\n")
        file.writelines(f"{picture(number)}.jpg,1 1\n" for number in range(rows))
    return seconds


def assemble(folder: Path) -> dict[str, float]:
    """Write the submission in this fresh process: CPU and wall seconds, and MiB of the resident peak on top."""
    parts = sorted(map(str, (folder / "parts").iterdir()))
    before_kib = peak_kib()
    started, cpu_started = time.perf_counter(), time.process_time()
    write(parts, str(folder / "sample.csv"), str(folder / "submission.csv"), Storage())
    return {
        "cpu_s": time.process_time() - cpu_started,
        "wall_s": time.perf_counter() - started,
        "peak_mib": (peak_kib() - before_kib) / 1024,
        "file_mib": (folder / "submission.csv").stat().st_size / 2**20,
    }


def peak_kib() -> int:
    """Resident peak of this process; that of getrusage is handed on by the process that started it."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


def check(folder: Path, texts: Sequence[str], rows: int) -> None:
    """Every row is in its place with the text of its mask."""
    with (folder / "submission.csv").open(newline="") as file:
        assert next(file) == "img,rle_mask\n"
        for number in range(rows):
            assert next(file) == f"{picture(number)}.jpg,{texts[number % len(texts)]}\n", number
        assert next(file, None) is None


def report(rows: int, encoded: dict[str, float], writing_s: float, assembled: dict[str, Any]) -> int:
    """Print the figures; the number of aims that are missed."""
    rate = 1 / (1 / encoded["segtrain"] + (writing_s + assembled["cpu_s"]) / rows)
    print(f"encode, plain          {encoded['plain']:8.0f} masks/s a core")
    print(f"encode, segtrain       {encoded['segtrain']:8.0f}   {encoded['segtrain'] / encoded['plain']:.1f}x")
    print(f"parts written          {rows / writing_s:8.0f}")
    print(f"submission assembled   {rows / assembled['cpu_s']:8.0f}   {assembled['wall_s']:.1f} s on the clock")
    print(f"all of it              {rate:8.0f}   aim: {AT_LEAST}")
    peak, size = assembled["peak_mib"], assembled["file_mib"]
    print(f"resident peak on top   {peak:8.1f} MiB, aim: {PEAK_MIB}; the file has {size:.0f} MiB")
    return (rate < AT_LEAST) + (peak > PEAK_MIB)


if __name__ == "__main__":
    sys.exit(main())

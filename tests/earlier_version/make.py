"""Make what the tests read of commit e885e46: run this in a checkout of that commit, in its environment.

    python make.py /tmp/segtrain-e885e46 && tar -C /tmp -cf - segtrain-e885e46 | xz -9e >segtrain-e885e46.tar.xz

It ends with what a test needs and takes the rest out again, to stay small: reports, TensorBoard's files, checkpoints
that no test goes on from, and of the undisturbed run all but its figures.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH, PAIRS = 48, 64, 20
SMALL = ["model.filters=4", "model.depth=2", "data.height=48", "data.width=64", "train.deterministic=true"]
SMALL += ["evaluation.panels=1", "train.global_batch_size=4", "checkpoint.keep=2"]


def draw(raw: Path) -> None:
    """Dark noise with one bright ellipse each."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for kind in ("images", "masks"):
        (raw / kind).mkdir(parents=True)
    for number in range(PAIRS):
        y, x = random.uniform(16, 32), random.uniform(20, 44)
        inside = ((rows - y) / random.uniform(6, 14)) ** 2 + ((columns - x) / random.uniform(6, 18)) ** 2 < 1
        image = random.integers(0, 60, (HEIGHT, WIDTH, 3)) + 150 * inside[..., None]
        Image.fromarray(image.astype(np.uint8)).save(raw / "images" / f"p{number:02}.jpg", quality=60)
        Image.fromarray(np.uint8(255) * inside).convert("1").save(raw / "masks" / f"p{number:02}.png")


def job(name: str, *arguments: object) -> list[str]:
    return [sys.executable, f"jobs/{name}.py", *map(str, arguments)]


def done(command: list[str]) -> None:
    subprocess.run(command, check=True)


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def family(pid: int) -> list[int]:
    """A process and all that it has started, from their parents in /proc."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def killed_when(command: list[str], ready) -> None:
    process = subprocess.Popen(command)
    while not ready():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    for each in family(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    process.wait()


def main(folder: Path) -> None:
    draw(folder / "raw")
    done(job("prepare", "folder", folder / "set", f"source.path={folder / 'raw'}", "prepare.min_row_groups=1"))
    recipe = folder / "recipe.yaml"
    recipe.write_text("optimizer:\n  learning_rate: 5e-3\n")
    common = [recipe, f"data.root={folder / 'set'}", f"run.storage={folder / 'runs'}", *SMALL]

    done(job("train", *common, "run.name=finished", "train.epochs=2", "model.dropout=0.1"))
    done(job("train", *common, "run.name=amsgrad", "train.epochs=2", "optimizer.amsgrad=true",
             "train.precision=mixed_float16", "train.ema_momentum=0.9"))  # fmt: skip

    killed = ["train.epochs=4", "model.dropout=0.1", "checkpoint.every_steps=3"]
    done(job("train", *common, "run.name=undisturbed", *killed))
    checkpoints = folder / "runs" / "killed" / "checkpoints"
    killed_when(
        job("train", *common, "run.name=killed", *killed),
        lambda: len(list(checkpoints.glob("*/checksums.json"))) >= 2,
    )

    sweep = folder / "sweep.yaml"
    sweep.write_text(
        "optimizer:\n  learning_rate: 5e-3\n"
        "tune:\n  space:\n    optimizer.kind: {choice: [adam, sgd, rmsprop]}\n"
        "  search: grid\n  max_trials: 3\n  max_concurrent: 1\n  stop: none\n"
    )
    trials = folder / "runs" / "sweep" / "trials"
    killed_when(
        job("tune", sweep, *common[1:], "train.epochs=2"),
        lambda: (
            '"finished"' in read(trials / "0000" / "trial.json")
            and any(trials.glob("0001/checkpoints/*/checksums.json"))
        ),
    )
    parts = folder / "masks" / "parts"
    killed_when(
        job("predict", folder / "runs" / "finished", folder / "set", folder / "masks"),
        lambda: len(list(parts.glob("*.part"))) >= 2 if parts.exists() else False,
    )
    shrink(folder / "runs")


def shrink(runs: Path) -> None:
    for path in [*runs.rglob("report.html"), runs / "undisturbed" / "best" / "model.keras"]:
        path.unlink()
    undisturbed = [runs / "undisturbed" / name for name in ("checkpoints", "panels")]
    older = [runs / "amsgrad/checkpoints/step-00000004", runs / "sweep/trials/0000/checkpoints/step-00000008"]
    for folder in [*runs.rglob("tensorboard"), *undisturbed, *older]:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())

"""Runs that are killed, through Ray: they end with the weights of a run that was not."""

import functools
import io
import json
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtrain.config import Recipe, override
from segtrain.errors import RunError
from segtrain.launch import train_run
from segtrain.runs.status import Driver, RunSummary, World
from tests.support.labelled import write_rectangles

pytestmark = pytest.mark.ray

PICTURES, HEIGHT, WIDTH = 40, 32, 48
EPOCHS, STEPS_PER_EPOCH, KILLED_AT, SAVED_EVERY = 2, 4, 6, 2


@dataclass(frozen=True)
class Attempt:
    """A run's folder, and what its workers noted at every step they took."""

    folder: Path

    def weights(self) -> dict[str, np.ndarray]:
        """All variables of the last checkpoint, optimizer included."""
        newest = sorted((self.folder / "checkpoints").iterdir())[-1]
        with np.load(io.BytesIO((newest / "arrays.npz").read_bytes())) as stored:
            return {name: stored[name] for name in stored.files}

    def steps(self) -> list[dict[str, object]]:
        notes = sorted(self.folder.parent.glob(f"{self.folder.name}-steps-*.jsonl"))
        return [json.loads(line) for note in notes for line in note.read_text().splitlines()]

    def samples(self) -> dict[int, list[int]]:
        """Step -> keys of the samples in it, whichever worker took them."""
        taken: dict[int, set[int]] = {}
        for note in self.steps():
            taken.setdefault(note["step"], set()).update(note["keys"])
        return {step: sorted(keys) for step, keys in sorted(taken.items())}


def train_noting(recipe: Recipe, world: World, driver: Driver, *, notes: str, kill_at: int | None) -> RunSummary:
    """The real training; each step is noted, and the worker of rank 0 kills itself, once, before step `kill_at`."""
    from segtrain.pipeline.batches import unpacked
    from segtrain.training import step as step_module
    from segtrain.training.loop import train

    take_step = step_module.TrainStep.__call__
    marker = Path(f"{notes}-killed")

    def noted(self: object, batch: list[Any], step: int, *rest: Any, **known: Any) -> object:
        if step == kill_at and world.rank == 0 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        parts = [unpacked(part) for part in batch]
        keys = [int(k) for part in parts for k, w in zip(part.keys.numpy(), part.weights.numpy(), strict=True) if w]
        with Path(f"{notes}-steps-{world.workers}of{world.rank}.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "keys": keys}) + "\n")
        return take_step(self, batch, step, *rest, **known)  # type: ignore[arg-type]

    step_module.TrainStep.__call__ = noted  # type: ignore[method-assign, assignment]
    try:
        return train(recipe, world, driver)
    finally:
        step_module.TrainStep.__call__ = take_step  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of noisy rectangles, and room for runs."""
    folder = tmp_path_factory.mktemp("survival")
    write_rectangles(folder / "raw", str(folder / "data"), pictures=PICTURES, height=HEIGHT, width=WIDTH)
    return folder


def run(folder: Path, name: str, *, workers: int = 1, kill_at: int | None = None, max_failures: int = 1) -> Attempt:
    recipe = override(
        Recipe(),
        [
            f"data.root={folder / 'data'}",
            f"run.storage={folder / 'runs'}",
            f"run.name={name}",
            f"data.height={HEIGHT}",
            f"data.width={WIDTH}",
            "augment.rotate_degrees=10.0",
            "model.filters=4",
            "model.depth=2",
            "model.norm=group",
            "model.norm_groups=2",
            "model.dropout=0.2",
            f"train.epochs={EPOCHS}",
            "train.global_batch_size=8",
            "train.precision=float64",
            "train.deterministic=true",
            "evaluation.panels=1",
            f"checkpoint.every_steps={SAVED_EVERY}",
            "checkpoint.keep=9",
            f"cluster.workers={workers}",
            f"cluster.max_failures={max_failures}",
        ],
    )
    attempt = Attempt(folder / "runs" / name)
    work = functools.partial(train_noting, notes=str(attempt.folder), kill_at=kill_at)
    train_run.launch(recipe, work)
    return attempt


@pytest.fixture(scope="module")
def undisturbed(folder: Path, ray_session: str) -> Attempt:
    return run(folder, "undisturbed")


@pytest.fixture(scope="module")
def two_workers_killed(folder: Path, ray_session: str) -> Path:
    """The folder of a run of two workers that ended when one of them was killed, with its notes beside it."""
    with pytest.raises(RunError, match=r"the same command goes on from the last checkpoint"):
        run(folder, "two", workers=2, kill_at=KILLED_AT, max_failures=0)
    return folder / "runs" / "two"


def test_a_killed_worker_is_started_again_and_ends_with_the_same_bits(folder: Path, undisturbed: Attempt) -> None:
    killed = run(folder, "killed", kill_at=KILLED_AT)
    assert Path(f"{killed.folder}-killed").exists()
    wanted, got = undisturbed.weights(), killed.weights()
    assert wanted.keys() == got.keys()
    for name, value in wanted.items():
        assert np.array_equal(got[name], value), name
    taken = [note["step"] for note in killed.steps()]
    assert len(taken) - EPOCHS * STEPS_PER_EPOCH <= SAVED_EVERY
    assert _losses(killed) == _losses(undisturbed)


def _losses(attempt: Attempt) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (attempt.folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if line["kind"] == "step"]


@pytest.mark.slow  # 20 to 30 s each, and as long for what they share
@pytest.mark.parametrize("workers", [1, 3])
def test_killed_with_two_workers_it_goes_on_with_another_number(
    folder: Path, undisturbed: Attempt, two_workers_killed: Path, workers: int
) -> None:
    name = f"two-then-{workers}"
    for path in two_workers_killed.parent.glob("two*"):
        if path.name == "two" or path.name.startswith("two-steps"):
            copy = path.with_name(path.name.replace("two", name, 1))
            shutil.copytree(path, copy) if path.is_dir() else shutil.copyfile(path, copy)
    resumed = run(folder, name, workers=workers)
    assert resumed.samples() == undisturbed.samples()
    for key, value in undisturbed.weights().items():
        np.testing.assert_allclose(resumed.weights()[key], value, rtol=0, atol=1e-10, err_msg=key)

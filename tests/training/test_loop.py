"""Whole runs in this process: what they leave behind, when they stop, and that a stopped one ends as if it had not."""

import itertools
import json
import math
import shutil
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from segtrain.config import Recipe, load_recipe, override
from segtrain.config.batch_split import batch_split
from segtrain.dataset.data_set import read_data_set
from segtrain.dataset.manifest import read_manifest
from segtrain.errors import DataError, UserError
from segtrain.pipeline.sample_order import sample_order
from segtrain.pipeline.worker_data import TrainingData
from segtrain.runs.status import Driver, Left, Progress, World
from segtrain.storage.files import Storage
from segtrain.training import clock
from segtrain.training.loop import train
from segtrain.training.step import TrainStep

STEPS_PER_EPOCH = 4
TIMES = {"images_per_s", "epoch_s", "input_wait_s", "compute_s"}
READS = {"downloads", "downloaded_bytes", "downloaded_again", "retries", "cache_hits"}


class StoppedError(Exception):
    """What ends a run from outside."""


def measured(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines without what a clock says, and without what an attempt had to read."""
    return [{key: value for key, value in line.items() if key not in TIMES | READS} for line in lines]


def test_the_run_folder_holds_what_the_design_promises(finished) -> None:
    folder = finished.path
    assert sorted(path.name for path in folder.iterdir()) == [
        "best",
        "checkpoints",
        "metrics.jsonl",
        "owner",
        "panels",
        "recipe.yaml",
        "tensorboard",
    ]
    assert load_recipe(folder / "recipe.yaml") == finished.recipe
    assert sorted(path.name for path in (folder / "best").iterdir()) == ["metrics.json", "model.keras"]
    assert finished.checkpoints() == [6, 8]


def test_the_record_has_every_step_and_every_epoch_with_its_scores(finished) -> None:
    steps, epochs = finished.lines("step"), finished.lines("epoch")
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert steps[0].keys() == {"step", "loss", "dice", "learning_rate"}
    assert [line["learning_rate"] for line in steps[:4]] == pytest.approx([0.00025, 0.0005, 0.00075, 0.001])
    assert steps[-1]["learning_rate"] < 0.0005
    assert [(line["epoch"], line["step"]) for line in epochs] == [(1, 4), (2, 8)]
    for line in epochs:
        assert line.keys() >= TIMES | READS | {
            "left_out",
            "loss",
            "dice_training",
            "dice_hard_original",
            "dice_soft",
            "iou_hard_original",
        }
        assert line["samples"] == 16
        assert line["input_wait_s"] + line["compute_s"] == pytest.approx(line["epoch_s"])
        taken = steps[line["step"] - STEPS_PER_EPOCH : line["step"]]
        # A step's loss is its share of a global batch of 5, its dice the mean of its own pictures.
        assert line["loss"] == pytest.approx(sum(step["loss"] * 5 for step in taken) / 16)
        sizes = (5, 5, 5, 1)
        assert line["dice_training"] == pytest.approx(
            sum(step["dice"] * size for step, size in zip(taken, sizes, strict=True)) / 16
        )


def test_the_best_epochs_scores_are_kept_and_returned(finished, tiny_set) -> None:
    kept = json.loads((finished.path / "best" / "metrics.json").read_text())
    assert kept.keys() >= {
        "dice_hard_original",
        "dice_soft",
        "iou_hard_original",
        "epoch",
        "step",
        "threshold",
        "train_seconds",
        "data_fingerprint",
        "recipe_fingerprint",
        "validation_ids",
        "validation_dice",
        "validation_foreground",
    }
    best = max(finished.lines("epoch"), key=lambda line: line["dice_hard_original"])
    for name in ("epoch", "step", "dice_hard_original", "dice_soft", "iou_hard_original"):
        assert kept[name] == best[name]
    assert len(kept["validation_ids"]) == len(kept["validation_foreground"]) == 8
    assert {path.stem for path in tiny_set.masks.iterdir()} > set(kept["validation_ids"])
    assert kept["validation_dice"] == pytest.approx(kept["validation_dice"])
    assert np.mean(kept["validation_dice"]) == pytest.approx(kept["dice_hard_original"], abs=1e-6)
    assert 0 < kept["train_seconds"] <= finished.summary.train_seconds
    summary = finished.summary
    assert (summary.folder, summary.epoch, summary.stopped_early) == (str(finished.path), kept["epoch"], False)
    assert (summary.dice_hard_original, summary.dice_soft) == (kept["dice_hard_original"], kept["dice_soft"])
    assert summary.iou_hard_original == kept["iou_hard_original"]


def test_panels_of_the_first_and_last_validation_picture_are_drawn_and_shown_in_tensorboard(finished) -> None:
    ids = json.loads((finished.path / "best" / "metrics.json").read_text())["validation_ids"]
    assert {path.name for path in (finished.path / "panels").iterdir()} == {f"{ids[0]}.png", f"{ids[-1]}.png"}
    paths = (finished.path / "tensorboard").iterdir()
    events = [event for path in paths for event in tf.compat.v1.train.summary_iterator(str(path))]
    tags = {(event.step, value.tag) for event in events for value in event.summary.value}
    for step in (4, 8):
        assert tags >= {(step, f"panels/{ids[0]}"), (step, f"panels/{ids[-1]}")}
        assert tags >= {(step, "loss"), (step, "dice_hard_original"), (step, "images_per_s")}


def test_progress_goes_from_starting_over_each_epoch_to_done(finished) -> None:
    phases = [(progress.phase, progress.epoch) for progress in finished.told]
    assert [phase for phase, _ in itertools.groupby(phases)] == [
        ("starting", 0),
        ("training", 1),
        ("evaluating", 1),
        ("saved", 1),
        ("training", 2),
        ("evaluating", 2),
        ("saved", 2),
        ("done", finished.summary.epoch),
    ]
    assert finished.told[-1].dice == finished.summary.dice_hard_original
    saved = [progress for progress in finished.told if progress.phase == "saved"]
    assert [progress.score for progress in saved] == [line["dice_hard_original"] for line in finished.lines("epoch")]
    assert 0 < saved[0].train_s < saved[1].train_s


def test_the_moving_average_is_exported_and_the_trained_weights_go_on(
    finished, recipe: Callable[..., Recipe], run_folder
) -> None:
    step = json.loads((finished.path / "best" / "metrics.json").read_text())["step"]
    arrays = finished.arrays(step)
    trained = [value for name, value in sorted(arrays.items()) if name.startswith("model/")]
    average = [value for name, value in sorted(arrays.items()) if name.startswith("ema/")]
    model = keras.models.load_model(finished.path / "best" / "model.keras", compile=False)
    exported = [variable.numpy() for variable in model.trainable_variables]
    assert [value.tobytes() for value in exported] == [value.tobytes() for value in average]
    weights = [value.shape for value in trained]
    assert len(weights) > len(average), "the moving statistics of batch norm have no average of their own"
    assert not any(np.array_equal(one, other) for one, other in zip(trained, average, strict=False))
    without = override(finished.recipe, [f"run.storage={recipe().run.storage}", "train.ema_momentum=null"])
    train(without, World())
    assert run_folder(without.run.folder).lines("step") == finished.lines("step")


def stop_when(wanted: Callable[[Progress], bool]) -> Callable[[Progress], None]:
    def watcher(progress: Progress) -> None:
        if wanted(progress):
            raise StoppedError

    return watcher


# Where a run is stopped, and the steps that the next attempt then begins with. A checkpoint comes every second step
# and at the end of an epoch of 4; a step's result is read while the next one runs.
STOPS = [
    (lambda p: p.phase == "training" and p.step >= 1, 0),  # before there is any checkpoint
    (lambda p: p.phase == "training" and p.step >= 3, 2),  # within the first epoch
    (lambda p: p.phase == "evaluating", 2),  # all of it trained, not yet saved
    (lambda p: p.phase == "training" and p.epoch == 2, 4),  # exactly at an epoch's end
    (lambda p: p.phase == "training" and p.epoch == 2 and p.step >= 3, 6),  # within the second epoch
]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every step that is taken from now on, in order; and a run tells of each moment."""
    taken: list[int] = []
    take_step = TrainStep.__call__

    def noted(self: TrainStep, batch: Any, step: int, *rest: Any, **known: Any) -> Any:
        taken.append(step)
        return take_step(self, batch, step, *rest, **known)

    monkeypatch.setattr(TrainStep, "__call__", noted)
    monkeypatch.setattr(clock, "TELL_EVERY_S", 0.0)
    return taken


def test_a_run_stopped_again_and_again_ends_like_one_that_was_not(
    finished, taken: list[int], tmp_path: Path, run_folder
) -> None:
    recipe = override(finished.recipe, [f"run.storage={tmp_path}"])
    first = 0
    for wanted, resumes_at in STOPS:
        taken.clear()
        with pytest.raises(StoppedError):
            train(recipe, World(), Driver(stop_when(wanted)))
        assert taken[0] == first
        first = resumes_at
    taken.clear()
    summary = train(recipe, World())
    assert taken == [6, 7]

    folder = run_folder(recipe.run.folder)
    assert folder.checkpoints() == finished.checkpoints()
    for step in finished.checkpoints():
        expected, found = finished.arrays(step), folder.arrays(step)
        assert found.keys() == expected.keys()
        assert {name: found[name].tobytes() for name in found} == {name: expected[name].tobytes() for name in expected}
    assert folder.lines("step") == finished.lines("step")
    assert measured(folder.lines("epoch")) == measured(finished.lines("epoch"))
    assert (summary.epoch, summary.dice_hard_original) == (finished.summary.epoch, finished.summary.dice_hard_original)


@dataclass
class Impatient:
    """A driver that wants the run to leave from a moment on."""

    moment: Callable[[Progress], bool]
    told: list[Progress] = field(default_factory=list)
    wants: bool = False

    def driver(self) -> Driver:
        return Driver(self.tell, lambda: self.wants)

    def tell(self, progress: Progress) -> None:
        self.told.append(progress)
        self.wants = self.wants or self.moment(progress)


# When a run is asked to leave, and the steps that are taken and saved when it does.
WISHES = [
    (lambda p: p.phase == "starting", 2),  # the first step tells the others, the second is under way by then
    (lambda p: p.phase == "evaluating", 4),  # the epoch is trained, and scored by the next attempt
    (lambda p: p.phase == "training" and p.epoch == 2 and p.step == 2, 8),  # told by the third, left after the fourth
]


def test_a_run_that_is_asked_to_leave_loses_no_step_and_ends_like_one_that_was_not(
    finished, taken: list[int], tmp_path: Path, run_folder
) -> None:
    recipe = override(finished.recipe, [f"run.storage={tmp_path}"])
    for moment, saved_at in WISHES:
        asked = Impatient(moment)
        with pytest.raises(Left) as left:
            train(recipe, World(), asked.driver())
        assert (left.value.step, len(taken)) == (saved_at, saved_at)
        account = asked.told[-1].account
        assert asked.told[-1].phase == "leaving"
        assert (account.step, account.saved_step) == (saved_at, saved_at)
    train(recipe, World())
    assert taken == list(range(8)), "no step was taken twice"
    folder = run_folder(recipe.run.folder)
    expected, found = finished.arrays(8), folder.arrays(8)
    assert {name: found[name].tobytes() for name in found} == {name: expected[name].tobytes() for name in expected}
    assert folder.lines("step") == finished.lines("step")
    assert measured(folder.lines("epoch")) == measured(finished.lines("epoch"))


def test_a_run_whose_folder_another_process_has_taken_over_ends_without_writing(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, run_folder
) -> None:
    """As a chief that was cut off from its driver finds when another one is in its place."""
    monkeypatch.setattr(clock, "TELL_EVERY_S", 0.0)
    settings = recipe("checkpoint.every_steps=1", "train.epochs=1", "model.norm=none")
    folder = Path(settings.run.folder)

    def take_over(progress: Progress) -> None:
        if progress.phase == "training" and progress.step == 1:
            (folder / "owner").write_text("the other one")

    with pytest.raises(UserError, match="is trained by another process by now"):
        train(settings, World(), Driver(take_over))
    assert run_folder(settings.run.folder).checkpoints() == []
    assert not (folder / "best").exists()


def test_a_finished_run_is_not_trained_again(finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(finished.path, tmp_path / "finished")
    recipe = override(finished.recipe, [f"run.storage={tmp_path}"])
    monkeypatch.delattr(TrainStep, "__call__")
    again = train(recipe, World())
    assert (again.epoch, again.dice_hard_original, again.train_seconds, again.stopped_early) == (
        finished.summary.epoch,
        finished.summary.dice_hard_original,
        finished.summary.train_seconds,
        False,
    )


def test_a_kill_at_any_moment_leaves_the_lines_of_every_step_that_is_saved(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, run_folder
) -> None:
    """SIGKILL leaves what is on the disk; so that is looked at, from within the run."""
    monkeypatch.setattr(clock, "TELL_EVERY_S", 0.0)
    settings = recipe("checkpoint.every_steps=1", "checkpoint.keep=9", "train.epochs=1", "model.norm=none")
    folder = run_folder(settings.run.folder)
    seen: list[int] = []

    def look(progress: Progress) -> None:
        saved = folder.checkpoints()
        if saved:
            seen.append(saved[-1])
            assert [line["step"] for line in folder.lines("step")][: saved[-1]] == list(range(1, saved[-1] + 1))

    train(settings, World(), Driver(look))
    assert seen[0] < STEPS_PER_EPOCH, "a checkpoint was on the disk before the epoch's end"


def test_a_run_stops_early_and_the_rate_falls_where_the_dice_gets_no_better(
    recipe: Callable[..., Recipe], run_folder
) -> None:
    """A rate too small to change a float32 weight: every evaluation after the first is no better."""
    settings = recipe(
        "train.epochs=9",
        "train.early_stopping_epochs=3",
        "optimizer.learning_rate=1e-12",
        "schedule.kind=plateau",
        "schedule.patience_epochs=2",
        "model.norm=none",
    )
    summary = train(settings, World())
    folder = run_folder(settings.run.folder)
    assert (summary.epoch, summary.stopped_early) == (1, True)
    assert [line["epoch"] for line in folder.lines("epoch")] == [1, 2, 3, 4]
    rates = [line["learning_rate"] for line in folder.lines("step")]
    assert rates == [1e-12] * 12 + [0.5e-12] * 4
    assert folder.checkpoints() == [4, 8, 12, 16], "the best and the newest three"
    assert train(settings, World()).stopped_early, "the same command finds it stopped"
    assert len(folder.lines("epoch")) == 4


def test_evaluation_may_come_every_few_epochs_and_comes_at_the_end(recipe: Callable[..., Recipe], run_folder) -> None:
    settings = recipe("train.epochs=3", "evaluation.every_epochs=2", "model.norm=none", "evaluation.panels=0")
    summary = train(settings, World())
    scored = ["dice_hard_original" in line for line in run_folder(settings.run.folder).lines("epoch")]
    assert scored == [False, True, True]
    assert summary.epoch in (2, 3)
    assert not (Path(summary.folder) / "panels").exists()


# float64 draws other initial weights, so its losses are other ones.
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float64", np.inf), ("mixed_bfloat16", 2e-2), ("mixed_float16", 2e-3)]
)
def test_every_precision_trains_and_exports_a_wide_model(
    recipe: Callable[..., Recipe], run_folder, finished, precision: str, tolerance: float
) -> None:
    one_epoch = ["train.epochs=1", "schedule.horizon_epochs=2", "evaluation.panels=0"]
    storage = f"run.storage={recipe().run.storage}"
    summary = train(override(finished.recipe, [*one_epoch, storage, f"train.precision={precision}"]), World())
    folder = run_folder(summary.folder)
    losses = [line["loss"] for line in folder.lines("step")]
    expected = [line["loss"] for line in finished.lines("step")[:STEPS_PER_EPOCH]]
    assert losses == pytest.approx(expected, rel=tolerance)
    assert losses != expected
    wide = "float64" if precision == "float64" else "float32"
    arrays = folder.arrays()
    assert {array.dtype for name, array in arrays.items() if name.startswith("model/")} == {np.dtype(wide)}
    # Scale and count of good steps, in the order of `LossScale.variables`.
    scale, good_steps = float(arrays["loss_scale/0000"]), int(arrays["loss_scale/0001"])
    assert (scale, good_steps) == ((32768.0, STEPS_PER_EPOCH) if precision == "mixed_float16" else (1.0, 0))
    model = keras.models.load_model(folder.path / "best" / "model.keras", compile=False)
    assert {variable.dtype for variable in model.variables} == {wide}


def ids_of(recipe: Recipe, step: int) -> list[str]:
    """Pictures of a step of the first epoch."""
    train_config, data = recipe.train, recipe.data
    data_set = read_data_set(Storage(), data)
    lanes = sample_order(recipe, data_set.manifest).lanes
    split = batch_split(train_config.global_batch_size, lanes, 1, 1, None)
    with closing(TrainingData(recipe, data_set, Storage(), World(), split)) as training:
        return next(itertools.islice(training.batches(0, 0), step, None)).ids


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step_and_its_pictures(
    recipe: Callable[..., Recipe], run_folder
) -> None:
    settings = recipe("optimizer.kind=sgd", "optimizer.learning_rate=1e30", "model.norm=none")
    with pytest.raises(UserError, match=r"lower optimizer\.learning_rate or set train\.clip_norm") as caught:
        train(settings, World())
    message = str(caught.value)
    assert "at step 2 (epoch 1)" in message
    assert f"the pictures {', '.join(ids_of(settings, 1))};" in message
    folder = run_folder(settings.run.folder)
    assert [line["step"] for line in folder.lines("step")] == [1]
    assert all(math.isfinite(line["loss"]) for line in folder.lines("step"))
    assert folder.checkpoints() == []


def test_weights_that_blow_up_at_an_epochs_last_step_are_neither_kept_nor_saved(
    recipe: Callable[..., Recipe], run_folder
) -> None:
    settings = recipe(
        "optimizer.kind=sgd", "optimizer.learning_rate=1e38", "model.norm=none", "train.global_batch_size=16"
    )
    with pytest.raises(UserError, match="the weights are no longer finite after step 1"):
        train(settings, World())
    assert run_folder(settings.run.folder).checkpoints() == []
    assert not (Path(settings.run.folder) / "best").exists()


def test_damaged_data_ends_the_run_and_all_its_threads(recipe: Callable[..., Recipe], tiny_set, tmp_path: Path) -> None:
    root = tmp_path / "damaged"
    shutil.copytree(tiny_set.root, root)
    for shard in read_manifest(Storage(), tiny_set.root).shards:
        data = bytearray((root / shard.path).read_bytes())
        for offset in shard.row_groups.offset if shard.fold else []:
            data[offset + 50] ^= 1
        (root / shard.path).write_bytes(data)
    before = set(threading.enumerate())
    with pytest.raises(DataError, match=r"fold=[12]/part-.*row group [0-3], id "):
        train(recipe(f"data.root={root}"), World())
    assert [thread.name for thread in set(threading.enumerate()) - before] == []


def test_a_run_needs_a_data_set(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match=r"data\.root is not set"):
        train(recipe("data.root=null"), World())

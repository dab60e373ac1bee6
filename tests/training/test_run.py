"""What a worker holds: built from a recipe, restored from a checkpoint, started from another model, let go of."""

import dataclasses
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from segtrain.config import DataConfig, Recipe, override
from segtrain.dataset.data_set import DataSet, read_data_set
from segtrain.errors import StorageError, UserError
from segtrain.runs.run_folder import recipe_of
from segtrain.runs.status import World
from segtrain.storage.files import Storage
from segtrain.training import run as running
from segtrain.training import state
from segtrain.training.run import Run
from segtrain.training.strategy import build_strategy


def weights_of(run: Run) -> list[np.ndarray]:
    """Variables of the model, moving statistics included."""
    return [value for name, value in sorted(run.state.snapshot().items()) if name.startswith("model/")]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return [value.tobytes() for value in one] == [value.tobytes() for value in other]


def best_of(finished) -> list[np.ndarray]:
    model = keras.models.load_model(finished.path / "best" / "model.keras", compile=False)
    return [variable.numpy() for variable in model.variables]


def test_a_run_goes_on_from_its_newest_checkpoint(finished) -> None:
    with Run(finished.recipe, World()) as run:
        assert (run.state.cursor.epoch, run.state.cursor.step_in_epoch, run.state.cursor.step) == (2, 0, 8)
        assert run.state.cursor.best_metrics["dice_hard_original"] == finished.summary.dice_hard_original
        found, expected = run.state.snapshot(), finished.arrays()
    assert found.keys() == expected.keys()
    assert same([found[name] for name in found], [expected[name] for name in found])
    assert {name.partition("/")[0] for name in found} == {"model", "optimizer", "ema", "loss_scale"}


@pytest.mark.parametrize(("rates", "lines"), [("0.0", 0), ("[0.0,0.2]", 1)])
def test_a_run_whose_dropout_is_drawn_otherwise_from_here_on_says_so_once(
    recipe: Callable[..., Recipe], rates: str, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    with Run(recipe(f"model.dropout={rates}"), World()) as run:
        run.save()
        run.state.checkpoints.wait()
        checkpoint = run.state.checkpoints.restore()
        assert checkpoint is not None
        run.state.load(checkpoint)
        assert "dropout" not in caplog.text
        # As versions wrote it that drew other units.
        facts = {name: fact for name, fact in checkpoint.facts.items() if name != "dropout_draws"}
        run.state.load(dataclasses.replace(checkpoint, facts=facts))
    assert caplog.text.count("up to step 0 an older version of segtrain drew other units for dropout") == lines


@pytest.mark.parametrize("ending", ["", "best/model.keras"])
def test_a_run_starts_from_the_weights_of_another(finished, recipe: Callable[..., Recipe], ending: str) -> None:
    storage = f"run.storage={recipe().run.storage}"
    source = str(finished.path / ending)
    with Run(override(finished.recipe, [storage, f"train.init_from={source}", "train.seed=5"]), World()) as run:
        assert run.state.cursor.step == 0
        assert same(weights_of(run), best_of(finished))
        average = [value for name, value in sorted(run.state.snapshot().items()) if name.startswith("ema/")]
        trained = [weight.numpy() for weight in run.step.weights]
        assert same(average, trained)


def test_another_models_weights_may_be_of_another_precision(finished, recipe: Callable[..., Recipe]) -> None:
    storage = f"run.storage={recipe().run.storage}"
    wide = override(finished.recipe, [storage, f"train.init_from={finished.path}", "train.precision=float64"])
    with Run(wide, World()) as run:
        assert same(weights_of(run), [value.astype(np.float64) for value in best_of(finished)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.init_from=nowhere"], "train.init_from: there is no nowhere/best/model.keras"),
        (["model.filters=8"], "shape .* where this model has .*; the model section must be the same"),
        (["model.depth=2"], "is no model of this shape"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    finished, recipe: Callable[..., Recipe], settings: list[str], message: str
) -> None:
    given = [f"run.storage={recipe().run.storage}", f"train.init_from={finished.path}", *settings]
    with pytest.raises(UserError, match=message):
        Run(override(finished.recipe, given), World())
    assert not Path(recipe().run.folder).exists()


def test_a_file_that_is_no_model_is_refused(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "weights.keras").write_bytes(b"no model at all")
    with pytest.raises(UserError, match=r"train\.init_from: .*weights\.keras"):
        Run(recipe(f"train.init_from={tmp_path / 'weights.keras'}"), World())


def test_a_run_is_not_continued_on_another_data_set(finished, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (finished.path / "metrics.jsonl").read_bytes()

    def read_another(storage: Storage, config: DataConfig) -> DataSet:
        data_set = read_data_set(storage, config)
        other = data_set.manifest.model_copy(update={"fingerprint": "0123456789abcdef"})
        return dataclasses.replace(data_set, manifest=other)

    monkeypatch.setattr(running, "read_data_set", read_another)
    with pytest.raises(
        UserError, match=r"data\.root: the run in .*feedfacefeedface, this one is 0123456789abcdef.*run\.name"
    ):
        Run(finished.recipe, World())
    assert (finished.path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("settings", ["model.filters=8", "optimizer.kind=sgd", "train.ema_momentum=null"])
def test_a_checkpoint_of_another_model_or_optimizer_is_refused(finished, settings: str) -> None:
    """Jobs compare recipes field by field before; this guards those who call the loop themselves."""
    with pytest.raises(UserError, match=r"the checkpoint of step 8 .* does not hold the variables"):
        Run(override(finished.recipe, [settings]), World())


def test_only_the_chief_writes(finished, recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = recipe()
    monkeypatch.setattr(running, "build_strategy", _alone)
    monkeypatch.setattr(state, "sum_over_workers", lambda strategy, table: np.array([-1.0]))  # the chief's answer
    with Run(settings, World(workers=2, rank=1)) as run:
        assert run.record is None
        run.save()
    assert not Path(settings.run.folder).exists()


def _alone(world: World) -> tf.distribute.Strategy:
    """The strategy of a world of one, whatever the world is."""
    return build_strategy(World())


def test_a_worker_that_cannot_read_the_chiefs_checkpoint_says_so(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "build_strategy", _alone)
    monkeypatch.setattr(state, "sum_over_workers", lambda strategy, table: np.array([6.0]))
    with pytest.raises(OSError, match="worker 1 cannot read the checkpoint of step 6"):
        Run(recipe(), World(workers=2, rank=1))


@pytest.mark.parametrize(("rank", "told"), [(0, ["2 x a card"]), (1, [])])
def test_the_chief_tells_what_its_gpus_are(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, rank: int, told: list[str]
) -> None:
    monkeypatch.setattr(running, "build_strategy", _alone)
    monkeypatch.setattr(state, "sum_over_workers", lambda strategy, table: np.array([-1.0]))  # the chief's answer
    monkeypatch.setattr(running, "name_gpus", lambda world: "2 x a card")
    said: list[str] = []
    with Run(recipe(), World(workers=2, rank=rank), note=said.append):
        assert said == told


def save_and_fail(recipe: Recipe) -> None:
    with Run(recipe, World()) as run:
        next(run.batches)
        run.save()
        raise RuntimeError("from within")


def test_leaving_a_run_ends_its_threads_and_completes_its_checkpoint(recipe: Callable[..., Recipe], run_folder) -> None:
    settings = recipe()
    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="from within"):
        save_and_fail(settings)
    assert run_folder(settings.run.folder).checkpoints() == [0]
    assert [thread.name for thread in set(threading.enumerate()) - before] == []


class Full(Storage):
    """Takes no checkpoint."""

    def write_if_version(self, url: str, data: bytes, version: str | None) -> None:
        if "checkpoints" in url:
            raise StorageError(f"{url}: no space left on device")
        super().write_if_version(url, data, version)


def test_a_failed_save_ends_the_run_but_never_hides_what_ended_it_before(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(running, "Storage", Full)
    with pytest.raises(StorageError, match="no space left"), Run(recipe(), World()) as run:
        run.save()
    with caplog.at_level(logging.ERROR), pytest.raises(RuntimeError, match="from within"):
        save_and_fail(recipe())
    assert "no space left" in caplog.text


def test_a_run_writes_down_the_lanes_that_its_recipe_left_out(recipe: Callable[..., Recipe]) -> None:
    with Run(recipe("data.lanes=null", "data.shuffle_window_bytes=null"), World()) as run:
        assert next(run.batches).ids
    kept = recipe_of(run.recipe.run.folder, run.storage)
    assert (kept.data.lanes, kept.data.shuffle_window_bytes) == (15, 16 * 2**20), "a multiple of the batch of 5"
    assert kept == run.recipe

"""One run a fold and the ensemble of them. A NumPy training function stands in: only the order of things is under test.

`tests/jobs/test_train.py` trains for real.
"""

import hashlib
import json
import math
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from segtrain.cluster.failures import DeviceMemoryError
from segtrain.config import Recipe, override
from segtrain.errors import DataError, UserError
from segtrain.launch import train_folds
from segtrain.launch.train_worker import Train
from segtrain.runs.status import NOBODY, Driver, Progress, RunSummary, World
from segtrain.storage.files import Storage
from segtrain.training.checkpoint import Checkpoints, Cursor

DICE = {0: 0.90, 1: 0.94, 2: 0.95, 3: 0.97}
"""Of each fold."""


@pytest.fixture
def recipe(data_root: str, tmp_path: Path) -> Callable[..., Recipe]:
    """All folds, two epochs each, in `<tmp_path>/five`; with changes."""
    fields = [f"data.root={data_root}", f"run.storage={tmp_path}", "run.name=five", "folds=all"]
    fields += ["train.epochs=2", "train.global_batch_size=4", "data.lanes=16", "data.shuffle_window_bytes=16777216"]
    return lambda *changes: override(Recipe(), [*fields, *changes])


def pretend(recipe: Recipe, world: World, driver: Driver) -> RunSummary:
    """Leave in the run's folder what training does: recipe, best scores, a checkpoint at the end of the last epoch."""
    folder, fold = Path(recipe.run.folder), recipe.data.fold
    (folder / "best").mkdir(parents=True, exist_ok=True)
    with (folder.parent / "trained").open("a") as file:
        file.write(f"{fold} ")
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    scores = {"dice_hard_original": DICE[fold], "iou_hard_original": DICE[fold] - 0.1, "epoch": fold + 1}
    curve = {"thresholds": [0.25, 0.5, 0.75], "dice": [0.8, DICE[fold], 0.9], "pictures": 3}
    with zipfile.ZipFile(folder / "best" / "model.keras", "w") as archive:
        archive.writestr("model.weights.h5", b"weights")
    (folder / "best" / "metrics.json").write_text(json.dumps({**scores, "threshold_curve": curve}))
    driver.tell(Progress("training", 1, recipe.train.epochs, 2, 3, images_per_s=5.0, loss=0.5, dice=0.5))
    leave_checkpoint(folder, Cursor(epoch=recipe.train.epochs, step=6))
    return RunSummary(str(folder), fold + 1, DICE[fold], 0.8, 0.7, 1.0, 2.0)


def leave_checkpoint(folder: Path, cursor: Cursor) -> None:
    """Without the arrays, which nothing here reads."""
    saved = folder / "checkpoints" / f"step-{cursor.step:08d}"
    saved.mkdir(parents=True)
    state = json.dumps({"cursor": asdict(cursor), "facts": {}}).encode()
    (saved / "state.json").write_bytes(state)
    (saved / "checksums.json").write_text(json.dumps({"state.json": hashlib.sha256(state).hexdigest()}))


def pretend_all(recipe: Recipe) -> None:
    """Every fold but the test fold, without Ray."""
    for run in train_folds._plan(recipe, extend=False)[1]:
        pretend(run.prepared.recipe, World(), NOBODY)
    Path(recipe.run.folder, "recipe.yaml").write_text(recipe.to_yaml())


def never(recipe: Recipe, world: World, driver: Driver) -> RunSummary:
    raise AssertionError("nothing is to be trained")


def pretend_but(fold: int) -> Train:
    """Like `pretend`, but that fold is a mistake."""

    def train(recipe: Recipe, world: World, driver: Driver) -> RunSummary:
        if recipe.data.fold == fold:
            raise UserError("data.x: mend it")
        return pretend(recipe, world, driver)

    return train


def trained(recipe: Recipe) -> list[int]:
    """Folds in the order in which they were trained."""
    return [int(fold) for fold in Path(recipe.run.folder, "trained").read_text().split()]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
class TestThroughRay:
    @pytest.mark.slow  # a minute and a half on two cores: six launches
    def test_a_stopped_ensemble_goes_on_where_it_stopped(
        self, recipe: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked = recipe("data.test_fold=3")
        with pytest.raises(UserError, match=r"^data\.x: mend it$"):
            train_folds.train_folds(asked, pretend_but(1))
        assert trained(asked) == [0]
        assert not (tmp_path / "five" / "ensemble.json").exists()
        capsys.readouterr()
        entry = train_folds.train_folds(asked, pretend)
        shown = capsys.readouterr().out
        assert trained(asked) == [0, 1, 2], "fold 0 is not trained again, and 3 is the test fold"
        assert "fold 0 is finished" in shown
        assert "fold 2 (3 of 3)  epoch 1/2  step 2/3" in shown
        assert json.loads((tmp_path / "five" / "ensemble.json").read_text()) == entry
        assert shown.splitlines()[-8:] == [
            "fold        dice     IoU  epoch",
            "0         0.9000  0.8000      1",
            "1         0.9400  0.8400      2",
            "2         0.9500  0.8500      3",
            "mean      0.9300  0.8300",
            "spread    0.0265  0.0265",
            f"ensemble    {tmp_path}/five/ensemble.json, best threshold 0.500",
            f"next        python jobs/evaluate.py {tmp_path}/five {asked.data.root} data.fold=3",
        ]

    @pytest.mark.slow  # half a minute: three launches
    def test_what_a_device_had_no_memory_for_is_not_tried_again_in_the_next_fold(
        self, recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
    ) -> None:
        def short(recipe: Recipe, world: World, driver: Driver) -> RunSummary:
            if recipe.train.per_replica_batch_size != 2:
                raise DeviceMemoryError("OOM when allocating", "trace", scoring=False)
            return pretend(recipe, world, driver)

        asked = recipe("data.test_fold=3")
        last = train_folds._plan(asked, extend=False)[1][2]
        pretend(last.prepared.recipe, World(), NOBODY)
        train_folds.train_folds(asked, short)
        assert trained(asked) == [2, 0, 1]
        shown = capsys.readouterr().out
        assert shown.count("from now on 2 x 2 pictures a replica instead of 1 x 4") == 1


def test_the_ensemble_holds_every_members_dice_its_mean_and_spread(
    recipe: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = recipe()
    pretend_all(asked)
    entry = train_folds.train_folds(asked, never)
    assert entry == {
        "format_version": 1,
        "members": ["fold-0", "fold-1", "fold-2", "fold-3"],
        "dice_hard_original": {"fold-0": 0.9, "fold-1": 0.94, "fold-2": 0.95, "fold-3": 0.97},
        "mean": pytest.approx(0.94),
        # Squares of the distances from the mean: 16e-4 + 0 + 1e-4 + 9e-4, over 3.
        "spread": pytest.approx(math.sqrt(26e-4 / 3)),
        "best_threshold": 0.5,
    }
    assert f"next        python jobs/predict.py {tmp_path}/five DATASET_OR_FOLDER DEST" in capsys.readouterr().out


def test_the_threshold_is_the_best_over_all_pictures_not_the_mean_of_the_folds_own() -> None:
    few = {"thresholds": [0.25, 0.5, 0.75], "dice": [0.9, 0.8, 0.1], "pictures": 1}
    many = {"thresholds": [0.25, 0.5, 0.75], "dice": [0.1, 0.8, 0.82], "pictures": 9}
    # (0.9 + 0.9) / 10, (0.8 + 7.2) / 10, (0.1 + 7.38) / 10
    assert train_folds.threshold_of_folds([few, many]) == 0.5
    with pytest.raises(UserError, match="different thresholds"):
        train_folds.threshold_of_folds([few, {**many, "thresholds": [0.2, 0.5, 0.8]}])


@pytest.mark.parametrize(
    ("cursor", "state"),
    [
        (Cursor(epoch=2, step=6), "finished"),
        (Cursor(epoch=1, step=3), "goes on from its newest checkpoint"),
        (Cursor(epoch=1, step=5, epochs_without_better=3), "finished"),
    ],
)
def test_a_run_is_finished_at_its_last_epoch_or_where_it_stopped_early(
    recipe: Callable[..., Recipe], cursor: Cursor, state: str
) -> None:
    asked = recipe("train.early_stopping_epochs=3")
    run = train_folds._plan(asked, extend=False)[1][2]
    assert run.state == "not begun"
    folder = Path(run.prepared.recipe.run.folder)
    pretend(run.prepared.recipe, World(), NOBODY)
    shutil.rmtree(folder / "checkpoints")
    leave_checkpoint(folder, cursor)
    states = [run.state for run in train_folds._plan(asked, extend=False)[1]]
    assert states == ["not begun", "not begun", state, "not begun"]


def test_a_damaged_checkpoint_does_not_count(tmp_path: Path) -> None:
    leave_checkpoint(tmp_path, Cursor(epoch=1, step=3))
    leave_checkpoint(tmp_path, Cursor(epoch=2, step=6))
    newest = tmp_path / "checkpoints" / "step-00000006" / "state.json"
    newest.write_bytes(newest.read_bytes().replace(b'"epoch": 2', b'"epoch": 9'))
    assert Checkpoints(str(tmp_path), Storage(Recipe().storage), keep=3).cursor().epoch == 1


def test_extending_trains_finished_folds_on(recipe: Callable[..., Recipe]) -> None:
    pretend_all(recipe())
    longer = recipe("train.epochs=5")
    with pytest.raises(UserError, match=r"train\.epochs: 2 -> 5\); train on with --extend"):
        train_folds.train_folds(longer, never)
    runs = train_folds._plan(longer, extend=True)[1]
    assert {run.state for run in runs} == {"goes on from its newest checkpoint"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.filters=8"], r"five holds a run of another recipe \(model\.filters: 16 -> 8\); give the run another"),
        (["folds=one"], r"five holds runs of all folds \(folds=all\); give the run another name"),
        (["data.test_fold=9"], r"^fold 9 is not in the data set, which has 0, 1, 2, 3; set data\.test_fold$"),
        (["data.fold=9"], r"^fold 9 is not in the data set, which has 0, 1, 2, 3; set data\.fold$"),
        (["data.root=null"], r"^data\.root is not set"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_anything_starts(
    recipe: Callable[..., Recipe], changes: list[str], message: str
) -> None:
    pretend_all(recipe())
    with pytest.raises(UserError, match=message):
        train_folds.train_folds(recipe(*changes), never)


def test_which_fold_is_named_makes_no_difference(recipe: Callable[..., Recipe]) -> None:
    pretend_all(recipe())
    assert train_folds.train_folds(recipe("data.fold=2"), never)["members"] == ["fold-0", "fold-1", "fold-2", "fold-3"]


def test_runs_whose_pictures_were_cropped_to_fit_a_device_are_taken_up_again(recipe: Callable[..., Recipe]) -> None:
    asked = recipe("data.height=640", "data.width=960", f"cluster.device_bytes={256 * 2**20}")
    for run in train_folds._plan(asked, extend=False)[1]:
        fitted = run.prepared.fitted.recipe
        assert fitted.data.fit == "crop", "a field of the run's identity"
        pretend(fitted, World(), NOBODY)
    assert len(train_folds.train_folds(asked, never)["members"]) == 4


def test_folds_do_not_go_into_the_folder_of_a_single_run(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "five").mkdir()
    (tmp_path / "five" / "recipe.yaml").write_text(recipe("folds=one").to_yaml())
    with pytest.raises(UserError, match=r"five holds a run of one fold \(folds=one\); give the run another name"):
        train_folds.train_folds(recipe(), never)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:9])


def with_thresholds_that_are_no_numbers(path: Path) -> None:
    scores = path.with_name("metrics.json")
    scores.write_text(scores.read_text().replace("0.25", "NaN"))


@pytest.mark.parametrize("file", ["best/model.keras", "best/metrics.json"])
@pytest.mark.parametrize("damage", [Path.unlink, cut, with_thresholds_that_are_no_numbers])
def test_a_member_without_a_usable_best_is_started_once_more_which_mends_it(
    recipe: Callable[..., Recipe], tmp_path: Path, damage: Callable[[Path], None], file: str
) -> None:
    asked = recipe()
    pretend_all(asked)
    damage(tmp_path / "five" / "fold-2" / file)
    states = [run.state for run in train_folds._plan(asked, extend=False)[1]]
    assert states == ["finished", "finished", "goes on from its newest checkpoint", "finished"]


def test_a_member_whose_checkpoints_are_all_damaged_is_named(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    asked = recipe()
    pretend_all(asked)
    (tmp_path / "five" / "fold-2" / "checkpoints" / "step-00000006" / "state.json").write_bytes(b"{}")
    with pytest.raises(DataError, match=r"no checkpoint of .*/five/fold-2 can be read \(step-00000006: the sha256 of"):
        train_folds.train_folds(asked, never)


def test_a_member_of_an_older_segtrain_is_named(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    asked = recipe()
    pretend_all(asked)
    scores = tmp_path / "five" / "fold-2" / "best" / "metrics.json"
    old = json.loads(scores.read_text())
    del old["threshold_curve"]
    scores.write_text(json.dumps(old))
    with pytest.raises(UserError, match=r"fold-2/best/metrics\.json has no threshold_curve"):
        train_folds.train_folds(asked, never)
    assert not (tmp_path / "five" / "ensemble.json").exists()

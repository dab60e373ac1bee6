"""What commit e885e46 left behind is read, gone on with and finished by the version at hand.

`tests/earlier_version/make.py` made it with that commit. A test gets a copy whose recipes name the copy's own place.
"""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import evaluate, predict, prepare, train, tune
from segtrain.config import Recipe, StorageConfig
from segtrain.dataset.manifest import read_index, read_manifest
from segtrain.dataset.verify import verify
from segtrain.runs.run_folder import recipe_of
from segtrain.runs.trials import read_trials
from segtrain.storage.files import Storage
from tests.support.places import EARLIER_VERSION

MADE_IN = "/tmp/segtrain-e885e46"


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(EARLIER_VERSION) as archive:
        archive.extractall(folder, filter="data")
    return folder / Path(MADE_IN).name


@pytest.fixture
def earlier(unpacked: Path, tmp_path: Path) -> Path:
    """A copy of everything, at a place of the test's own."""
    copy = tmp_path / "earlier"
    shutil.copytree(unpacked, copy)
    for path in copy.rglob("*.yaml"):
        if "checkpoints" not in path.parts:  # those have checksums
            path.write_text(path.read_text().replace(MADE_IN, str(copy)))
    return copy


def command_of(folder: Path, *more: str) -> list[str]:
    """The recipe of a run's folder, as a command names it."""
    return [str(folder / "recipe.yaml"), *more]


def losses(folder: Path) -> dict[int, float]:
    """Step -> loss."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "step"}


def scores(folder: Path) -> dict[str, float]:
    return json.loads((folder / "best" / "metrics.json").read_text())


def leftovers(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.name.endswith(".segtrain-tmp")]


def test_every_recipe_is_read(earlier: Path) -> None:
    recipes = [recipe_of(str(path.parent), Storage(StorageConfig())) for path in earlier.rglob("runs/**/recipe.yaml")]
    assert len(recipes) == 4 + 1 + 2 + 7, "runs, the sweep, its trials, checkpoints"
    assert all(isinstance(recipe, Recipe) for recipe in recipes)


def test_a_data_set_is_sound_and_takes_more_pictures(earlier: Path) -> None:
    storage, root = Storage(StorageConfig()), str(earlier / "set")
    before = read_manifest(storage, root)
    assert verify(storage, root, before, 5.0, parallel=False) == []
    folds = dict(zip(*(read_index(storage, root, before)[name].to_pylist() for name in ("id", "fold")), strict=True))
    for number in (20, 21):
        pixels = np.full((48, 64, 3), number, np.uint8)
        Image.fromarray(pixels).save(earlier / "raw" / "images" / f"p{number}.jpg")
        Image.fromarray(pixels[..., 0] // number * 255).save(earlier / "raw" / "masks" / f"p{number}.png")

    assert prepare.main(["folder", root, f"source.path={earlier / 'raw'}", "prepare.min_row_groups=1"]) == 0

    after = read_manifest(storage, root)
    assert after.pictures == before.pictures + 2
    assert verify(storage, root, after, 5.0, parallel=False) == []
    now = dict(zip(*(read_index(storage, root, after)[name].to_pylist() for name in ("id", "fold")), strict=True))
    assert {name: now[name] for name in folds} == folds


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_killed_run_goes_on_to_the_figures_of_one_that_nobody_disturbed(
    earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = earlier / "runs" / "killed"
    saved = max(int(name.name.removeprefix("step-")) for name in (run / "checkpoints").iterdir())
    assert train.main(command_of(run)) == 0
    assert "an older version of segtrain drew other units for dropout" in capsys.readouterr().out
    undisturbed = losses(earlier / "runs" / "undisturbed")
    assert losses(run).keys() == undisturbed.keys()
    for step, loss in losses(run).items():
        # Since then dropout's draws are others: a tenth of the units, which is some tenths of a percent of the loss.
        assert loss == pytest.approx(undisturbed[step], rel=1e-6 if step <= saved else 2e-2), step
    assert scores(run)["dice_hard_original"] == pytest.approx(
        scores(earlier / "runs" / "undisturbed")["dice_hard_original"], abs=1e-9
    ), "the best epoch was scored before the kill"
    assert leftovers(run) == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_run_with_amsgrad_half_precision_and_averages_is_trained_on(
    earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = earlier / "runs" / "amsgrad"
    before = losses(run)
    assert train.main(command_of(run, "train.epochs=3", "--extend")) == 0
    after = losses(run)
    assert list(after) == list(range(1, 13))
    assert {step: after[step] for step in before} == before, "what was trained is not trained again"
    assert "resuming" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_finished_run_is_left_as_it_is_and_scores_what_it_scored(earlier: Path) -> None:
    run = earlier / "runs" / "finished"
    kept = {path: path.read_bytes() for path in [run / "metrics.jsonl", *run.rglob("best/*")]}
    assert train.main(command_of(run)) == 0
    assert {path: path.read_bytes() for path in kept} == kept

    assert evaluate.main([str(run), str(earlier / "set"), "inference.threshold=0.5"]) == 0
    summary = json.loads((run / "evaluation" / "set-fold-0" / "summary.json").read_text())
    assert summary["dice_hard_original"] == pytest.approx(scores(run)["dice_hard_original"], abs=2e-3)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_half_done_prediction_is_finished(earlier: Path) -> None:
    dest = earlier / "masks"
    parts = {path: path.read_bytes() for path in (dest / "parts").iterdir()}
    assert len(parts) == 2
    assert predict.main([str(earlier / "runs" / "finished"), str(earlier / "set"), str(dest)]) == 0
    assert {path: path.read_bytes() for path in parts} == parts, "what was finished is not done again"
    assert len(list((dest / "parts").iterdir())) == 5
    assert sorted(path.name for path in (dest / "masks").iterdir()) == [f"p{number:02}.png" for number in range(20)]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_sweep_under_way_is_finished(earlier: Path) -> None:
    folder = earlier / "runs" / "sweep"
    finished = {path: path.read_bytes() for path in (folder / "trials" / "0000").rglob("*") if path.is_file()}
    before = recipe_of(str(folder / "trials" / "0001"), Storage(StorageConfig()))

    assert tune.main(command_of(folder, "--resume")) == 0

    trials = read_trials(str(folder), Storage(StorageConfig()))
    assert [trial.status for trial in trials] == ["finished"] * 3
    assert [trial.point["optimizer.kind"] for trial in trials] == ["adam", "sgd", "rmsprop"]
    assert [trial.epochs for trial in trials] == [2, 2, 2]
    assert trials[1].attempts == 2
    recorded = recipe_of(str(folder / "trials" / "0001"), Storage(StorageConfig()))
    assert recorded.optimizer == before.optimizer, "a recorded trial keeps its recipe"
    assert {path: path.read_bytes() for path in finished} == finished
    assert (folder / "best.yaml").exists()

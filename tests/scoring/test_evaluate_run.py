"""Scores of a fold over the cluster: those of the masks that predicting writes, from any number of workers."""

import csv
import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import f1_score, jaccard_score

from segtrain.config import Recipe
from segtrain.errors import UserError
from segtrain.prediction.predict_masks import predict
from segtrain.runs.networks import recipe_to_score
from segtrain.runs.ownership import take_folder
from segtrain.score_table import COLUMNS, HARD
from segtrain.scoring import evaluate_run
from segtrain.scoring.evaluate_run import evaluate
from segtrain.scoring.fold_scores import FoldScores, ScoredPictures
from segtrain.storage.csv_cells import csv_bytes
from segtrain.storage.files import Storage, join
from tests.support.labelled import LabelledSet, write_run

FOLD = 1


@pytest.fixture(scope="module")
def run(labelled: LabelledSet, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a run whose validation fold is `FOLD`."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return write_run(folder, labelled.root, f"data.fold={FOLD}", best_threshold=0.375)


@pytest.fixture
def recipe(labelled: LabelledSet, run: str) -> Callable[..., Recipe]:
    return lambda *settings: recipe_to_score(run, labelled.root, settings)


def check_against_scikit_learn(labelled: LabelledSet, masks: Path, out: Path, summary: dict[str, float]) -> None:
    """Every score that derives from masks, of the masks as they were written."""
    rows = list(csv.DictReader((out / "pictures.csv").open()))
    assert len(rows) == 4
    pairs = [
        (labelled.truth(row["id"]).ravel(), np.asarray(Image.open(masks / f"{row['id']}.png")).ravel()) for row in rows
    ]
    dice = [f1_score(truth, mask) for truth, mask in pairs]
    iou = [jaccard_score(truth, mask) for truth, mask in pairs]
    assert 0.0 < min(dice) < max(dice) < 1.0
    for row, (truth, mask), each_dice, each_iou in zip(rows, pairs, dice, iou, strict=True):
        assert float(row["dice_hard_original"]) == pytest.approx(each_dice, abs=1e-9)
        assert float(row["iou_hard_original"]) == pytest.approx(each_iou, abs=1e-9)
        assert (int(row["predicted_pixels"]), int(row["true_pixels"])) == (mask.sum(), truth.sum())
    assert summary["pictures"] == 4
    assert summary["dice_hard_original"] == pytest.approx(np.mean(dice), abs=1e-9)
    assert summary["iou_hard_original"] == pytest.approx(np.mean(iou), abs=1e-9)
    together = [np.concatenate(parts) for parts in zip(*pairs, strict=True)]
    assert summary["dice_hard_original_set"] == pytest.approx(f1_score(*together), abs=1e-9)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_scores_of_two_workers_are_scikit_learns_of_the_masks_that_are_written(
    labelled: LabelledSet, run: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = write_run(tmp_path / "other", labelled.root, "data.fold=0", "train.seed=1")
    out = tmp_path / "out"
    (out / "worst").mkdir(parents=True)
    for name in ("unreadable.csv", "worst/007-gone.png", "worst/notes.txt"):
        (out / name).write_text("of an earlier evaluation, but for the last")
    settings = ["inference.workers=2", "evaluation.worst=2", "evaluation.boundary_pixels=3"]
    recipe = recipe_to_score(source := f"{run}, {other}", labelled.root, settings)
    summary = evaluate(recipe, source, str(out))
    predict_here(recipe, source, labelled.root, tmp_path / "prediction")
    check_against_scikit_learn(labelled, tmp_path / "prediction" / "masks", out, summary)

    written = json.loads((out / "summary.json").read_text())
    assert summary.items() <= written.items()
    assert (written["fold"], written["boundary_pixels"]) == (FOLD, 3)
    assert written["threshold"] == 0.4375, "the mean of what the two did best with"
    ours = [record for record in caplog.records if record.name.startswith("segtrain")]  # TensorFlow warns of retracing
    warnings = [record.message for record in ours if record.levelno == logging.WARNING]
    assert warnings == [f"fold {FOLD} was trained on by other: these scores are no forecast for new pictures"]
    assert written["fold_was_trained_on_by"] == ["other"]
    by_dice = sorted(csv.DictReader((out / "pictures.csv").open()), key=lambda row: float(row["dice_hard_original"]))
    first, second = written["worst"]
    assert [first, second] == [row["id"] for row in by_dice[:2]]
    left = sorted(str(path.relative_to(out)) for path in out.rglob("*.*"))
    panels = [f"worst/001-{first}.png", f"worst/002-{second}.png"]
    assert left == ["evaluation.owner", "pictures.csv", "summary.json", *panels, "worst/notes.txt"]


def predict_here(recipe: Recipe, source: str, root: str, dest: Path) -> None:
    """What `predict` does with `FOLD`, in this process: another one would take ten seconds to start."""
    from segtrain.inference.stored_networks import read_networks
    from segtrain.prediction import ledger
    from segtrain.prediction.predict_worker import PredictionWorker
    from segtrain.prediction.tasks import take_inventory

    inventory = take_inventory(Storage(), root, [FOLD])
    token = ledger.own(Storage(), str(dest))
    networks = read_networks(source, Storage())
    worker = PredictionWorker(recipe, networks, root, inventory.manifest, str(dest), token)
    try:
        for task in inventory.tasks():
            worker(task)
    finally:
        worker.close()


IDS = ["../../../x/pwn", "a\0b", "Car", "car"]


def scores_of(*values: int) -> FoldScores:
    """Of four pictures with ids that nobody should trust, each with a panel."""
    scores = FoldScores(IDS, worst=4)
    rows = np.ones((len(values), COLUMNS))
    rows[:, HARD] = [(value, 10, 10) for value in values]
    scores.add(
        ScoredPictures(0.5, "ab", dict(enumerate(rows)), {number: b"%d" % value for number, value in enumerate(values)})
    )
    return scores


def written(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestWriting:
    """Nothing leads out of the folder, and of two evaluations in it one wins."""

    def test_ids_name_no_file_outside_and_no_formula_in_a_table(self, tmp_path: Path) -> None:
        folder = tmp_path / "a" / "b" / "c"
        (tmp_path / "x").mkdir()
        token = take_folder(join(str(folder), evaluate_run.OWNER), Storage())
        evaluate_run._write(str(folder), Storage(), scores_of(1, 2, 3, 4), {"x": 1}, token)
        assert [path for path in tmp_path.rglob("*") if path.is_file() and folder not in path.parents] == []
        assert len([path for path in (folder / "worst").iterdir() if path.suffix == ".png"]) == 4
        assert b"=1+1" not in csv_bytes(("id",), [["=1+1"]]).splitlines()

    @pytest.mark.parametrize(
        ("method", "number"), [*(("write_if_version", number) for number in range(7)), ("delete_if_version", 0)]
    )
    def test_of_two_evaluations_the_later_wins_wherever_the_other_is_held(
        self, tmp_path: Path, method: str, number: int
    ) -> None:
        """The first is held at one of its writes while the second does all of its own."""
        folder, storage, calls = str(tmp_path / "out"), Storage(), itertools.count()
        own = take_folder(join(folder, evaluate_run.OWNER), storage)
        evaluate_run._write(folder, storage, scores_of(1, 2, 3, 5), {"of": "before"}, own)
        (tmp_path / "out" / "worst" / "009-gone.png").write_bytes(b"of an earlier one")
        first, second = scores_of(5, 6, 7, 8), scores_of(4, 3, 2, 1)
        token = take_folder(join(folder, evaluate_run.OWNER), Storage())
        real = getattr(storage, method)

        def held(*arguments: Any) -> None:
            if next(calls) == number:
                other = take_folder(join(folder, evaluate_run.OWNER), Storage())
                evaluate_run._write(folder, Storage(), second, {"of": "second"}, other)
            real(*arguments)

        setattr(storage, method, held)
        with pytest.raises(UserError, match="another evaluation"):
            evaluate_run._write(folder, storage, first, {"of": "first"}, token)
        found = written(tmp_path / "out")
        assert json.loads(found["summary.json"]) == {"of": "second"}
        columns = second.per_picture()
        assert found["pictures.csv"] == csv_bytes(columns, zip(*columns.values(), strict=True))
        assert {name: data for name, data in found.items() if name.endswith(".png")} == evaluate_run._panels(second)


@pytest.mark.slow  # 8 processes that each import TensorFlow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_the_scores_of_one_two_and_four_workers_are_scikit_learns(
    labelled: LabelledSet, run: str, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    predict(recipe(f"inference.folds=[{FOLD}]"), run, labelled.root, str(tmp_path / "prediction"))
    found = []
    for workers in (1, 2, 4):
        out = tmp_path / f"scores-{workers}"
        found.append(evaluate(recipe(f"inference.workers={workers}"), run, str(out)))
        check_against_scikit_learn(labelled, tmp_path / "prediction" / "masks", out, found[-1])
        assert (out / "pictures.csv").read_bytes() == (tmp_path / "scores-1" / "pictures.csv").read_bytes()
    assert found[0] == found[1] == found[2]


class TestMistakes:
    """Found before Ray starts."""

    def test_a_fold_that_does_not_exist(self, run: str, recipe: Callable[..., Recipe]) -> None:
        with pytest.raises(UserError, match=r"^fold 7 is not in the data set, which has 0, 1, 2; set data\.fold$"):
            evaluate(recipe("data.fold=7"), run)

    def test_a_data_set_that_is_none(self, run: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"jobs/prepare\.py"):
            evaluate(recipe_to_score(run, str(tmp_path), []), run)

    def test_no_network(self, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"^there is no .*best/model\.keras"):
            evaluate(recipe(), str(tmp_path))

    def test_nowhere_to_write(self, run: str, recipe: Callable[..., Recipe]) -> None:
        for source in (f"{run}/best/model.keras", f"{run},{run}"):
            with pytest.raises(UserError, match=r"is no folder of a run; say with --out where the scores are to go$"):
                evaluate(recipe(), source)

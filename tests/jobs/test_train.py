"""`jobs/train.py` and `jobs/evaluate.py` through their command lines."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import JOBS


def call(job: str, *arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(JOBS / job), *arguments]
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("job", ["train.py", "evaluate.py"])
def test_help_takes_less_than_a_second(job: str, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = call(job, "--help", folder=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0
    assert f"python jobs/{job} " in result.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0, "CPU seconds, as others may run"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.filter=8"], "error: unknown key 'model.filter'; did you mean 'model.filters'?\n"),
        (["train.epochs=0"], "error: train.epochs: should be greater than or equal to 1 (it is 0)\n"),
        ([], "error: data.root is not set; give the folder or s3:// URL that jobs/prepare.py wrote\n"),
        (["data.root=nowhere"], "/nowhere; make the data set with jobs/prepare.py\n"),
        (["cluster.workers=17", "train.global_batch_size=32", "data.lanes=16"], "raise data.lanes in a new run\n"),
        (["cluster.workers=4", "train.global_batch_size=3"], "set it to at least 4\n"),
    ],
)
def test_a_mistake_is_one_message_and_code_2(
    arguments: list[str], message: str, tiny_recipe: Path, tmp_path: Path
) -> None:
    result = call("train.py", str(tiny_recipe), *arguments, folder=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.endswith(message)
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing is half-written"


def test_debug_shows_where_a_mistake_was_found(tmp_path: Path) -> None:
    result = call("train.py", "nowhere.yaml", "--debug", folder=tmp_path)
    assert result.returncode == 2
    assert "Traceback" in result.stderr


@pytest.mark.ray
def test_a_run_is_trained_shown_and_scored_again(
    data_root: str, tiny_recipe: Path, tmp_path: Path, ray_session: str
) -> None:
    train = ("train.py", str(tiny_recipe), f"data.root={data_root}")
    trained = call(*train, folder=tmp_path, RAY_ADDRESS=ray_session)
    assert (trained.returncode, trained.stderr) == (0, ""), "TensorFlow in the driver would write to stderr"
    folder = tmp_path / "runs/tiny"
    metrics = json.loads((folder / "best/metrics.json").read_text())
    assert f"hard dice {metrics['dice_hard_original']:.4f} at original resolution" in trained.stdout
    assert "epoch 1/1  finished" in trained.stdout
    assert f"next        python jobs/evaluate.py {folder} {data_root} data.fold=0" in trained.stdout
    score = ("evaluate.py", "runs/tiny", data_root, "inference.threshold=0.5")
    scored = call(*score, folder=tmp_path, RAY_ADDRESS=ray_session)
    assert (scored.returncode, scored.stderr) == (0, "")
    assert "was trained on" not in scored.stdout
    results = folder / "evaluation" / f"{Path(data_root).name}-fold-0"
    found = {path.name for path in results.iterdir()}
    assert found == {"evaluation.owner", "pictures.csv", "summary.json", "worst"}
    figures = dict(line.split() for line in scored.stdout.splitlines() if line.startswith(("dice", "iou")))
    assert float(figures["dice_hard_original"]) == pytest.approx(metrics["dice_hard_original"], abs=1e-6)
    refused = call(*train, "model.filters=4", folder=tmp_path)
    assert refused.returncode == 2
    assert "holds a run of another recipe (model.filters: 2 -> 4)" in refused.stderr


@pytest.mark.slow  # two runs, each with its start of TensorFlow
@pytest.mark.ray
def test_folds_all_trains_a_run_for_each_fold_and_an_ensemble_of_them(
    data_root: str, tiny_recipe: Path, tmp_path: Path, ray_session: str
) -> None:
    train = ("train.py", str(tiny_recipe), f"data.root={data_root}", "run.name=both", "folds=all")
    planned = call(*train, "--dry-run", folder=tmp_path, RAY_ADDRESS=ray_session)
    assert (planned.returncode, planned.stderr) == (0, "")
    assert planned.stdout.endswith(
        "folds     2 runs\n"
        "fold 0    4 to train on, 4 to validate on; not begun\n"
        "fold 1    4 to train on, 4 to validate on; not begun\n"
    )
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"
    trained = call(*train, folder=tmp_path, RAY_ADDRESS=ray_session)
    assert (trained.returncode, trained.stderr) == (0, "")
    assert "fold 1 (2 of 2)  epoch 1/1  finished" in trained.stdout
    folder = tmp_path / "runs/both"
    entry = json.loads((folder / "ensemble.json").read_text())
    assert entry["members"] == ["fold-0", "fold-1"]
    for number, name in enumerate(entry["members"]):
        metrics = json.loads((folder / name / "best/metrics.json").read_text())
        assert metrics["fold"] == number
        assert metrics["dice_hard_original"] == entry["dice_hard_original"][name]
    assert entry["best_threshold"] in metrics["threshold_curve"]["thresholds"]
    refused = call(*train, "model.filters=4", folder=tmp_path)
    assert refused.returncode == 2
    assert "both holds a run of another recipe (model.filters: 2 -> 4)" in refused.stderr

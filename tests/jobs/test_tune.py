"""`jobs/tune.py` through its command line, with real trials: TensorFlow in each of them."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from segtrain.storage.files import Storage, join
from tests.jobs.test_train import call
from tests.support.fault_proxy import FaultProxy

SPACE = "tune.space={model.filters: {grid: [2, 3]}}"


@pytest.fixture
def tuned(tiny_recipe: Path, data_root: str) -> tuple[str, ...]:
    """A sweep of two trials of two epochs, started with these arguments."""
    settings = ("run.name=sweep", "tune.search=grid", "train.epochs=2", "train.deterministic=true")
    return ("tune.py", str(tiny_recipe), f"data.root={data_root}", SPACE, *settings)


@pytest.mark.ray
def test_a_sweep_ends_with_a_leaderboard_a_recipe_and_a_report(
    tuned: tuple[str, ...], tmp_path: Path, ray_session: str
) -> None:
    done = call(*tuned, folder=tmp_path, RAY_ADDRESS=ray_session)
    assert (done.returncode, done.stderr) == (0, "")
    folder = tmp_path / "runs/sweep"
    rows = list(csv.DictReader((folder / "leaderboard.csv").read_text().splitlines()))
    assert sorted(row["model.filters"] for row in rows) == ["2", "3"]
    best = json.loads((folder / f"trials/{int(rows[0]['trial']):04d}/best/metrics.json").read_text())
    assert float(rows[0]["dice"]) == pytest.approx(best["dice_hard_original"], abs=1e-6)
    assert (folder / "report.html").stat().st_size < 8 * 2**20
    assert f"next        python jobs/train.py {folder / 'best.yaml'}" in done.stdout
    again = call(*tuned, folder=tmp_path)
    assert again.returncode == 2
    assert "holds a sweep; go on with it by --resume" in again.stderr


@pytest.mark.slow  # four starts of TensorFlow
@pytest.mark.ray
def test_the_best_recipe_gives_the_best_trials_dice_again(
    tuned: tuple[str, ...], tmp_path: Path, ray_session: str
) -> None:
    """Of a trial that was stopped after 2 of 6 epochs of a cosine."""
    rates = "tune.space={optimizer.learning_rate: {grid: [0.05, 0.01, 0.02]}}"
    settings = (
        rates,
        "train.epochs=6",
        "schedule.kind=cosine",
        "tune.stop=asha",
        "tune.grace=2",
        "tune.max_concurrent=1",
    )
    done = call(*tuned, *settings, folder=tmp_path, RAY_ADDRESS=ray_session)
    assert (done.returncode, done.stderr) == (0, "")
    folder = tmp_path / "runs/sweep"
    rows = list(csv.DictReader((folder / "leaderboard.csv").read_text().splitlines()))
    trained = call("train.py", str(folder / "best.yaml"), folder=tmp_path, RAY_ADDRESS=ray_session)
    assert (trained.returncode, trained.stderr) == (0, "")
    again = json.loads((tmp_path / "runs/sweep-best/best/metrics.json").read_text())
    assert again["dice_hard_original"] == pytest.approx(float(rows[0]["dice"]), abs=1e-6)
    assert again["epoch"] == int(rows[0]["best_epoch"])


@pytest.mark.slow  # a Ray of its own, whose workers have the server's keys, and three starts of TensorFlow
@pytest.mark.ray
def test_all_trials_together_download_each_part_of_the_data_set_once(
    tuned: tuple[str, ...], data_root: str, tmp_path: Path, s3_root: str, fault_proxy: FaultProxy
) -> None:
    storage = Storage()
    for path in sorted(Path(data_root).rglob("*.*")):
        storage.write_file(join(s3_root, path.relative_to(data_root).as_posix()), path)
    fault_proxy.clear()
    settings = (
        "tune.space={model.filters: {grid: [2, 3, 4]}}",
        "data.cache=disk",
        f"data.node_cache={tmp_path / 'cache'}",
    )
    done = call(*tuned, f"data.root={s3_root}", *settings, "tune.max_concurrent=2", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    parts = Counter(
        (request.path, request.range)
        for request in fault_proxy.requests
        if request.method == "GET" and "part-" in request.path
    )
    assert len(parts) >= 8, "every row group of both folds, and the shards' footers"
    assert set(parts.values()) == {1}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("tune.space={}", "tune.space is empty; name at least one field"),
        ("tune.space={model.filter: {choice: [2]}}", "did you mean 'model.filters'?"),
        ("tune.space={model.dropout: {uniform: [0.5, 0.1]}}", "uniform [0.5, 0.1] is the wrong way round"),
        ("tune.max_hours=0", "tune.max_hours: should be greater than 0"),
        ("tune.max_trials=0", "tune.max_trials: should be greater than or equal to 1"),
        ("data.root=nowhere", "make the data set with jobs/prepare.py"),
    ],
)
def test_a_mistake_is_one_message_and_code_2(
    argument: str, message: str, tuned: tuple[str, ...], tmp_path: Path
) -> None:
    result = call(*tuned, argument, folder=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing is half-written"


def test_a_sweep_is_begun_or_gone_on_with_as_the_folder_says(tuned: tuple[str, ...], tmp_path: Path) -> None:
    dry = (*tuned, "--resume=auto", "--dry-run")
    assert call(*dry, folder=tmp_path).returncode == 0
    (tmp_path / "runs/sweep").mkdir(parents=True)
    (tmp_path / "runs/sweep/sweep.json").write_text("not what a sweep writes")
    found = call(*dry, folder=tmp_path)
    assert (found.returncode, "sweep.json" in found.stderr) == (2, True), "so it was looked for"


def test_a_resume_without_a_sweep_is_refused(tuned: tuple[str, ...], tmp_path: Path) -> None:
    result = call(*tuned, "--resume", folder=tmp_path)
    assert result.returncode == 2
    assert "holds no sweep; check run.storage and run.name" in result.stderr

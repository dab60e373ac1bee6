"""Two commands on one folder, one of them held up at a write that matters; and commands killed at each kind of write.

Each starts a Ray of its own, whose workers are then watched too.
"""

import json
from pathlib import Path

import pytest

from segtrain.runs.best_files import why_unusable
from segtrain.runs.trials import read_sweep, read_trials
from segtrain.storage.files import Storage
from segtrain.training.checkpoint import Checkpoints
from tests.support.held_jobs import HeldJob, running

pytestmark = [pytest.mark.slow, pytest.mark.ray]  # each a minute or two: whole jobs, with TensorFlow in them

SPACE = "tune.space={model.filters: {grid: [2, 3]}}"


@pytest.fixture
def trained(tiny_recipe: Path, data_root: str, tmp_path: Path) -> list[object]:
    """A run of two epochs in `<tmp_path>/runs/twice`, started with these arguments."""
    settings = ["run.name=twice", "train.epochs=2", "checkpoint.every_steps=1", "train.deterministic=true"]
    return ["train", tiny_recipe, f"data.root={data_root}", f"run.storage={tmp_path / 'runs'}", *settings]


@pytest.fixture
def tuned(trained: list[object]) -> list[object]:
    return ["tune", *trained[1:], SPACE, "tune.search=grid", "tune.stop=none", "--resume=auto"]


def check_run(folder: Path) -> None:
    """A finished run of two steps of which everything is of one chief."""
    cursor = Checkpoints(str(folder), Storage(), keep=2).cursor()
    assert (cursor.epoch, cursor.step) == (2, 2)
    assert why_unusable(str(folder), Storage(), cursor.best_step) is None
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [
        (kind, at) for at in (1, 2) for kind in ("step", "epoch")
    ]
    assert leftovers(folder) == []


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".segtrain-tmp")]


def ended_well(job: HeldJob, *codes: int) -> None:
    code = job.wait()
    assert code in codes, job.output
    assert "Traceback" not in job.output
    if code == 2:
        assert "by another process by now, which began later; this one ends" in job.output


@pytest.mark.parametrize(
    ("pattern", "number"),
    [
        ("/owner$", 1),  # the driver's claim
        ("/owner$", 2),  # the chief's
        ("recipe.yaml$", 1),
        ("metrics.jsonl$", 1),
        ("checksums.json$", 1),
        ("best/model.keras$", 1),
        ("best/metrics.json$", 1),
    ],
)
def test_of_two_trainings_in_one_folder_one_writes_all_of_it(
    trained: list[object], tmp_path: Path, pattern: str, number: int
) -> None:
    folder = tmp_path / "runs" / "twice"
    with running(*trained, folder=tmp_path / "1", hold=pattern, number=number) as older:
        assert older.wait_until_held(240.0)
        with running(*trained, folder=tmp_path / "2") as newer:
            ended_well(newer, 0)
        check_run(folder)
        older.let_go()
        # Held at its own claim it is the later one: it finds the run finished.
        ended_well(older, *((0,) if number == 1 and "owner" in pattern else (2,)))
    check_run(folder)


@pytest.mark.parametrize("pattern", ["sweep.json$", "trial.json$", "leaderboard.csv$", "best.yaml$"])
def test_of_two_drivers_of_a_sweep_one_writes_all_of_it(tuned: list[object], tmp_path: Path, pattern: str) -> None:
    folder = tmp_path / "runs" / "twice"
    with running(*tuned, folder=tmp_path / "1", hold=pattern, number=2 if "json" in pattern else 1) as older:
        assert older.wait_until_held(240.0)
        with running(*tuned, folder=tmp_path / "2") as newer:
            ended_well(newer, 0)
        kept = {path: path.read_bytes() for path in [*folder.glob("*.*"), *folder.glob("trials/*/trial.json")]}
        older.let_go()
        ended_well(older, 2)
    assert {path: path.read_bytes() for path in kept} == kept
    assert [trial.status for trial in read_trials(str(folder), Storage())] == ["finished"] * 2


KILLED_AT = [
    ("sweep.json$", "after"),
    ("recipe.yaml$", "before"),
    ("trials/0000/trial.json$", "after"),
    ("leaderboard.csv$", "before"),
    ("best.yaml$", "before"),
    ("report.html$", "before"),
    ("report.html$", "after"),
]


def test_a_sweep_that_is_killed_at_each_kind_of_write_is_ended_by_the_same_command(
    tuned: list[object], tmp_path: Path
) -> None:
    """The driver's own writes; what a trial writes is killed in `tests/launch/test_survival.py`."""
    folder = tmp_path / "runs" / "twice"
    for number, (pattern, when) in enumerate(KILLED_AT):
        with running(*tuned, folder=tmp_path / f"{number}", hold=f"twice/{pattern}", when=when) as job:
            assert job.wait_until_held(240.0), job.output
            job.kill()
    with running(*tuned, folder=tmp_path / "last") as job:
        ended_well(job, 0)
    assert [trial.status for trial in read_trials(str(folder), Storage())] == ["finished"] * 2
    assert read_sweep(str(folder), Storage()).state == "finished"  # type: ignore[union-attr]
    assert {path.name for path in folder.iterdir()} == {
        *("leaderboard.csv", "best.yaml", "recipe.yaml", "report.html", "sweep.json", "trials"),
    }
    assert leftovers(folder) == []

"""What is read from folders, at any moment of a run or sweep."""

import json
from pathlib import Path
from typing import Any

import pytest

from segtrain.errors import UserError
from segtrain.locations import without_credentials
from segtrain.report.folders import read_run, read_sweep_folder
from segtrain.runs.trials import Sweep
from segtrain.storage.files import Storage, join
from segtrain.storage.ids import file_names
from tests.support import made_runs


def test_panels_come_by_dice_with_their_rank_in_the_fold(tmp_path: Path) -> None:
    made_runs.write_run(tmp_path / "run", pictures=9, panels=3)  # of p000, p004 and p008, the last one the best
    (tmp_path / "run/panels/gone.png").write_bytes(made_runs.draw_panel(0))
    run = read_run(str(tmp_path / "run"), Storage())
    assert run is not None
    found = [(panel.id, panel.rank, panel.pictures) for panel in run.panels]
    assert found == [("p008", 1, 9), ("p004", 5, 9), ("p000", 9, 9), ("gone", None, 9)]
    assert run.panels[0].dice == run.best["validation_dice"][8]


def test_panels_whose_ids_are_no_file_names_are_found_under_the_names_made_for_them(tmp_path: Path) -> None:
    made_runs.write_run(tmp_path / "run", pictures=3, panels=0)
    path = tmp_path / "run/best/metrics.json"
    ids = ["Car", "car", "x" * 229]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"validation_ids": ids}))
    for file in file_names(ids).values():
        (tmp_path / f"run/panels/{file}.png").write_bytes(made_runs.draw_panel(0))
    run = read_run(str(tmp_path / "run"), Storage())
    assert run is not None
    assert sorted(panel.id for panel in run.panels) == ids


def test_a_line_that_is_only_half_written_is_left_out(tmp_path: Path) -> None:
    made_runs.write_run(tmp_path / "run", epochs=2, panels=0)
    path = tmp_path / "run/metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    run = read_run(str(tmp_path / "run"), Storage())
    assert run is not None
    assert (len(run.steps), [line["epoch"] for line in run.epochs]) == (10, [1])
    assert run.steps_per_epoch == made_runs.STEPS_PER_EPOCH


def test_every_trial_shows_the_same_picture_if_it_has_it(tmp_path: Path) -> None:
    trials = [trial for trial in made_runs.make_trials(5) if trial.history]
    folder = tmp_path / "sweep"
    made_runs.write_made_sweep(folder, trials, panels=3)  # p000, p005 and p011; the median of the best trial's is p005
    for trial in trials:
        for path in (folder / f"trials/{trial.number:04d}/panels").iterdir():
            path.write_bytes(f"{path.stem} of {trial.number}".encode())
    without = folder / f"trials/{trials[1].number:04d}/panels"
    (without / "p005.png").unlink()
    made_of = read_sweep_folder(str(folder), Sweep("finished"), Storage()).pictures
    wanted = {trial.number: f"p005 of {trial.number}".encode() for trial in trials}
    assert made_of == wanted | {trials[1].number: f"p000 of {trials[1].number}".encode()}


def test_a_folder_in_a_bucket_reads_like_one_on_disk(tmp_path: Path, s3_root: str) -> None:
    folder, storage = tmp_path / "sweep", Storage()
    made_runs.write_made_sweep(folder, made_runs.make_trials(3), panels=1)
    for path in folder.rglob("*"):
        if path.is_file():
            storage.write_file(join(s3_root, "sweep", str(path.relative_to(folder))), path)
    there = read_sweep_folder(join(s3_root, "sweep"), Sweep("finished"), storage)
    here = read_sweep_folder(str(folder), Sweep("finished"), storage)
    assert there.trials == here.trials
    assert there.pictures == here.pictures
    assert there.best_panels == here.best_panels


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at http://me:geheim@host:9000/x,", "at http://***@host:9000/x,"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("me@host", "me@host"),
        (json.dumps({"url": "https://token@host"}), '{"url": "https://***@host"}'),
    ],
)
def test_only_user_and_password_of_a_url_are_hidden(text: str, expected: str) -> None:
    assert without_credentials(text) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"best_threshold": float("nan")},
        {"threshold_curve": [1, 2]},
        {"validation_dice": ["high"]},
        {"validation_ids": ["one"]},
        {"versions": 3},
        {"epoch": None},
        {"fold": None},
        {"dice_at_best_threshold": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_scores_that_no_run_writes_are_named(tmp_path: Path, change: dict[str, Any]) -> None:
    made_runs.write_run(tmp_path / "run", panels=0)
    url = tmp_path / "run/best/metrics.json"
    url.write_text(json.dumps(json.loads(url.read_text()) | change))
    with pytest.raises(
        UserError, match=r"best/metrics\.json is not what a run writes \(.*\); delete it, and the report"
    ):
        read_run(str(tmp_path / "run"), Storage())


def test_panels_and_scores_are_of_one_epoch_although_the_run_replaces_them_meanwhile(tmp_path: Path) -> None:
    """The run writes panels first and scores last; the report begins in between."""

    class Meanwhile(Storage):
        def list(self, url: str) -> list[str]:
            found = super().list(url)
            if url.endswith("panels") and not done:
                done.append(1)
                new = json.loads(best.read_text())
                new["validation_dice"] = [1 - dice for dice in new["validation_dice"]]
                best.write_text(json.dumps(new))
            return found

    done: list[int] = []
    made_runs.write_run(tmp_path / "run", panels=2)
    best = tmp_path / "run/best/metrics.json"
    run = read_run(str(tmp_path / "run"), Meanwhile())
    assert run is not None
    dice = dict(zip(run.best["validation_ids"], run.best["validation_dice"], strict=True))
    assert run.best == json.loads(best.read_text())
    assert [panel.dice for panel in run.panels] == [dice[panel.id] for panel in run.panels]

"""The record of a sweep: what trials say of themselves, and a folder that is written and read again."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segtrain.errors import UserError
from segtrain.runs.trials import (
    ScoredEpoch,
    Sweep,
    Trial,
    point_label,
    read_sweep,
    read_trials,
    short_name,
    trial_folder,
    write_sweep,
    write_trial,
)
from segtrain.storage.files import Storage

HISTORY = (
    ScoredEpoch(1, 0.7, 10.0, 40.0),
    ScoredEpoch(2, 0.9, 20.0, 42.0),
    ScoredEpoch(3, 0.9, 30.0, 41.0),
    ScoredEpoch(4, 0.8, 40.0, 43.0),
)
SCORED = Trial(3, {"model.filters": 16}, "running", history=HISTORY, parameters=7, memory_bytes=9, attempts=1)

values = st.one_of(
    st.integers(), st.floats(allow_nan=False), st.text(), st.booleans(), st.none(), st.lists(st.integers(), max_size=3)
)
trials = st.builds(
    Trial,
    number=st.integers(0, 9999),
    point=st.dictionaries(st.text(), values | st.dictionaries(st.text(), st.floats(allow_nan=False)), max_size=3),
    status=st.sampled_from(["running", "finished", "stopped", "failed", "infeasible"]),
    reason=st.text(),
    history=st.lists(
        st.builds(ScoredEpoch, st.integers(1), st.floats(0, 1), st.floats(0, 1e9), st.floats(0, 1e6)), max_size=3
    ).map(tuple),
    parameters=st.integers(0),
    memory_bytes=st.integers(0),
    attempts=st.integers(0),
    resumable=st.booleans(),
)


@settings(max_examples=50)
@given(trials)
def test_a_trial_comes_back_from_its_json(trial: Trial) -> None:
    assert Trial.from_json(trial.to_json()) == trial


def test_the_first_of_equal_epochs_is_the_best_and_the_last_says_what_was_spent() -> None:
    assert (SCORED.dice, SCORED.best_epoch) == (0.9, 2)
    assert (SCORED.epochs, SCORED.gpu_s, SCORED.images_per_s) == (4, 40.0, 43.0)


def test_before_its_first_epoch_a_trial_has_no_dice_and_has_spent_nothing() -> None:
    new = Trial(0, {}, "running")
    assert new.dice is None
    assert (new.best_epoch, new.epochs, new.gpu_s, new.images_per_s) == (0, 0, 0.0, 0.0)


def test_an_epoch_is_added_at_the_end() -> None:
    after = SCORED.after(ScoredEpoch(5, 0.95, 50.0, 40.0))
    assert [scored.epoch for scored in after.history] == [1, 2, 3, 4, 5]
    assert (after.dice, after.best_epoch) == (0.95, 5)
    assert SCORED.epochs == 4, "the trial before is what it was"


def test_an_epoch_that_is_done_again_takes_the_place_of_all_that_came_after_it() -> None:
    again = SCORED.after(ScoredEpoch(2, 0.75, 25.0, 40.0))
    assert [(scored.epoch, scored.dice) for scored in again.history] == [(1, 0.7), (2, 0.75)]
    assert (again.dice, again.gpu_s) == (0.75, 25.0)


def test_a_trial_that_was_stopped_with_the_sweep_is_not_over_and_starts_again() -> None:
    assert not SCORED.is_over
    assert SCORED.ended("stopped", "not in the best third").is_over
    interrupted = SCORED.ended("stopped", "interrupted", resumable=True)
    assert not interrupted.is_over
    assert interrupted.started() == replace(SCORED, attempts=2)


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "sweep") if request.param == "local" else f"{request.getfixturevalue('s3_root')}/sweep"


def test_a_sweeps_folder_gives_back_what_was_written(folder: str) -> None:
    storage = Storage()
    written = [
        SCORED,
        Trial(0, {"data.height,data.width": [96, 144]}, "infeasible", "too large"),
        Trial(12, {}, "failed"),
    ]
    for trial in written:
        write_trial(folder, trial, storage)
    sweep = Sweep("stopped", "tune.max_hours is spent", 3600.5)
    write_sweep(folder, sweep, storage)
    assert [trial.number for trial in read_trials(folder, storage)] == [0, 3, 12]
    assert sorted(read_trials(folder, storage), key=written.index) == written
    assert read_sweep(folder, storage) == sweep
    assert storage.exists(f"{folder}/trials/0003/trial.json")


def test_a_folder_without_a_sweep_is_read_as_none(tmp_path: Path) -> None:
    assert read_sweep(str(tmp_path), Storage()) is None
    assert read_trials(str(tmp_path), Storage()) == []


def test_a_trials_folder_without_a_record_is_passed_over(tmp_path: Path) -> None:
    write_trial(str(tmp_path), SCORED, Storage())
    Path(trial_folder(str(tmp_path), 4)).mkdir()
    assert read_trials(str(tmp_path), Storage()) == [SCORED]


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "3", "{}", "null", '{"number": 1}', "[" * 100_000),
        SCORED.to_json().replace('"gpu_s"', '"seconds"'),
        SCORED.to_json().replace('"status": "', '"status": "half '),
        re.sub(r'"gpu_s": [0-9.]+', '"gpu_s": NaN', SCORED.to_json()),
        re.sub(r'"number": 3', '"number": "three"', SCORED.to_json()),
        re.sub(r'"point": {[^}]*}', '"point": null', SCORED.to_json()),
    ],
    ids=range(13),
)
def test_a_record_that_is_not_a_trials_is_named_with_the_fix(text: str, tmp_path: Path) -> None:
    write_trial(str(tmp_path), SCORED, Storage())
    record = tmp_path / "trials" / "0003" / "trial.json"
    record.write_text(text)
    with pytest.raises(UserError, match=r"0003/trial\.json is not what .* writes; delete that folder"):
        read_trials(str(tmp_path), Storage())


def test_the_record_of_another_trial_is_named(tmp_path: Path) -> None:
    """As where a trial's folder was copied: two trials would have one number."""
    write_trial(str(tmp_path), SCORED, Storage())
    shutil.copytree(tmp_path / "trials" / "0003", tmp_path / "trials" / "0003 copy")
    with pytest.raises(UserError, match=r"0003 copy/trial\.json is the record of trial 3; move that folder out"):
        read_trials(str(tmp_path), Storage())


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "3", "[]", "{}", "null", "[" * 100_000, '{"state": "running", "colour": "red"}'),
        *('{"state": "half"}', '{"state": "running", "seconds": NaN}', '{"state": "running", "seconds": "long"}'),
    ],
    ids=range(11),
)
def test_a_file_that_is_not_a_sweeps_is_named_with_the_fix(text: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=r"sweep\.json is not what .* writes; give another folder"):
        read_sweep(str(tmp_path), Storage())


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ({}, ""),
        ({"model.filters": 16, "optimizer.learning_rate": 0.00123456}, "filters=16 learning_rate=0.001235"),
        ({"data.height,data.width": [96, 144]}, "height,width=96,144"),
        ({"loss.terms": {"dice": 1.0, "bce": 0.5}}, "terms=dice:1+bce:0.5"),
        ({"model.residual": True, "optimizer.epsilon": 1e-8}, "residual=True epsilon=1e-08"),
    ],
)
def test_a_point_in_words(point: dict[str, Any], words: str) -> None:
    assert point_label(point) == words


def test_the_short_name_of_joined_fields_has_the_last_part_of_each() -> None:
    assert short_name("data.height,data.width") == "height,width"
    assert short_name("loss.terms.dice") == "dice"

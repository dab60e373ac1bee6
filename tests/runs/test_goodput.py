"""Where a run's time went: hand-computed attempts."""

from dataclasses import replace
from pathlib import Path

import pytest

from segtrain.config import StorageConfig
from segtrain.runs import goodput
from segtrain.runs.goodput import Attempt, Goodput
from segtrain.storage.files import Storage

KILLED = Attempt(
    began_at=0.0,
    workers=2,
    seconds=100.0,
    waiting_s=10.0,
    starting_s=20.0,
    steps_s=48.0,
    input_wait_s=12.0,
    checkpoint_s=1.0,
    evaluation_s=4.0,
    first_step=0,
    step=30,
    saved_step=20,
    end="worker 1 lost",
)
NEXT = Attempt(began_at=110.0, workers=1, seconds=50.0, starting_s=5.0, steps_s=40.0, first_step=20, step=60)


def test_steps_beyond_the_checkpoint_that_the_next_attempt_takes_up_are_lost() -> None:
    record = Goodput().begun(KILLED).begun(replace(NEXT, step=0, steps_s=0.0, seconds=1.0))
    assert record.updated(record.attempts[-1]).total("lost_s") == 0.0, "not known before the next one has taken a step"
    record = record.updated(NEXT)
    assert sum(record.lost_in()) == 10
    assert record.attempts[0].lost_s == pytest.approx(20.0)  # 10 of 30 steps, which took 48 + 12 s
    assert record.parts() == pytest.approx(
        {
            "steps": 48.0 - 16.0 + 40.0,
            "evaluation": 4.0,
            "input": 12.0,
            "checkpoints": 1.0,
            "waiting for resources": 10.0,
            "starting": 25.0,
            "lost steps": 16.0,
            "other": 5.0 + 5.0,
        }
    )
    assert sum(record.parts().values()) == pytest.approx(record.seconds)
    assert record.share == pytest.approx((32.0 + 40.0 + 4.0) / 150.0)


def test_steps_are_lost_too_where_an_attempt_without_a_step_lies_between() -> None:
    nothing = Attempt(began_at=105.0, workers=2, seconds=3.0, waiting_s=3.0, end="worker 0 lost")
    record = Goodput((KILLED,)).begun(nothing).begun(NEXT).updated(NEXT)
    assert (record.lost_in(), record.total("lost_s")) == ([10, 0, 0], pytest.approx(20.0))
    assert [row[4] for row in goodput.rows(record)] == ["10", "0", "0"]


def test_an_attempt_without_a_step_loses_none() -> None:
    record = Goodput((Attempt(began_at=0.0, workers=1, seconds=9.0, waiting_s=9.0), NEXT)).updated(NEXT)
    assert (sum(record.lost_in()), record.total("lost_s")) == (0, 0.0)


def test_the_record_comes_back_from_the_runs_folder_and_a_damaged_one_begins_anew(tmp_path: Path) -> None:
    storage, folder = Storage(StorageConfig()), str(tmp_path)
    assert goodput.read(folder, storage) == Goodput()
    record = Goodput((KILLED, NEXT))
    (tmp_path / "goodput.json").write_bytes(record.to_json())
    assert goodput.read(folder, storage) == record
    for damaged in (record.to_json()[:50], b'{"format_version": 1, "attempts": [1]}', b'{"format_version": 2}', b"[]"):
        (tmp_path / "goodput.json").write_bytes(damaged)
        assert goodput.read(folder, storage) == Goodput()


def test_the_sentence_names_the_largest_losses_first() -> None:
    told = goodput.goodput_sentence(Goodput((KILLED, NEXT)).updated(NEXT))
    assert told.startswith("51%: 76 s of 150 s in steps and scores; starting 25 s, lost steps 16 s, input 12 s")


def test_the_table_says_what_became_of_each_attempt() -> None:
    interrupted = replace(NEXT, end="")
    table = goodput.rows(Goodput((KILLED, interrupted, replace(NEXT, first_step=60, step=90, end="done"))))
    assert [row[1:3] + row[4:] for row in table] == [
        ("2", "0 to 30", "10", "worker 1 lost"),
        ("1", "20 to 60", "0", "its driver was lost"),
        ("1", "60 to 90", "0", "done"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        *("null", "[]", "[" * 100_000, '{"format_version": 1, "attempts": 3}'),
        '{"format_version": 1, "attempts": [{"began_at": 1.0, "workers": 1, "seconds": "long"}]}',
        '{"format_version": 1, "attempts": [{"began_at": NaN, "workers": 1}]}',
        '{"format_version": 1, "attempts": [{"began_at": 1.0, "workers": 1, "colour": "red"}]}',
    ],
    ids=range(7),
)
def test_a_record_of_odd_shape_begins_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "goodput.json").write_text(text)
    assert goodput.read(str(tmp_path), Storage()) == Goodput()

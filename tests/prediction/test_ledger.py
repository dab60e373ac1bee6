"""A folder of predictions knows what it was made with, and takes nothing else."""

import json
from pathlib import Path

import pytest

from segtrain.errors import UserError
from segtrain.prediction import ledger
from segtrain.storage.files import Storage

FACTS = {"model": "0123456789abcdef", "threshold": 0.5, "folds": [0, 1], "tile_height": None}


def test_the_same_prediction_goes_on_and_another_is_refused_with_what_differs(tmp_path: Path) -> None:
    storage, dest = Storage(), str(tmp_path / "masks")
    assert ledger.check_prediction(storage, dest, FACTS) is None
    ledger.claim(storage, dest, FACTS)
    ledger.claim(storage, dest, FACTS)
    with pytest.raises(
        UserError,
        match=r"masks holds another prediction \(model: 0123456789abcdef there, 0000 now; threshold: 0.5 there, "
        r"0.4 now\); give another DEST or delete it",
    ):
        ledger.claim(storage, dest, {**FACTS, "model": "0000", "threshold": 0.4})
    with pytest.raises(UserError, match=r"\(threshold: 0\.5 there, None now\)"):
        ledger.check_prediction(storage, dest, {name: value for name, value in FACTS.items() if name != "threshold"})
    assert json.loads((tmp_path / "masks" / ledger.NAME).read_text()) == {"format_version": 2, **FACTS}


def test_long_values_are_told_in_short(tmp_path: Path) -> None:
    (tmp_path / ledger.NAME).write_text(json.dumps({"format_version": 2, **FACTS, "folds": ["x" * 10_000]}))
    with pytest.raises(UserError, match=r"\(folds: \['x+\.\.\. there, \[0, 1\] now\)") as refused:
        ledger.check_prediction(Storage(), str(tmp_path), FACTS)
    assert len(str(refused.value)) < 500


def test_one_that_an_older_segtrain_began_is_taken_over(tmp_path: Path) -> None:
    storage, dest = Storage(), str(tmp_path)
    (tmp_path / ledger.NAME).write_text(json.dumps({"format_version": 1, **FACTS, "pictures": "0123"}))
    there = ledger.check_prediction(storage, dest, FACTS)
    assert there is not None
    assert there[ledger.OLD_FINGERPRINT] == "0123"
    for _ in range(2):
        assert ledger.claim(storage, dest, FACTS) == "0123"
        assert json.loads((tmp_path / ledger.NAME).read_text()) == {"format_version": 2, **FACTS, "pictures": "0123"}


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"format_version": 3}', "[" * 100_000, '{"a":' * 100_000])
def test_a_file_that_is_no_ledger_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / ledger.NAME).write_text(content)
    with pytest.raises(UserError, match=r"prediction\.json .*; give another DEST"):
        ledger.claim(Storage(), str(tmp_path), FACTS)


def test_only_the_last_to_take_a_folder_over_writes_there(tmp_path: Path) -> None:
    storage, dest = Storage(), str(tmp_path)
    first = ledger.own(storage, dest)
    ledger.check_owner(storage, dest, first)
    second = ledger.own(storage, dest)
    ledger.check_owner(storage, dest, second)
    with pytest.raises(UserError, match=r"was taken over by another process, which began later"):
        ledger.check_owner(storage, dest, first)


def test_a_task_has_a_part_once_that_file_is_there(tmp_path: Path) -> None:
    storage, dest = Storage(), str(tmp_path)
    assert ledger.parts(storage, dest) == []
    storage.write_bytes(ledger.part_url(dest, "pictures-0000000"), b"x")
    (tmp_path / "parts" / ".pictures-0000016.part.x.segtrain-tmp").write_bytes(b"half")
    assert ledger.parts(storage, dest) == ["pictures-0000000"]

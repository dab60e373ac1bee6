"""A folder of predictions knows what it was made with, and takes nothing else."""

import json
from pathlib import Path

import pytest

from segtrain.errors import UserError
from segtrain.inference import ledger
from segtrain.storage import Storage

FACTS = {"model": "0123456789abcdef", "threshold": 0.5, "folds": [0, 1], "tile_height": None}


def test_the_same_prediction_goes_on_and_another_is_refused_with_what_differs(tmp_path: Path) -> None:
    storage, dest = Storage(), str(tmp_path / "masks")
    ledger.check(storage, dest, FACTS)
    ledger.claim(storage, dest, FACTS)
    ledger.claim(storage, dest, FACTS)
    ledger.check(storage, dest, {"folds": (0, 1)})
    with pytest.raises(
        UserError,
        match=r"masks holds another prediction \(model: 0123456789abcdef there, 0000 now; threshold: 0.5 there, "
        r"0.4 now\); give another DEST or delete it",
    ):
        ledger.claim(storage, dest, {**FACTS, "model": "0000", "threshold": 0.4})
    assert json.loads((tmp_path / "masks" / ledger.NAME).read_text()) == {"format_version": 1, **FACTS}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format_version": 2}'])
def test_a_file_that_is_no_ledger_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / ledger.NAME).write_text(content)
    with pytest.raises(UserError, match=r"prediction\.json .*; give another DEST"):
        ledger.claim(Storage(), str(tmp_path), FACTS)


def test_a_task_is_finished_once_its_part_file_is_there(tmp_path: Path) -> None:
    storage, dest = Storage(), str(tmp_path)
    assert ledger.finished(storage, dest) == set()
    storage.write_bytes(ledger.part_url(dest, "pictures-0000000"), b"x")
    (tmp_path / "parts" / ".pictures-0000016.part.x.segtrain-tmp").write_bytes(b"half")
    assert ledger.finished(storage, dest) == {"pictures-0000000"}

"""A finished run whose `best/` is not whole makes it again from its own checkpoint, or says why it cannot."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from segtrain.config import Recipe, override
from segtrain.errors import DataError
from segtrain.runs.status import World
from segtrain.training.loop import train
from segtrain.training.step import TrainStep


def gone(best: Path) -> None:
    shutil.rmtree(best)


def cut(best: Path) -> None:
    (best / "model.keras").write_bytes((best / "model.keras").read_bytes()[:2000])


def of_another_epoch(best: Path) -> None:
    """As where a kill came between the two files, or an older chief's write came late."""
    facts = json.loads((best / "metrics.json").read_text())
    (best / "metrics.json").write_text(json.dumps(facts | {"step": 4, "epoch": 1}))


@pytest.fixture
def again(finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The recipe of a copy of the finished run, which may take no step."""
    shutil.copytree(finished.path, tmp_path / "finished")
    monkeypatch.delattr(TrainStep, "__call__")
    return override(finished.recipe, [f"run.storage={tmp_path}"])


def kept(folder: Path) -> dict[str, Any]:
    """What `best/metrics.json` says, less the model's checksum: a zip archive holds the time of its making."""
    facts = json.loads((folder / "best" / "metrics.json").read_text())
    assert len(facts.pop("model_sha256")) == 64
    return facts


@pytest.mark.parametrize("damage", [gone, cut, of_another_epoch])
def test_a_best_that_is_not_whole_is_made_again(
    finished, again: Recipe, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    folder = Path(again.run.folder)
    damage(folder / "best")
    with caplog.at_level(logging.WARNING):
        summary = train(again, World())
    assert f"it is made again from the checkpoint of step {kept(finished.path)['step']}" in caplog.text
    assert summary.dice_hard_original == finished.summary.dice_hard_original
    found = kept(folder)
    assert found == kept(finished.path) | {"train_seconds": found["train_seconds"]}
    mine, theirs = (keras.models.load_model(path / "best" / "model.keras") for path in (folder, finished.path))
    for one, other in zip(mine.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_where_its_checkpoint_is_gone_too_that_is_an_error_which_names_both(again: Recipe) -> None:
    folder = Path(again.run.folder)
    shutil.rmtree(folder / "best")
    newest = folder / "checkpoints" / "step-00000008"
    state = json.loads((newest / "state.json").read_text())
    state["cursor"]["best_step"] = 4
    (newest / "state.json").write_text(json.dumps(state))
    sums = json.loads((newest / "checksums.json").read_text())
    sums["state.json"] = hashlib.sha256((newest / "state.json").read_bytes()).hexdigest()
    (newest / "checksums.json").write_text(json.dumps(sums))
    told = r"best/metrics\.json is gone, and cannot be made again: the checkpoint of step 4 in .* is damaged .*is gone"
    with pytest.raises(DataError, match=told):
        train(again, World())


def test_a_run_whose_checkpoints_are_all_damaged_keeps_its_record(finished, again: Recipe) -> None:
    """It used to start at step 0, and so emptied `metrics.jsonl`."""
    folder = Path(again.run.folder)
    for step in finished.checkpoints():
        (folder / "checkpoints" / f"step-{step:08d}" / "arrays.npz").write_bytes(b"cut off")
    with pytest.raises(DataError, match=rf"no checkpoint of {folder} can be read .step-00000008: the sha256 of arrays"):
        train(again, World())
    assert (folder / "metrics.jsonl").read_bytes() == (finished.path / "metrics.jsonl").read_bytes()

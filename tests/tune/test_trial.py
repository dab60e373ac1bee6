"""What a trial's process tells first: epochs that ended just before it, or its driver, was killed."""

import json
from pathlib import Path

import numpy as np
import pytest

from segtrain.config import Recipe, override
from segtrain.storage.files import Storage
from segtrain.training.checkpoint import Checkpoints, Cursor
from segtrain.tune.trial import untold_epochs


def line(epoch: int, **scores: float) -> str:
    times = {"images_per_s": 10.0 * epoch, "epoch_s": 2.0, "input_wait_s": 0.1}
    return json.dumps(
        {"kind": "epoch", "epoch": epoch, "step": 4 * epoch, "loss": 0.5, "samples": 5.0, **times, **scores}
    )


@pytest.mark.parametrize(("known", "expected"), [(0, [1, 2]), (1, [2]), (2, []), (3, [])])
def test_epochs_that_a_checkpoint_holds_and_nobody_heard_of_are_told(
    tmp_path: Path, known: int, expected: list[int]
) -> None:
    """The third one is in the record, but its checkpoint was not written: it is trained again."""
    recipe = override(Recipe(), [f"run.storage={tmp_path}", "run.name=trial"])
    assert untold_epochs(recipe, Storage(), known) == []
    folder = tmp_path / "trial"
    folder.mkdir()
    lines = [line(epoch, dice_hard_original=0.5 + epoch / 10) for epoch in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, line(4)[:20]]))
    checkpoints = Checkpoints(str(folder), Storage(), keep=2)
    checkpoints.save({"model/0000": np.zeros(3)}, Cursor(epoch=2, step=8, train_s=20.0), {}, recipe)
    checkpoints.wait()
    found = untold_epochs(recipe, Storage(), known)
    assert found == [(epoch, 0.5 + epoch / 10, 10.0 * epoch, 10.0 * epoch) for epoch in expected]

"""A refactoring must reproduce the losses that it found.

`golden_losses.json` holds what a fixed recipe gave: order of samples, decoding, augmentation, initial weights,
dropout, loss, optimizer and schedule all show in it. In float64, where processors differ least. After a change that is
meant to change losses, write it anew and look at the difference:

    SEGTRAIN_WRITE_GOLDEN=1 python -m pytest tests/training/test_golden_losses.py
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from segtrain.config import Recipe
from segtrain.runs.status import World
from segtrain.training.loop import train

GOLDEN = Path(__file__).with_name("golden_losses.json")
STEPS = 10
SETTINGS = [
    "data.shuffle_window_bytes=1048576",
    "augment.rotate_degrees=10.0",
    "augment.scale=0.1",
    "augment.shift=0.05",
    "augment.contrast=0.1",
    "augment.brightness=0.1",
    "model.depth=2",
    "model.convolutions=2",
    "model.dropout=0.1",
    "optimizer.kind=adamw",
    "schedule.kind=cosine",
    "schedule.warmup_epochs=1.0",
    "train.global_batch_size=4",
    "train.epochs=3",
    "train.clip_norm=1.0",
    "train.precision=float64",
    "train.deterministic=true",
    "train.seed=2025",
    "evaluation.every_epochs=3",
    "evaluation.panels=0",
]


def test_the_losses_are_those_on_record(recipe: Callable[..., Recipe], run_folder) -> None:
    settings = recipe(*SETTINGS)
    train(settings, World())
    losses = [line["loss"] for line in run_folder(settings.run.folder).lines("step")][:STEPS]
    assert len(losses) == STEPS
    if os.environ.get("SEGTRAIN_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps({"settings": SETTINGS, "losses": losses}, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert golden["settings"] == SETTINGS, "write the golden losses anew, as the docstring says"
    assert losses == pytest.approx(golden["losses"], rel=1e-5)

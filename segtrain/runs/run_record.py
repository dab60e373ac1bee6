"""`metrics.jsonl`, the record of a run: reading what it holds at this moment, also while it is written or damaged."""

import math
from collections.abc import Iterator
from typing import Any

from segtrain.storage.json_text import read_json

STEP_FIELDS = ("step", "loss", "dice", "learning_rate")
EPOCH_FIELDS = ("epoch", "step", "loss", "samples", "images_per_s", "epoch_s", "input_wait_s")
OTHER_FIELDS = ("dice_training", "dice_hard_original", "left_out", "downloaded_bytes", "compute_s")
"""Of an epoch's line, where they are there."""


def steps_of(lines: bytes) -> list[dict[str, Any]]:
    """Lines of kind `step`: each has `STEP_FIELDS`, finite numbers."""
    return list(_of_kind(lines, "step"))


def epochs_of(lines: bytes) -> list[dict[str, Any]]:
    """Lines of kind `epoch`: each has `EPOCH_FIELDS`, finite numbers; scores only where the epoch was scored."""
    return list(_of_kind(lines, "epoch"))


def damaged(lines: bytes) -> int:
    """How many lines are none of a run's, but for one at the end that the run has only begun to write."""
    whole = lines.splitlines()
    if lines and not lines.endswith(b"\n"):
        whole.pop()
    return sum(_parsed(line) is None for line in whole)


def _of_kind(lines: bytes, kind: str) -> Iterator[dict[str, Any]]:
    for text in lines.splitlines():
        line = _parsed(text)
        if line is not None and line["kind"] == kind:
            yield line


def _parsed(text: bytes) -> dict[str, Any] | None:
    """None for what is no line of a run."""
    try:
        line = read_json(text)
    except ValueError:
        return None
    needed = {"step": STEP_FIELDS, "epoch": EPOCH_FIELDS}
    kind = line.get("kind") if isinstance(line, dict) else None
    if not isinstance(kind, str) or kind not in needed:
        return None
    names = [*needed[kind], *(name for name in OTHER_FIELDS if name in line)]
    if not all(_is_number(line.get(name)) for name in names):
        return None
    return None if line.get("epoch", 1) <= 0 else line


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

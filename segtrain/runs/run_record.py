"""`metrics.jsonl`, the record of a run: reading what it holds at this moment, also while it is written or damaged."""

import math
from typing import Any, Literal

from segtrain.storage.json_text import read_json

FIELDS = {
    "step": ("step", "loss", "dice", "learning_rate"),
    "epoch": ("epoch", "step", "loss", "samples", "images_per_s", "epoch_s", "input_wait_s"),
}
"""What each kind of line has."""
OTHER_FIELDS = ("dice_training", "dice_hard_original", "left_out", "downloaded_bytes", "compute_s")
"""Of an epoch's line, where they are there."""


def lines_of(kind: Literal["step", "epoch"], data: bytes) -> list[dict[str, Any]]:
    """The lines of a kind: each has its `FIELDS`, finite numbers; an epoch has scores only where it was scored."""
    parsed = map(_parsed, data.splitlines())
    return [line for line in parsed if line is not None and line["kind"] == kind]


def damaged(lines: bytes) -> int:
    """How many lines are none of a run's, but for one at the end that the run has only begun to write."""
    whole = lines.splitlines()
    if lines and not lines.endswith(b"\n"):
        whole.pop()
    return sum(_parsed(line) is None for line in whole)


def _parsed(text: bytes) -> dict[str, Any] | None:
    """None for what is no line of a run."""
    try:
        line: dict[str, Any] = read_json(text)
        names = [*FIELDS[line["kind"]], *(name for name in OTHER_FIELDS if name in line)]
    except (ValueError, KeyError, TypeError):
        return None
    is_sound = all(_is_number(line.get(name)) for name in names) and line.get("epoch", 1) > 0
    return line if is_sound else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

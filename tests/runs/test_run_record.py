"""Of `metrics.jsonl` only what a run writes is read; the rest is counted, whatever it is."""

import json
from typing import Any

import pytest

from segtrain.runs.run_record import damaged, lines_of

STEP: dict[str, Any] = {"kind": "step", "step": 1, "loss": 0.5, "dice": 0.4, "learning_rate": 1e-3}
EPOCH: dict[str, Any] = {
    **{"kind": "epoch", "epoch": 1, "step": 1, "loss": 0.5, "samples": 5.0},
    **{"images_per_s": 9.0, "epoch_s": 2.0, "input_wait_s": 0.1},
}
SOUND = json.dumps(STEP).encode() + b"\n" + json.dumps(EPOCH).encode() + b"\n"


def test_a_line_that_is_only_begun_is_left_out_and_is_no_damage() -> None:
    assert (lines_of("step", SOUND), lines_of("epoch", SOUND), damaged(SOUND)) == ([STEP], [EPOCH], 0)
    assert (lines_of("step", SOUND[:-9]), lines_of("epoch", SOUND[:-9]), damaged(SOUND[:-9])) == ([STEP], [], 0)
    assert damaged(b"") == 0


@pytest.mark.parametrize(
    "line",
    [
        *(
            b"",
            b"null",
            b"[1]",
            b"\xff",
            b"[" * 100_000,
            b'{"kind": "colour"}',
            b'{"kind": ["step"]}',
            b'{"kind": "step"}',
        ),
        json.dumps({**EPOCH, "epoch": 0}).encode(),
        json.dumps({**EPOCH, "epoch_s": "long"}).encode(),
        json.dumps({**EPOCH, "dice_hard_original": None}).encode(),
        json.dumps({**EPOCH, "downloaded_bytes": float("nan")}).encode(),
    ],
    ids=range(12),
)
def test_a_line_that_is_none_of_a_runs_is_counted_and_left_out(line: bytes) -> None:
    lines = line + b"\n" + SOUND
    assert (lines_of("step", lines), lines_of("epoch", lines), damaged(lines)) == ([STEP], [EPOCH], 1)

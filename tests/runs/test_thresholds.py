"""Thresholds as stored with a network: numbers between 0 and 1, or refused wherever they are read."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from segtrain.errors import UserError
from segtrain.report.write import write_report
from segtrain.runs.best_files import Curve, Threshold
from segtrain.storage.files import Storage
from tests.support import made_runs

CURVE = {"thresholds": [0.25, 0.5], "dice": [0.8, 0.9], "pictures": 3}


@pytest.mark.parametrize(
    "changes",
    [
        {"thresholds": [float("nan"), 0.5]},
        {"thresholds": [0.5, float("inf")]},
        {"thresholds": [0.5, 1.5]},
        {"thresholds": [], "dice": []},
        {"dice": [0.8, float("nan")]},
        {"dice": [0.8]},
        {"pictures": 0},
    ],
)
def test_a_curve_of_other_than_numbers_is_refused(changes: dict[str, Any]) -> None:
    Curve.model_validate(CURVE)
    with pytest.raises(ValidationError):
        Curve.model_validate({**CURVE, **changes})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0, 1, -0.5, None, "x"])
def test_what_is_no_threshold_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="Input should be"):
        TypeAdapter(Threshold).validate_python(value)


def test_a_threshold_that_is_no_number_does_not_get_into_a_report(tmp_path: Path) -> None:
    made_runs.write_run(tmp_path / "run", epochs=1, panels=0)
    url = tmp_path / "run" / "best" / "metrics.json"
    url.write_text(json.dumps({**json.loads(url.read_text()), "best_threshold": float("nan")}))
    with pytest.raises(UserError, match=r"metrics\.json is not what a run writes"):
        write_report(str(tmp_path / "run"), Storage())

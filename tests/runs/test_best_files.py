"""`best/` of a run counts only where it is whole and of the run's best epoch; whatever else is in it is a clause."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from segtrain.errors import UserError
from segtrain.report.write import write_report
from segtrain.runs.best_files import Curve, Threshold, parse_metrics, why_unusable
from segtrain.storage.files import Storage
from tests.support import made_runs

FACTS: dict[str, Any] = {"dice_hard_original": 0.9, "iou_hard_original": 0.8, "epoch": 2, "step": 8}


def model(content: bytes = b"weights" * 100) -> bytes:
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        archive.writestr("model.weights.h5", content)
    return stored.getvalue()


@pytest.fixture(params=["with a checksum", "of an older run"])
def best(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path / "best"
    folder.mkdir()
    (folder / "model.keras").write_bytes(model())
    facts = dict(FACTS)
    if request.param == "with a checksum":
        facts["model_sha256"] = hashlib.sha256(model()).hexdigest()
    (folder / "metrics.json").write_text(json.dumps(facts))
    return folder


def why(best: Path, step: int = 8) -> str | None:
    return why_unusable(str(best.parent), Storage(), step)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_what_is_whole_and_of_the_best_epoch_is_usable(best: Path) -> None:
    assert why(best) is None
    assert why(best, step=4) == f"{best}/metrics.json is of step 8 and not of the best, 4"


@pytest.mark.parametrize("damage", [Path.unlink, cut, flip_a_bit])
def test_a_network_that_is_gone_or_damaged_is_named(best: Path, damage: Callable[[Path], None]) -> None:
    damage(best / "model.keras")
    assert why(best) == f"{best}/model.keras is {'gone' if damage is Path.unlink else 'damaged'}"


def test_the_network_of_another_epoch_is_told_by_its_checksum(best: Path) -> None:
    (best / "model.keras").write_bytes(model(b"other weights"))
    told = "model_sha256" in (best / "metrics.json").read_text()
    assert why(best) == (f"{best}/model.keras is damaged" if told else None)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (json.dumps(FACTS)[:-9], "is damaged"),
        ("null", "it holds no JSON object"),
        ("[]", "it holds no JSON object"),
        ("[" * 100_000, "nested too deep"),
        (json.dumps({**FACTS, "best_threshold": float("nan")}), "best_threshold: Input should be"),
        (json.dumps({**FACTS, "best_threshold": 1.5}), "best_threshold: Input should be less than 1"),
        (json.dumps({**FACTS, "dice_hard_original": "x"}), "dice_hard_original: Input should be a valid number"),
        (json.dumps({**FACTS, "dice_hard_original": float("inf")}), "dice_hard_original: Input should be a finite"),
        (json.dumps({**FACTS, "validation_ids": ["a", "b"], "validation_dice": [1.0]}), "validation_dice is not of"),
        (json.dumps({**FACTS, "threshold_curve": {"thresholds": [0.5], "dice": []}}), "1 thresholds have 0 dice"),
    ],
    ids=range(10),
)
def test_scores_that_are_none_are_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "metrics.json").write_text(text)
    found = why(tmp_path / "best")
    assert found is not None
    assert f"{tmp_path}/best/metrics.json is damaged" in found
    assert told in found


def test_what_a_reader_needs_must_be_there() -> None:
    assert parse_metrics(json.dumps(FACTS).encode(), ["epoch"]) == FACTS
    with pytest.raises(ValueError, match=r"^threshold_curve is missing$"):
        parse_metrics(json.dumps(FACTS).encode(), ["threshold_curve"])


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

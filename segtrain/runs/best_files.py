"""What a run keeps in `best/`: what its scores and thresholds may be, whether it is whole, and of one epoch."""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from segtrain.runs.run_folder import RunFolder
from segtrain.storage.files import Storage
from segtrain.storage.json_text import read_json

Score = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Threshold = Annotated[float, Field(gt=0.0, lt=1.0, allow_inf_nan=False)]


class Curve(BaseModel):
    """Mean hard dice over the validation pictures for each threshold."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    thresholds: Annotated[tuple[Threshold, ...], Field(min_length=1)]
    dice: tuple[Score, ...]
    pictures: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _one_dice_each(self) -> Self:
        if len(self.thresholds) != len(self.dice):
            raise ValueError(f"{len(self.thresholds)} thresholds have {len(self.dice)} dice")
        return self


class _Metrics(BaseModel):
    """Fields that somebody reads, each of the right kind where it is there; older runs have fewer."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    dice_hard_original: float
    iou_hard_original: float
    epoch: int
    step: int = 0
    dice_soft: float | None = None
    train_seconds: float | None = None
    fold: int | None = None
    data_fingerprint: str | None = None
    recipe_fingerprint: str | None = None
    versions: dict[str, str] = {}
    best_threshold: Threshold | None = None
    dice_at_best_threshold: float | None = None
    threshold_curve: Curve | None = None
    validation_ids: list[str] = []
    validation_dice: list[float] = []
    validation_foreground: list[float] = []
    model_sha256: str | None = None


def parse_metrics(data: bytes, needs: Sequence[str] = ()) -> dict[str, Any]:
    """What a `best/metrics.json` holds. Raises ValueError, in words, for what training does not write.

    `needs` names fields that the caller reads and that are not optional to it.
    """
    tree = read_json(data)
    if not isinstance(tree, dict):
        raise ValueError("it holds no JSON object")
    try:
        known = _Metrics.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    missing = [name for name in needs if tree.get(name) is None]
    if missing:
        raise ValueError(f"{missing[0]} is missing")
    for name in ("validation_dice", "validation_foreground"):
        if getattr(known, name) and len(getattr(known, name)) != len(known.validation_ids):
            raise ValueError(f"{name} is not of as many pictures as validation_ids")
    return tree


def why_unusable(folder: str, storage: Storage, step: int) -> str | None:
    """Why `best/` is not that of the epoch that ended at `step`, in a clause; None where it is, and is whole."""
    files = RunFolder(folder)
    try:
        metrics = parse_metrics(storage.read_bytes(files.best_metrics))
        model = storage.read_bytes(files.best_model)
    except FileNotFoundError as error:
        return f"{error.filename} is gone"
    except ValueError as error:
        return f"{files.best_metrics} is damaged ({error})"
    if metrics.get("step", step) != step:
        return f"{files.best_metrics} is of step {metrics['step']} and not of the best, {step}"
    if not _is_whole(model, metrics):
        return f"{files.best_model} is damaged"
    return None


def _is_whole(model: bytes, metrics: Mapping[str, Any]) -> bool:
    """By its checksum; without one, as of older runs, a model whose own archive is whole counts."""
    if metrics.get("model_sha256") is not None:
        return bool(hashlib.sha256(model).hexdigest() == metrics["model_sha256"])
    try:
        with zipfile.ZipFile(io.BytesIO(model)) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, RuntimeError, NotImplementedError, zlib.error):
        return False

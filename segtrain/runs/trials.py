"""The record of a sweep: what each trial was and came to. Plain values, read by the sweep itself and by its report.

A sweep's folder holds `recipe.yaml`, `sweep.json`, and for each trial `trials/<number>/`: the folder of a run like any
other, with `trial.json` beside. Only the driver of the sweep writes `trial.json` and `sweep.json`: of several drivers
the newest, whose token is in `sweep.json`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

from pydantic import ConfigDict, TypeAdapter

from segtrain.errors import UserError
from segtrain.runs.ownership import write_while
from segtrain.storage.files import Storage, join
from segtrain.storage.json_text import read_json

SWEEP_NAME = "sweep.json"
TRIAL_NAME = "trial.json"
FORMAT_VERSION = 1
MOST_BYTES = 2**24
"""Of a record; one of a trial of ten thousand epochs has a tenth."""
Status = Literal["running", "finished", "stopped", "failed", "infeasible"]
SweepState = Literal["running", "finished", "stopped"]
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Record:
    """Facts that are kept as JSON."""

    __pydantic_config__ = STRICT

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises ValueError for what `to_json` has not written."""
        return TypeAdapter(cls).validate_python(read_json(text))


@dataclass(frozen=True)
class ScoredEpoch:
    """A trial after one of its epochs."""

    __pydantic_config__ = STRICT

    epoch: int
    """From 1."""
    dice: float
    """Hard dice at original resolution on the validation fold, after this epoch."""
    gpu_s: float
    """Seconds of training and scoring so far, times replicas."""
    images_per_s: float


@dataclass(frozen=True)
class Trial(_Record):
    """One point of the space, and how far its run has come."""

    number: int
    """From 0, in the order in which the points were chosen; infeasible ones are counted too."""
    point: dict[str, Any]
    """Axis of `tune.space` -> value, of the axes that apply."""
    status: Status
    reason: str = ""
    """Why it was stopped, failed or is infeasible, in a sentence."""
    history: tuple[ScoredEpoch, ...] = ()
    parameters: int = 0
    memory_bytes: int = 0
    """Predicted for a training step, a replica."""
    attempts: int = 0
    """Times that its run was started."""
    resumable: bool = False
    """Stopped with the whole sweep, or lost to another process, not for its score: `--resume` goes on with it."""
    driver: str = ""
    """Token of the sweep's driver that wrote this last."""

    @property
    def dice(self) -> float | None:
        """The best dice so far: what `best/model.keras` in its folder has. None before the first."""
        return max((scored.dice for scored in self.history), default=None)

    @property
    def best_epoch(self) -> int:
        """The epoch of `dice`; 0 before the first."""
        return max(self.history, key=lambda scored: (scored.dice, -scored.epoch)).epoch if self.history else 0

    @property
    def epochs(self) -> int:
        """Epochs trained."""
        return self.history[-1].epoch if self.history else 0

    @property
    def gpu_s(self) -> float:
        return self.history[-1].gpu_s if self.history else 0.0

    @property
    def images_per_s(self) -> float:
        return self.history[-1].images_per_s if self.history else 0.0

    @property
    def is_over(self) -> bool:
        """Whether a sweep that is resumed has nothing more to do for it."""
        return self.status != "running" and not self.resumable

    def after(self, scored: ScoredEpoch) -> "Trial":
        """The trial with one more epoch; one that was done again takes the place of what came after it before."""
        kept = tuple(one for one in self.history if one.epoch < scored.epoch)
        return replace(self, history=(*kept, scored))

    def ended(self, status: Status, reason: str = "", *, resumable: bool = False) -> "Trial":
        return replace(self, status=status, reason=reason, resumable=resumable)

    def started(self) -> "Trial":
        """The trial at the start of one more attempt."""
        return replace(self, status="running", reason="", resumable=False, attempts=self.attempts + 1)


@dataclass(frozen=True)
class Sweep(_Record):
    """Facts of the sweep as a whole."""

    state: SweepState
    """`stopped` by its budget or by the user; the same command with --resume goes on."""
    reason: str = ""
    seconds: float = 0.0
    """The driver's, all attempts together."""
    format_version: int = FORMAT_VERSION
    driver: str = ""
    """Token of the driver that has the sweep."""
    own_from: int | None = None
    """Trials from this number on count only where this driver wrote them: what an older one adds later does not."""


def trial_folder(sweep_folder: str, number: int) -> str:
    """Where a trial's run is."""
    return join(sweep_folder, "trials", f"{number:04d}")


def read_sweep(folder: str, storage: Storage) -> Sweep | None:
    """The facts of the sweep in `folder`; None where there is no sweep. UserError for a file that is not ours."""
    url = join(folder, SWEEP_NAME)
    try:
        sweep = Sweep.from_json(storage.read_bytes(url, at_most=MOST_BYTES))
        if sweep.format_version != FORMAT_VERSION:
            raise ValueError(f"format version {sweep.format_version}")
        return sweep
    except FileNotFoundError:
        return None
    except ValueError:
        raise UserError(f"{url} is not what jobs/tune.py of this segtrain writes; give another folder") from None


def read_trials(folder: str, storage: Storage) -> list[Trial]:
    """All trials of the sweep in `folder`, by number. Raises UserError for a record that is not ours."""
    found = []
    for name in storage.list(join(folder, "trials")):
        url = join(folder, "trials", name, TRIAL_NAME)
        try:
            trial = Trial.from_json(storage.read_bytes(url, at_most=MOST_BYTES))
        except FileNotFoundError:
            continue  # a kill came between the making of the folder and of the record: the number is used again
        except ValueError:
            raise UserError(f"{url} is not what jobs/tune.py of this segtrain writes; delete that folder") from None
        if trial_folder(folder, trial.number) != join(folder, "trials", name):
            raise UserError(f"{url} is the record of trial {trial.number}; move that folder out of the sweep's")
        found.append(trial)
    sweep = read_sweep(folder, storage)
    return sorted((trial for trial in found if _counts(trial, sweep)), key=lambda trial: trial.number)


def _counts(trial: Trial, sweep: Sweep | None) -> bool:
    """Whether no driver wrote the trial after another had taken its sweep over."""
    return sweep is None or sweep.own_from is None or trial.number < sweep.own_from or trial.driver == sweep.driver


def write_trial(folder: str, trial: Trial, storage: Storage, owned: Callable[[], None] = lambda: None) -> None:
    """Put the trial's record beside its run, unless `owned` raises (`segtrain.runs.ownership`)."""
    write_while(owned, join(trial_folder(folder, trial.number), TRIAL_NAME), trial.to_json().encode(), storage)


def write_sweep(folder: str, sweep: Sweep, storage: Storage, owned: Callable[[], None] = lambda: None) -> None:
    """Put the sweep's facts into its folder, unless `owned` raises."""
    write_while(owned, join(folder, SWEEP_NAME), sweep.to_json().encode(), storage)


def point_label(point: Mapping[str, Any]) -> str:
    """A point in a few words: `filters=16 height,width=96,128 dice=1`; the last part of each field's name."""
    return " ".join(f"{short_name(axis)}={short_value(value)}" for axis, value in point.items())


def short_name(axis: str) -> str:
    """`height,width` for `data.height,data.width`."""
    return ",".join(field.rpartition(".")[2] for field in axis.split(","))


def short_value(value: Any) -> str:
    """A value of an axis for people: four digits, joined values with commas, a section as `dice:1+bce:1`."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ",".join(map(short_value, value))
    if isinstance(value, Mapping):
        return "+".join(f"{key}:{short_value(one)}" for key, one in value.items())
    return str(value)

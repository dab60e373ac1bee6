"""The files of trained networks, each with the facts that belong to it, read once and of one version. No TensorFlow.

Whoever starts a prediction or an evaluation reads them and hands them to its workers: a run that replaces its best
network meanwhile cannot give one worker another network than the next.
"""

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError

from segtrain import metrics
from segtrain.config import Model
from segtrain.errors import UserError
from segtrain.runs.best_files import Curve, Threshold
from segtrain.runs.networks import members_of, parts_of
from segtrain.runs.run_folder import BEST_NAME, ENSEMBLE_NAME, METRICS_NAME, MODEL_NAME, RunFolder
from segtrain.storage.files import Storage, join
from segtrain.storage.json_text import read_json

DEFAULT_THRESHOLD = 0.5
SAVED_MODEL = "saved_model.pb"
SETTLES_IN_S = 30.0
"""A run that replaces its best network writes `model.keras` first, and `metrics.json` at most this much later."""
LOOK_EVERY_S = 0.2

Side = Annotated[int, Field(ge=1)]


class Input(BaseModel, frozen=True):
    """What the network was trained on: whole pictures resized to this size, or crops of it."""

    fit: Literal["resize", "crop"]
    height: Side
    width: Side


class Facts(BaseModel, frozen=True):
    """What `best/metrics.json` says that predicting needs."""

    input: Input
    model: Model
    best_threshold: Threshold = DEFAULT_THRESHOLD
    threshold_curve: Curve | None = None
    fold: int | None = None
    """Fold that the network was validated on."""
    test_fold: int | None = None
    """Fold that was set aside for tests."""
    data_fingerprint: str | None = None
    """Of the data set that the network was trained on."""
    model_sha256: str | None = None
    """Of the `model.keras` that the facts are of; older runs did not note it."""


@dataclass(frozen=True)
class StoredNetwork:
    """One trained network as files."""

    name: str
    """The URL that it was read from."""
    kind: Literal["keras", "saved_model"]
    files: Mapping[str, bytes]
    """Path within the model -> bytes; `model.keras` alone where it is Keras's."""
    metrics: bytes | None = None
    """The `metrics.json` beside it."""
    facts: Facts | None = None
    """What that says; None without a `metrics.json`."""

    @property
    def digest(self) -> str:
        """32 hex digits over the model's files."""
        digest = hashlib.sha256()
        for name, data in sorted(self.files.items()):
            digest.update(f"{name} {len(data)} ".encode())
            digest.update(data)
        return digest.hexdigest()[:32]


def read_networks(source: str, storage: Storage, *, trust_saved_model: bool = False) -> list[StoredNetwork]:
    """The networks that `source` names: a run's folder, one with `ensemble.json`, a `.keras` file or a SavedModel.

    Several sources, joined by commas, are the members of one ensemble. Raises `UserError` for what is none of these,
    for a SavedModel unless these are trusted, for members outside of an ensemble's folder, and where a network and its
    `metrics.json` are not of one version and do not become so.
    """
    sources = parts_of(source)
    if not all(sources):
        raise UserError(f"'{source}' names an empty model; give runs or models, with commas between them")
    return [network for part in sources for network in _read_source(part, storage, trust_saved_model)]


def combined_digest(digests: Iterable[str]) -> str:
    """16 hex digits over the digests of the members, in their order."""
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]


def metrics_beside(model_file: str) -> str:
    """The URL of the `metrics.json` that belongs to a `.keras` file."""
    return join(model_file.rpartition("/")[0] or ".", METRICS_NAME)


def threshold_of(members: Sequence[Facts | None]) -> float:
    """The threshold with the highest mean dice over all members' validation pictures; 0.5 where nothing is known.

    `members` are the facts of each network. Where a member's curve is missing, it is the mean of the thresholds that
    members did best with.
    """
    known = [facts for facts in members if facts is not None]
    curves = [facts.threshold_curve for facts in known if facts.threshold_curve is not None]
    if len(members) > 1 and len(curves) == len(members) and len({curve.thresholds for curve in curves}) == 1:
        return metrics.pooled_threshold(
            curves[0].thresholds, [curve.dice for curve in curves], [curve.pictures for curve in curves]
        )[0]
    return sum(facts.best_threshold for facts in known) / len(known) if known else DEFAULT_THRESHOLD


def _read_source(source: str, storage: Storage, trust_saved_model: bool) -> list[StoredNetwork]:
    if source.endswith(".keras"):
        return [_read_keras(source, storage)]
    members = members_of(source, storage)
    if members is not None:
        return [_read_run(folder, storage) for folder in members]
    if storage.exists(RunFolder(source).best_model):
        return [_read_run(source, storage)]
    if storage.exists(join(source, SAVED_MODEL)):
        if not trust_saved_model:
            raise UserError(
                f"{source} is a SavedModel, a program that may do whatever you may; where you trust its maker, type "
                f"inference.trust_saved_model=true with the command (in a recipe it counts for nothing)"
            )
        return [_read_saved_model(source, storage)]
    raise UserError(
        f"{source} holds no trained network: neither {BEST_NAME}/{MODEL_NAME} of a run that has finished an epoch, nor "
        f"{ENSEMBLE_NAME}, nor {SAVED_MODEL}, and it is no .keras file"
    )


def _read_run(folder: str, storage: Storage) -> StoredNetwork:
    files = RunFolder(folder)
    # A chief claims its run's folder before it writes anything there, and its metrics come after the network.
    return _read_keras(files.best_model, storage, metrics_due=storage.exists(files.owner))


def _read_keras(url: str, storage: Storage, *, metrics_due: bool = False) -> StoredNetwork:
    """A `.keras` file with the facts that are of it, and not of the network before or after it."""
    until_s = time.monotonic() + SETTLES_IN_S
    while True:
        before = storage.read_if_there(metrics_beside(url))
        data = storage.read_if_there(url)
        if data is None:
            raise UserError(f"there is no {url}")
        facts = _parse_facts(before, metrics_beside(url))
        settled = before is not None or not metrics_due
        if settled and _is_of(facts, data) and storage.read_if_there(metrics_beside(url)) == before:
            return StoredNetwork(url, "keras", {MODEL_NAME: data}, before, facts)
        if time.monotonic() > until_s:
            raise UserError(
                f"{url} and {METRICS_NAME} beside it are not of one network, as where a run was killed while it "
                f"kept its best; train on with the same command, which writes both again"
            )
        time.sleep(LOOK_EVERY_S)


def _is_of(facts: Facts | None, data: bytes) -> bool:
    expected = None if facts is None else facts.model_sha256
    return expected is None or hashlib.sha256(data).hexdigest() == expected


def _read_saved_model(url: str, storage: Storage) -> StoredNetwork:
    inside = [join(folder, name) for folder in ("variables", "assets") for name in storage.list(join(url, folder))]
    files = {name: storage.read_bytes(join(url, name)) for name in (SAVED_MODEL, *inside)}
    stored = storage.read_if_there(join(url, METRICS_NAME))
    return StoredNetwork(url, "saved_model", files, stored, _parse_facts(stored, join(url, METRICS_NAME)))


def _parse_facts(stored: bytes | None, url: str) -> Facts | None:
    if stored is None:
        return None
    try:
        return Facts.model_validate(read_json(stored))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{url}: {place}: {first['msg']}; it must be what training writes beside a model") from None
    except ValueError:
        raise UserError(f"{url} is no JSON; it must be what training writes beside a model") from None

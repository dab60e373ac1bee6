"""Trained networks from wherever they are: run folders, ensembles, `.keras` files and SavedModels, local or `s3://`."""

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras
import tensorflow as tf
from pydantic import BaseModel, ConfigDict, ValidationError

import segtrain.models  # noqa: F401  registers the layers that a saved model names
from segtrain import metrics
from segtrain.config import Model
from segtrain.errors import UserError
from segtrain.json_text import read_json
from segtrain.models.blocks import PadToMultiple
from segtrain.scratch import scratch_folder
from segtrain.storage import Storage, join
from segtrain.thresholds import Curve, Threshold

CHANNELS = 3
DEFAULT_THRESHOLD = 0.5
SAVED_MODEL = "saved_model.pb"
METRICS = "metrics.json"
UNKNOWN_MULTIPLE = 32
"""Where nothing tells how often a network halves its input: five times, as most encoders do, suits fewer as well."""


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Input(_Read):
    """What the network was trained on: whole pictures resized to this size, or crops of it."""

    fit: Literal["resize", "crop"]
    height: int
    width: int


class Facts(_Read):
    """What `best/metrics.json` says that predicting needs."""

    input: Input
    model: Model
    best_threshold: Threshold = DEFAULT_THRESHOLD
    threshold_curve: Curve | None = None
    fold: int | None = None
    """Fold that the network was validated on."""


@dataclass(frozen=True)
class Member:
    """One trained network of those whose probabilities are averaged."""

    name: str
    """The URL that it was loaded from."""
    apply: Callable[[tf.Tensor], tf.Tensor]
    """Pictures float32 (B, H, W, 3) in [0, 1] to logits (B, H, W, 1), as at inference."""
    digest: str
    """32 hex digits over the bytes of the model's files."""
    size: tuple[int, int] | None = None
    """(height, width) that every picture is resized to; None where it takes pictures at their own size."""
    multiple: int = UNKNOWN_MULTIPLE
    """Cells of its grid in pixels, 2**depth; tiles start and end on them."""
    facts: Facts | None = None
    """None where no `metrics.json` is beside the model."""
    model: keras.Model | None = None
    """None for a SavedModel."""


def load_members(source: str, storage: Storage) -> list[Member]:
    """The networks that `source` names: a run's folder, one with `ensemble.json`, a `.keras` file or a SavedModel.

    Several sources, joined by commas, are the members of one ensemble. Raises `UserError` for what is none of these,
    for a file that is no model, and for one that does not map pictures of 3 channels to one channel of logits.
    """
    sources = [part.strip() for part in source.split(",")]
    if not all(sources):
        raise UserError(f"'{source}' names an empty model; give runs or models, with commas between them")
    return [member for part in sources for member in _load_source(part, storage)]


def metrics_beside(model_file: str) -> str:
    """The URL of the `metrics.json` that belongs to a `.keras` file."""
    return join(model_file.rpartition("/")[0] or ".", METRICS)


def pooled_threshold(members: Sequence[Member]) -> float:
    """The threshold with the highest mean dice over all members' validation pictures; 0.5 where nothing is known.

    Where a member's curve is missing, the mean of the thresholds that members did best with.
    """
    facts = [member.facts for member in members if member.facts is not None]
    curves = [fact.threshold_curve for fact in facts if fact.threshold_curve is not None]
    if len(members) > 1 and len(curves) == len(members) and len({curve.thresholds for curve in curves}) == 1:
        dice, pictures = [curve.dice for curve in curves], [curve.pictures for curve in curves]
        return metrics.pooled_threshold(curves[0].thresholds, dice, pictures)[0]
    if not facts:
        return DEFAULT_THRESHOLD
    return sum(fact.best_threshold for fact in facts) / len(facts)


def _load_source(source: str, storage: Storage) -> list[Member]:
    if source.endswith(".keras"):
        return [_load_keras(source, storage)]
    ensemble = _read(storage, join(source, "ensemble.json"))
    if ensemble is not None:
        return [_load_run(join(source, name), storage) for name in _names_of_members(source, ensemble)]
    if storage.exists(join(source, "best", "model.keras")):
        return [_load_run(source, storage)]
    if storage.exists(join(source, SAVED_MODEL)):
        return [_load_saved_model(source, storage)]
    raise UserError(
        f"{source} holds no trained network: neither best/model.keras of a run that has finished an epoch, nor "
        f"ensemble.json, nor {SAVED_MODEL}, and it is no .keras file"
    )


def _names_of_members(folder: str, ensemble: bytes) -> list[str]:
    try:
        entry = read_json(ensemble)
        version, names = entry["format_version"], [str(name) for name in entry["members"]]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder}/ensemble.json is not what folds=all writes; train the folds again") from None
    if version != 1:
        raise UserError(f"{folder}/ensemble.json has format version {version}; this segtrain reads version 1")
    if not names:
        raise UserError(f"{folder}/ensemble.json names no member; train with folds=all")
    return names


def _load_run(folder: str, storage: Storage) -> Member:
    return _load_keras(join(folder, "best", "model.keras"), storage)


def _load_keras(url: str, storage: Storage) -> Member:
    data = _read(storage, url)
    if data is None:
        raise UserError(f"there is no {url}")
    if not zipfile.is_zipfile(io.BytesIO(data)):
        raise UserError(f"{url} is no .keras file, which is a zip archive; give one that training or Keras wrote")
    with scratch_folder("model") as folder:
        local = folder / "model.keras"
        local.write_bytes(data)
        try:
            model = keras.models.load_model(local, compile=False)
            shapes = _shape(model.input_shape), _shape(model.output_shape)
        # Keras has no error of its own for these; what a damaged or foreign file raises depends on which part of it
        # is read first.
        except (ValueError, TypeError, KeyError, AttributeError, OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{url} is no Keras model that can be read here: {_first_line(error)}") from None
    size = _checked_size(url, *shapes)
    padding = next((layer for layer in model.layers if isinstance(layer, PadToMultiple)), None)

    def apply(pictures: tf.Tensor) -> tf.Tensor:
        return model(tf.cast(pictures, model.inputs[0].dtype), training=False)

    facts = _read_facts(metrics_beside(url), storage)
    multiple = padding.multiple if padding is not None else _multiple(facts)
    return Member(url, apply, _digest({"model.keras": data}), _size(facts, size), multiple, facts, model)


def _load_saved_model(url: str, storage: Storage) -> Member:
    names = [SAVED_MODEL]
    for folder in ("variables", "assets"):
        names += [join(folder, name) for name in storage.list(join(url, folder))]
    files = {name: storage.read_bytes(join(url, name)) for name in names}
    with scratch_folder("model") as unpacked:
        for name, data in files.items():
            local = unpacked / name
            local.parent.mkdir(exist_ok=True)
            local.write_bytes(data)
        try:
            loaded = tf.saved_model.load(str(unpacked))
            serve = loaded.signatures["serving_default"]
            ((argument, takes),) = serve.structured_input_signature[1].items()
            ((result, gives),) = serve.structured_outputs.items()
        except (tf.errors.OpError, OSError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{url} is no SavedModel that can be read here: {_first_line(error)}") from None
    size = _checked_size(url, _shape(takes.shape), _shape(gives.shape))

    def apply(pictures: tf.Tensor, owner: Any = loaded) -> tf.Tensor:
        # `owner` keeps the variables alive, which the signature alone does not.
        return serve(**{argument: tf.cast(pictures, takes.dtype)})[result]

    facts = _read_facts(join(url, METRICS), storage)
    return Member(url, apply, _digest(files), _size(facts, size), _multiple(facts), facts)


def _checked_size(url: str, takes: Sequence[int | None], gives: Sequence[int | None]) -> tuple[int, int] | None:
    """The one size (height, width) that the network takes, or None where it takes any."""
    if len(takes) != 4 or len(gives) != 4:
        raise UserError(f"{url} maps {tuple(takes)} to {tuple(gives)}; a network from pictures to logits is needed")
    if takes[3] != CHANNELS:
        raise UserError(f"{url} takes pictures of {takes[3]} channels; pictures are read as {CHANNELS} (RGB)")
    if gives[3] != 1:
        raise UserError(f"{url} gives {gives[3]} channels; a network with one channel of logits is needed")
    return None if takes[1] is None or takes[2] is None else (takes[1], takes[2])


def _shape(shape: Any) -> tuple[int | None, ...]:
    """A shape as Keras or TensorFlow gives it. Raises TypeError for the shapes of several inputs."""
    sizes = tuple(shape)
    if not all(size is None or isinstance(size, int) for size in sizes):
        raise TypeError(f"it has several inputs or outputs: {shape}")
    return sizes


def _read_facts(url: str, storage: Storage) -> Facts | None:
    stored = _read(storage, url)
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


def _size(facts: Facts | None, fixed: tuple[int, int] | None) -> tuple[int, int] | None:
    if facts is not None and facts.input.fit == "resize":
        return facts.input.height, facts.input.width
    return fixed


def _multiple(facts: Facts | None) -> int:
    return UNKNOWN_MULTIPLE if facts is None else 2**facts.model.depth


def _read(storage: Storage, url: str) -> bytes | None:
    """A file's bytes, or nothing where there is none."""
    try:
        return storage.read_bytes(url)
    except FileNotFoundError:
        return None


def _digest(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, data in sorted(files.items()):
        digest.update(f"{name} {len(data)} ".encode())
        digest.update(data)
    return digest.hexdigest()[:32]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

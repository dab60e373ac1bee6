"""Trained networks on the device, from the files that `inference.stored_networks` has read."""

import io
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import segtrain.models  # noqa: F401  registers the layers that a saved model names
from segtrain.config import ClusterConfig
from segtrain.errors import UserError
from segtrain.inference.stored_networks import Facts, StoredNetwork
from segtrain.models.layers import PadToMultiple
from segtrain.process import keep_freed_memory
from segtrain.runs.run_folder import MODEL_NAME
from segtrain.storage.scratch import scratch_folder

Apply = Callable[[tf.Tensor], tf.Tensor]
"""Pictures float32 (B, H, W, 3) in [0, 1] to logits (B, H, W, 1), as at inference."""
Shape = Sequence[int | None]

CHANNELS = 3
DAMAGED = (
    *(ValueError, TypeError, KeyError, AttributeError, IndexError, ImportError, OSError, EOFError),
    *(RecursionError, NotImplementedError, zipfile.BadZipFile, zlib.error, tf.errors.OpError),
)
"""What Keras and TensorFlow raise for a damaged or foreign file, depending on which part is. They have no own error."""
UNKNOWN_MULTIPLE = 32
"""Where nothing tells how often a network halves its input: five times, as most encoders do, suits fewer as well."""


@dataclass(frozen=True)
class Member:
    """One trained network of those whose probabilities are averaged."""

    name: str
    """The URL that it was loaded from."""
    apply: Apply
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


def configure_device(asked: ClusterConfig) -> None:
    """Prepare this process; before anything else touches TensorFlow in it.

    Raises UserError where a GPU was asked for and TensorFlow sees none: a missing driver would silently leave the work
    to the CPU.
    """
    keep_freed_memory()
    if asked.gpus_per_worker == 0:
        tf.config.set_visible_devices([], "GPU")
    elif not tf.config.list_physical_devices("GPU"):
        raise UserError(
            f"cluster.gpus_per_worker is {asked.gpus_per_worker} but TensorFlow sees no GPU on this node; check the "
            f"driver and CUDA libraries (pip install -e '.[gpu]')"
        )


def load_network(network: StoredNetwork) -> Member:
    """A network for use.

    Raises `UserError` for a file that is no model, and for a model that does not map pictures of 3 channels to one
    channel of logits.
    """
    kind, load = ("Keras model", _load_keras) if network.kind == "keras" else ("SavedModel", _load_saved_model)
    if network.kind == "keras" and not zipfile.is_zipfile(io.BytesIO(network.files[MODEL_NAME])):
        raise UserError(
            f"{network.name} is no .keras file, which is a zip archive; give one that training or Keras wrote"
        )
    with scratch_folder("model") as folder:
        for name, data in network.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        try:
            apply, takes, gives, model = load(folder)
        except DAMAGED as error:
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{network.name} is no {kind} that can be read here: {first_line}") from None
    facts, size = network.facts, _checked_size(network.name, takes, gives)
    if facts is not None and facts.input.fit == "resize":
        size = facts.input.height, facts.input.width
    return Member(network.name, apply, network.digest, size, _multiple(model, facts), facts, model)


def _load_keras(folder: Path) -> tuple[Apply, Shape, Shape, keras.Model | None]:
    """The model's function, the shapes that it takes and gives, and the model."""
    model = keras.models.load_model(folder / MODEL_NAME, compile=False)

    def apply(pictures: tf.Tensor) -> tf.Tensor:
        return model(tf.cast(pictures, model.inputs[0].dtype), training=False)

    return apply, _shape(model.input_shape), _shape(model.output_shape), model


def _load_saved_model(folder: Path) -> tuple[Apply, Shape, Shape, keras.Model | None]:
    """The same of a SavedModel, which is no Keras model."""
    loaded = tf.saved_model.load(str(folder))
    serve = loaded.signatures["serving_default"]
    ((argument, takes),) = serve.structured_input_signature[1].items()
    ((result, gives),) = serve.structured_outputs.items()

    def apply(pictures: tf.Tensor, owner: Any = loaded) -> tf.Tensor:
        # `owner` keeps the variables alive, which the signature alone does not.
        return serve(**{argument: tf.cast(pictures, takes.dtype)})[result]

    return apply, _shape(takes.shape), _shape(gives.shape), None


def _checked_size(url: str, takes: Shape, gives: Shape) -> tuple[int, int] | None:
    """The one size (height, width) that the network takes, or None where it takes any."""
    if len(takes) != 4 or len(gives) != 4:
        raise UserError(f"{url} maps {tuple(takes)} to {tuple(gives)}; a network from pictures to logits is needed")
    if takes[3] != CHANNELS:
        raise UserError(f"{url} takes pictures of {takes[3]} channels; pictures are read as {CHANNELS} (RGB)")
    if gives[3] != 1:
        raise UserError(f"{url} gives {gives[3]} channels; a network with one channel of logits is needed")
    return None if takes[1] is None or takes[2] is None else (takes[1], takes[2])


def _shape(shape: Any) -> Shape:
    """A shape as Keras or TensorFlow gives it. Raises TypeError for the shapes of several inputs."""
    sizes = tuple(shape)
    if not all(size is None or isinstance(size, int) for size in sizes):
        raise TypeError(f"it has several inputs or outputs: {shape}")
    return sizes


def _multiple(model: keras.Model | None, facts: Facts | None) -> int:
    """Cells of the network's grid in pixels, by its own layers or else by its facts."""
    layers = [] if model is None else model.layers
    known = UNKNOWN_MULTIPLE if facts is None else 2**facts.model.depth
    return next((layer.multiple for layer in layers if isinstance(layer, PadToMultiple)), known)

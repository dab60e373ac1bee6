"""What a process that predicts is told, and what it tells. No TensorFlow: both are in the driver's hands too."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from segtrain.config import Recipe
from segtrain.dataset.manifest import Manifest
from segtrain.inference.stored_networks import StoredNetwork


@dataclass(frozen=True)
class Assignment:
    """What a worker is told before its first task; plain values."""

    recipe: Recipe
    networks: Sequence[StoredNetwork]
    """As the driver has read them, so that all workers have the same."""
    target: str
    """The data set or folder that the tasks are of."""
    manifest: Manifest | None
    """The data set's when the tasks were made; None for a folder."""
    dest: str
    token: str
    """Of the call that owns `dest`."""


@dataclass(frozen=True)
class Done:
    """What came of a task."""

    bytes: int = 0
    """Of the pictures' files."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Id -> reason, of pictures without a mask."""

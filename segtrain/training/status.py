"""What a run tells about itself: plain values, without TensorFlow, so that whoever watches need not import it."""

from dataclasses import asdict, dataclass
from typing import Any

WHILE_SCORING = "while pictures of the validation fold were scored"
"""A note on exceptions (PEP 678) that were raised there, and not in a training step."""


@dataclass(frozen=True)
class Progress:
    """A moment of a run, for a progress bar or a line of text."""

    phase: str
    """`starting`, `training`, `evaluating`, `saved` (an epoch is recorded, its checkpoint begun) or `done`."""
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps_per_epoch: int = 0
    images_per_s: float = 0.0
    loss: float = 0.0
    dice: float = 0.0
    """Soft dice of the epoch's pictures so far; hard dice at original resolution once evaluated."""
    left_s: float = 0.0
    score: float | None = None
    """Hard dice at original resolution, when `saved` and the epoch was scored."""
    train_s: float = 0.0
    """Seconds spent training and evaluating, all attempts together, when `saved`."""
    message: str = ""


@dataclass(frozen=True)
class RunSummary:
    """What a finished run came to: the best epoch's scores on the validation fold."""

    folder: str
    epoch: int
    dice_hard_original: float
    dice_soft: float
    iou_hard_original: float
    train_seconds: float
    images_per_s: float
    stopped_early: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

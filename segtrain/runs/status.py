"""What a run tells about itself: plain values, without TensorFlow, so that whoever watches need not import it."""

from collections.abc import Callable
from dataclasses import dataclass

WHILE_SCORING = "while pictures of the validation fold were scored"
"""A note on exceptions (PEP 678) that were raised there, and not in a training step."""


@dataclass(frozen=True)
class World:
    """Rank facts of one worker process. `TF_CONFIG` must agree with them where there are several workers."""

    workers: int = 1
    rank: int = 0
    replicas_per_worker: int = 1
    gpus_per_worker: int = 0
    workers_on_machine: int = 1
    """Workers that share this worker's machine, itself included; in a sweep the trials that it can hold."""
    gpu_positions: tuple[int, ...] | None = None
    """Of this worker's GPUs among those that its process sees; None where all of them are its own."""

    @property
    def replicas(self) -> int:
        """Replicas of the whole run."""
        return self.workers * self.replicas_per_worker

    @property
    def is_chief(self) -> bool:
        """The chief alone writes the run's folder."""
        return self.rank == 0


@dataclass(frozen=True)
class Account:
    """Where the time of one attempt has gone so far, as its chief measures it, and how far it has come."""

    first_step: int = 0
    """Steps of the run that the checkpoint it went on from had; 0 at the start."""
    step: int = 0
    """Steps of the run that are taken and read."""
    saved_step: int = 0
    """Of these, the steps that a complete checkpoint holds."""
    starting_s: float = 0.0
    """From the call of the training function to the end of its first step: TensorFlow, network, restoring."""
    steps_s: float = 0.0
    input_wait_s: float = 0.0
    checkpoint_s: float = 0.0
    """What saving held the loop up; most of it goes on in the background."""
    evaluation_s: float = 0.0


@dataclass(frozen=True)
class Progress:
    """A moment of a run, for a progress bar or a line of text."""

    phase: str
    """`starting`, `training`, `evaluating`, `saved` (an epoch is recorded, its checkpoint begun), `leaving` (asked to,
    and all saved) or `done`."""
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
    account: Account | None = None
    """From the first step of an attempt on."""
    goodput: float | None = None
    """Share of the run's seconds, all attempts together, that went into steps and scores that count."""


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


@dataclass(frozen=True)
class Speed:
    """What a worker has measured of a recipe's speed (`segtrain.training.speed`)."""

    start_s: float
    """From the call of the training function to the end of its first step."""
    loop_s: float
    """Seconds a step of the whole loop, and of them those that it waited for input."""
    input_wait_s: float
    step_s: float
    """Seconds a step where the batch lies on the devices."""
    input_s: float
    """Seconds a batch where nothing is computed."""
    peak_bytes: int
    """Memory that the first device held at most; on a CPU, by which the process grew."""
    device: str


class Left(Exception):  # noqa: N818 - nothing went wrong
    """A run was asked to leave: its last step is in a complete checkpoint, and the same recipe goes on from there."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


@dataclass(frozen=True)
class Driver:
    """Whoever started a run, as its workers see it."""

    tell: Callable[[Progress], None] = lambda progress: None
    wants_to_leave: Callable[[], bool] = lambda: False
    """Whether this worker has been asked to save and leave; the workers agree on the step by themselves."""
    beat: Callable[[], None] = lambda: None
    """Called whenever a step, a batch of an evaluation or a save has ended."""
    claim: str | None = None
    """Token of the driver's claim on the run's folder (`segtrain.runs.ownership`); None where there is no driver."""
    note: Callable[[str], None] = lambda line: None
    """Shows the user a line."""


NOBODY = Driver()
"""Of a run that nobody watches and nobody ends."""

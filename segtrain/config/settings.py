"""Every setting of every job, section by section: name, range, default, and what it does."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from segtrain.config.texts import Endpoint, Fingerprint, FolderName, LocalFolder, Location, Text

MIB = 2**20
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Seconds = Annotated[float, Field(gt=0.0, le=1e9)]
"""As many as the clocks of all that waits can count."""
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What NumPy, Keras and Optuna all take."""


class Section(BaseModel):
    """A frozen part of the tree. Unknown keys, wrong types and numbers that are not finite are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def by_kind(default: str) -> Discriminator:
    """Tell the members of a union apart by their `kind`; a section that does not say is the default's."""

    def kind_of(value: Any) -> str:
        kind = value.get("kind", default) if isinstance(value, Mapping) else getattr(value, "kind", default)
        return str(kind)

    return Discriminator(kind_of)


class PrepareConfig(Section):
    """How raw pictures become shards."""

    folds: Annotated[int, Field(ge=2)] = 5
    seed: Seed = 0
    """Orders the rows and breaks ties between folds."""
    shard_bytes: Annotated[int, Field(ge=1024)] = 64 * MIB
    row_group_bytes: Annotated[int, Field(ge=1024)] = 8 * MIB
    min_row_groups: Count = 128
    """At least so many row groups in the data set, so that small sets shuffle and spread over lanes too."""
    allow_rejected: Annotated[int, Field(ge=0)] = 0
    """So many bad pairs may be left out (each listed in `rejected.csv`); one more fails the job."""
    max_pixels: Annotated[int, Field(ge=1, lt=2**29)] = 2**28
    """A picture of more is refused by what its header says, before memory is taken for it."""
    remove: bool = False
    """Drop pictures of the data set that the source does not have; else they stay."""
    mix: bool = False
    """Add pictures of another kind of source than the data set's."""
    keep_versions: Count = 2
    """So many versions of the data set stay readable, the newest among them, for runs that were begun on them."""


class DataConfig(Section):
    """Which samples a run trains on, at what size, and in what order."""

    root: Location | None = None
    """Data set: a local folder or an `s3://` URL that holds `manifest.json`."""
    version: Fingerprint | None = None
    """Fingerprint of the version of the data set to read; the run's own, else the newest, where nothing is given."""
    fold: Annotated[int, Field(ge=0)] = 0
    """Validation fold: chooses the best epoch, the threshold, the trial."""
    test_fold: Annotated[int, Field(ge=0)] | None = None
    """Left out of training and validation."""
    max_groups: Count | None = None
    """Train on so many groups only. Sets are nested: the groups of a smaller number are among those of a larger."""
    height: Annotated[int, Field(ge=8)] = 96
    width: Annotated[int, Field(ge=8)] = 128
    lanes: Count = 16
    """Fixed number of sample streams that workers share out; the order of samples does not depend on the workers."""
    shuffle_window_bytes: Annotated[int, Field(ge=1024)] = 16 * MIB
    """Within a lane, samples of row groups up to so many bytes are shuffled together."""
    fit: Literal["resize", "crop"] = "resize"
    """Whole pictures resized to `height` x `width`; or windows of that size cut from them, another one each epoch."""
    boundary_crops: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """This share of windows is placed on an object's boundary, where there is one; the others anywhere."""
    cache: Literal["auto", "memory", "disk", "off"] = "auto"
    """`memory` keeps decoded pictures (uint8, before augmentation), `disk` the stored bytes in the node cache.
    `auto` keeps decoded pictures where `cache_bytes` is enough, and stored bytes where `root` is in object storage."""
    cache_bytes: Annotated[int, Field(ge=0)] = 4 * 1024 * MIB
    """Memory for decoded pictures, in each worker."""
    node_cache: LocalFolder | None = None
    """Local folder that all processes on a node share; `segtrain-cache-<user>` in the temporary folder by default."""
    node_cache_bytes: Annotated[int, Field(ge=0)] = 64 * 1024 * MIB
    """The least recently used go where there is more in the node cache."""
    read_ahead_bytes: Annotated[int, Field(ge=0)] = 256 * MIB
    """Stored bytes that a worker holds in memory before it reads more ahead of the windows in use."""
    decode_threads: Count | None = None
    """Threads that decode; as many as there are cores where nothing is given."""
    prefetch_batches: Count = 4
    """Batches decoded ahead of their step, as far as `prefetch_bytes` allows."""
    prefetch_bytes: Annotated[int, Field(ge=0)] = 1024 * MIB
    """Decoded pictures that wait for their step; one batch does however large it is."""
    max_quarantined: Annotated[int, Field(ge=0)] = 16
    """So many pictures an epoch, and at most a tenth of them, may be left out because their bytes are damaged."""

    @model_validator(mode="after")
    def _folds_differ(self) -> Self:
        if self.fold == self.test_fold:
            raise ValueError(f"fold and test_fold are both {self.fold}; choose another test_fold")
        return self


class AugmentConfig(Section):
    """Random changes to training pictures. Geometry moves image and mask; photometry the image alone."""

    flip: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Probability of a horizontal flip."""
    rotate_degrees: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    """Largest rotation, either way."""
    scale: Fraction = 0.0
    """Largest relative change of size: 0.1 draws from 0.9 to 1.1."""
    shift: Fraction = 0.0
    """Largest move, as a fraction of height and width."""
    contrast: Fraction = 0.0
    """Largest relative change of contrast about the picture's mean."""
    brightness: Fraction = 0.0
    """Largest change of brightness, as a fraction of the full range."""


class UNetConfig(Section):
    """A U-Net: `depth` levels down and up, `filters` channels at the top, twice as many a level."""

    kind: Literal["unet"] = "unet"
    filters: Count = 16
    depth: Annotated[int, Field(ge=1, le=8)] = 4
    """Number of down-samplings; the bottleneck has `filters * 2**depth` channels."""
    convolutions: Count = 2
    """Convolutions in each block."""
    norm: Literal["none", "batch", "synchronized", "group"] = "synchronized"
    """After each convolution: nothing, batch norm per replica, batch norm over all replicas, group norm."""
    norm_groups: Count = 8
    """Groups of channels in group norm; must divide `filters`."""
    norm_momentum: Fraction = 0.99
    """How much of its moving statistics batch norm keeps a step; 0.9 suits runs of a few hundred steps."""
    dropout: Fraction | Annotated[tuple[Fraction, ...], Field(strict=False)] = 0.0
    """Rate after each block: one for all, or one a level from the top to the bottleneck (`depth + 1` of them)."""
    down: Literal["max_pool", "strided"] = "max_pool"
    up: Literal["transpose_2x2", "transpose_3x3", "resize"] = "transpose_3x3"
    residual: bool = False
    """Add each block's input, through a 1x1 convolution where the channels differ, to its output."""

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        if isinstance(self.dropout, tuple) and len(self.dropout) != self.depth + 1:
            raise ValueError(f"dropout has {len(self.dropout)} rates; depth {self.depth} needs {self.depth + 1}")
        if self.norm == "group" and self.filters % self.norm_groups:
            raise ValueError(f"norm_groups {self.norm_groups} does not divide filters {self.filters}")
        return self


class FCNConfig(Section):
    """The 2023 article's first network: strided convolutions down, transposed convolutions up, no skips."""

    kind: Literal["fcn"] = "fcn"
    filters: Count = 64
    depth: Annotated[int, Field(ge=1, le=8)] = 3


Model = Annotated[Annotated[UNetConfig, Tag("unet")] | Annotated[FCNConfig, Tag("fcn")], by_kind("unet")]


class LossTerms(Section):
    """Weights of the terms that are added up; 0 leaves a term out."""

    dice: Annotated[float, Field(ge=0.0)] = 0.0
    bce: Annotated[float, Field(ge=0.0)] = 0.0

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.dice == 0.0 and self.bce == 0.0:
            raise ValueError("every term weighs 0; give dice or bce a weight above 0")
        return self


class LossConfig(Section):
    """A weighted sum of dice loss and binary cross-entropy on logits."""

    terms: LossTerms = LossTerms(dice=1.0, bce=1.0)
    dice_over: Literal["image", "batch"] = "image"
    """Dice of each picture, averaged; or one dice over all pixels of the global batch, as the article does."""
    dice_smooth: Annotated[float, Field(ge=0.0)] = 1.0
    """Added to numerator and denominator of the soft dice in the loss (never in a metric)."""


class AdamConfig(Section):
    kind: Literal["adam"] = "adam"
    learning_rate: Positive = 1e-3
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Positive = 1e-7
    amsgrad: bool = False


class AdamWConfig(Section):
    kind: Literal["adamw"] = "adamw"
    learning_rate: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 4e-3
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Positive = 1e-7
    amsgrad: bool = False


class SGDConfig(Section):
    kind: Literal["sgd"] = "sgd"
    learning_rate: Positive = 1e-2
    momentum: Fraction = 0.0
    nesterov: bool = False


class RMSpropConfig(Section):
    kind: Literal["rmsprop"] = "rmsprop"
    learning_rate: Positive = 1e-3
    rho: Fraction = 0.9
    momentum: Fraction = 0.0
    epsilon: Positive = 1e-7
    centered: bool = False


Optimizer = Annotated[
    Annotated[AdamConfig, Tag("adam")]
    | Annotated[AdamWConfig, Tag("adamw")]
    | Annotated[SGDConfig, Tag("sgd")]
    | Annotated[RMSpropConfig, Tag("rmsprop")],
    by_kind("adam"),
]


class ConstantSchedule(Section):
    kind: Literal["constant"] = "constant"
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 0.0
    """Linear rise from 0 to the full rate over so many epochs."""


class CosineSchedule(Section):
    """Linear warm-up, then half a cosine down to `final_fraction` of the rate at the last epoch."""

    kind: Literal["cosine"] = "cosine"
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 0.0
    final_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    horizon_epochs: Count | None = None
    """Epochs until the end of the cosine; `train.epochs` where nothing is given."""


class PlateauSchedule(Section):
    """Linear warm-up, then the rate is multiplied by `factor` after `patience_epochs` without a better dice."""

    kind: Literal["plateau"] = "plateau"
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 0.0
    factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    patience_epochs: Count = 3
    min_fraction: Fraction = 0.01
    """The rate never falls below this fraction of `optimizer.learning_rate`."""


Schedule = Annotated[
    Annotated[ConstantSchedule, Tag("constant")]
    | Annotated[CosineSchedule, Tag("cosine")]
    | Annotated[PlateauSchedule, Tag("plateau")],
    by_kind("constant"),
]


class TrainConfig(Section):
    """The run itself."""

    epochs: Count = 10
    global_batch_size: Count = 16
    per_replica_batch_size: Count | None = None
    """Pictures a replica holds at once; the rest of its share of the global batch is accumulated."""
    rematerialize: bool | None = None
    """Compute each block's activations again on the way back instead of keeping them: less memory for more time.
    Where nothing is given, only if `cluster.device_bytes` asks for it."""
    precision: Literal["float32", "float64", "mixed_bfloat16", "mixed_float16"] = "float32"
    initial_loss_scale: Positive = 32768.0
    """First loss scale under mixed_float16; halved on an overflow, doubled after 2,000 steps without one."""
    clip_norm: Positive | None = None
    """Largest global norm of the gradients, after they are summed over all replicas."""
    ema_momentum: Fraction | None = None
    """Keep an exponential moving average of the weights, and evaluate and export it."""
    early_stopping_epochs: Count | None = None
    """Stop after so many evaluations in a row without a better dice."""
    seed: Seed = 0
    deterministic: bool = False
    """Deterministic ops: the same weights, bit for bit, each time; somewhat slower."""
    xla: bool = False
    init_from: Location | None = None
    """Start from the weights of another run's folder or of a `.keras` file."""


class EvaluationConfig(Section):
    """Scoring on the validation fold, every picture exactly once, at original resolution."""

    every_epochs: Count = 1
    batch_size: Count = 8
    """Pictures a replica holds at once."""
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """A pixel is object where its probability is at least this."""
    panels: Annotated[int, Field(ge=0)] = 4
    """Pictures drawn as input, truth, prediction and difference."""
    boundary_pixels: Count = 5
    """`jobs/evaluate.py` compares the borders of the masks too: their pixels at most so far from the edge."""
    worst: Annotated[int, Field(ge=0)] = 8
    """`jobs/evaluate.py` draws so many of the pictures with the lowest dice."""


class CheckpointConfig(Section):
    """When a run's whole state is saved, besides at the end of each epoch."""

    every_steps: Count | None = None
    every_minutes: Positive = 10.0
    keep: Annotated[int, Field(ge=2)] = 3
    """So many of the newest stay, and the best."""


class ClusterConfig(Section):
    """What the run asks of Ray."""

    workers: Count | Annotated[tuple[Count, Count], Field(strict=False)] = 1
    """One worker is one process, normally one node. `[2, 8]` takes as many as the cluster has room for, 2 at least,
    and more as nodes come and fewer as they go; the order of samples stays the same."""
    gpus_per_worker: Annotated[int, Field(ge=0)] = 0
    """One replica a GPU; 0 trains on the CPU."""
    cpus_per_worker: Count = 1
    compute_threads: Count | None = None
    """Threads that TensorFlow computes with in each worker; all cores where nothing is given. Trials of a sweep get
    `cpus_per_worker`, because several share a machine. The last digits of sums may depend on it."""
    cpu_replicas_per_worker: Count = 1
    """Logical CPU devices that stand in for GPUs where `gpus_per_worker` is 0."""
    device_bytes: Count | None = None
    """Memory of each replica's device. Where it is given, the batch of a replica, rematerialization and, in the end,
    crops are chosen so that a step fits; the global batch stays what it is."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """So many times in a row the workers are started again after a failure without having saved anything new."""
    start_timeout_s: Seconds = 600.0
    """How long to wait for resources that the cluster may still get."""
    stuck_after_s: Seconds = 600.0
    """A worker that ends no step, and one that gives no answer, is given up after so long. Not before its first step,
    which may compile for minutes. More than `storage.deadline_s`, or an outage of storage would look like it."""
    grow_after_s: Seconds = 120.0
    """With a range of workers: so long there must be room for more before the run starts again with them."""

    @field_validator("workers")
    @classmethod
    def _is_a_range(cls, workers: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(workers, int) or workers[0] < workers[1]:
            return workers
        raise ValueError(f"[{workers[0]}, {workers[1]}] is no range; give one number, or the fewest and the most")

    @property
    def min_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def replicas_per_worker(self) -> int:
        return self.gpus_per_worker or self.cpu_replicas_per_worker


class RunConfig(Section):
    """Where a run's folder is: `<storage>/<name>`."""

    name: FolderName = "run"
    storage: Location = "runs"
    progress_every_s: Seconds = 5.0
    """How often a line of progress is printed where there is no terminal."""

    @property
    def folder(self) -> str:
        return f"{self.storage.rstrip('/')}/{self.name}"


class StorageConfig(Section):
    """How `s3://` URLs are reached; the limits hold for Kaggle too. Keys come from AWS's standard chain alone."""

    endpoint_url: Endpoint | None = None
    """Endpoint of an S3-compatible server; `AWS_ENDPOINT_URL` or AWS itself where nothing is given."""
    region: Text | None = None
    timeout_s: Seconds = 30.0
    """Longest wait for one answer."""
    deadline_s: Seconds = 120.0
    """A request is retried, with jittered backoff, until so much time has passed."""

"""Settings of preparing, data, augmentation, loss, training, scoring, checkpoints, cluster, run and storage."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from segtrain.config.section import MIB, Count, Fraction, Positive, Seconds, Section, Seed
from segtrain.config.texts import Endpoint, Fingerprint, FolderName, LocalFolder, Location, Text


class PrepareConfig(Section):
    """How raw pictures become shards."""

    folds: Annotated[int, Field(ge=2)] = 5
    """Number of folds. Whole groups of pictures go into one fold."""
    seed: Seed = 0
    """Seed for the order of the rows, and for ties between folds."""
    shard_bytes: Annotated[int, Field(ge=1024)] = 64 * MIB
    """Bytes of a shard, about. A shard is one Parquet file."""
    row_group_bytes: Annotated[int, Field(ge=1024)] = 8 * MIB
    """Largest row group, in bytes. A row group is what a worker reads at once."""
    min_row_groups: Count = 128
    """Fewest row groups in the data set. With enough of them, a small set shuffles and spreads over lanes too."""
    allow_rejected: Annotated[int, Field(ge=0)] = 0
    """Most bad pairs that are left out and listed in `rejected.csv`. One more fails the job."""
    max_pixels: Annotated[int, Field(ge=1, lt=2**29)] = 2**28
    """Most pixels of a picture. A larger one is refused by its header, before memory is taken for it."""
    remove: bool = False
    """Drop pictures of the data set that the source does not have. By default they stay."""
    mix: bool = False
    """Let pictures be added from another kind of source than the data set was made from."""
    keep_versions: Count = 2
    """Number of versions of the data set that stay readable, for runs that began on them. The newest is one of them."""


class DataConfig(Section):
    """Which samples a run trains on, at what size, and in what order."""

    root: Location | None = None
    """The data set: a local folder or an `s3://` URL that holds `manifest.json`."""
    version: Fingerprint | None = None
    """Fingerprint of the version of the data set to read. By default the one that the run began on, else the newest."""
    fold: Annotated[int, Field(ge=0)] = 0
    """Validation fold. Its scores choose the best epoch, the threshold and the best trial."""
    test_fold: Annotated[int, Field(ge=0)] | None = None
    """Fold that is left out of training and validation."""
    max_groups: Count | None = None
    """Number of groups to train on; all by default. The groups of a smaller number are among those of a larger one."""
    height: Annotated[int, Field(ge=8)] = 96
    """Height of the pictures that the network is trained on, in pixels."""
    width: Annotated[int, Field(ge=8)] = 128
    """Width of the pictures that the network is trained on, in pixels."""
    lanes: Count | None = None
    """Number of sample streams that workers share out; there can be no more workers. By default that of the run, folds
    or sweep in the folder. For a new one it follows from the global batch and the number of row groups: a divisor of
    the batch, at most half as many as row groups, and 16 or somewhat fewer for small ones. The order of samples depends
    on it, and not on the workers."""
    shuffle_window_bytes: Annotated[int, Field(ge=1024)] | None = None
    """Bytes of a lane's row groups whose samples are shuffled together; one row group at least. By default 16 MiB, and
    256 MiB for all lanes together if their number is left out."""
    fit: Literal["resize", "crop"] = "resize"
    """`resize` scales whole pictures to `height` x `width`. `crop` cuts a new window of that size each epoch."""
    boundary_crops: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of windows that are placed on an object's boundary, where the picture has one. The others lie anywhere."""
    cache: Literal["auto", "memory", "disk", "off"] = "auto"
    """`memory` keeps decoded pictures (uint8, before augmentation), `disk` keeps stored bytes in the node cache.
    `auto` does the first if `cache_bytes` is enough, and the second if `root` is in object storage. Validation
    pictures stay decoded too, by `auto` as many as fit beside those."""
    cache_bytes: Annotated[int, Field(ge=0)] = 4 * 1024 * MIB
    """Memory for decoded pictures in each worker, in bytes."""
    node_cache: LocalFolder | None = None
    """Local folder of the node cache, which all processes on a node share. By default `segtrain-cache-<user>` in the
    temporary folder."""
    node_cache_bytes: Annotated[int, Field(ge=0)] = 64 * 1024 * MIB
    """Largest size of the node cache, in bytes. Beyond it, the least recently used entries go."""
    read_ahead_bytes: Annotated[int, Field(ge=0)] | None = None
    """Most stored bytes that a worker reads ahead and holds in memory. By default 256 MiB, and a row group more for
    each lane beyond 16 that the worker owns."""
    decode_threads: Count | None = None
    """Threads that decode in each worker. By default `cluster.cpus_per_worker`, or if that is 1 the worker's share of
    the machine's cores. Cores that a container may not use do not count."""
    prefetch_batches: Count = 4
    """Batches that are decoded ahead of their step, within `prefetch_bytes`."""
    prefetch_bytes: Annotated[int, Field(ge=0)] = 1024 * MIB
    """Most bytes of decoded pictures that wait for their step. One batch may wait, however large it is."""
    max_quarantined: Annotated[int, Field(ge=0)] = 16
    """Most damaged pictures that an epoch leaves out, and never more than a tenth of all. One more stops the run."""

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
    """Largest rotation either way, in degrees."""
    scale: Fraction = 0.0
    """Largest relative change of size. 0.1 draws a factor from 0.9 to 1.1."""
    shift: Fraction = 0.0
    """Largest move, as a fraction of height and width."""
    contrast: Fraction = 0.0
    """Largest relative change of contrast about the picture's mean."""
    brightness: Fraction = 0.0
    """Largest change of brightness, as a fraction of the full range."""


class LossTerms(Section):
    """Weights of the terms that are added up; 0 leaves a term out."""

    dice: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the dice loss."""
    bce: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the binary cross-entropy."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.dice == 0.0 and self.bce == 0.0:
            raise ValueError("every term weighs 0; give dice or bce a weight above 0")
        return self


class LossConfig(Section):
    """A weighted sum of dice loss and binary cross-entropy on logits."""

    terms: LossTerms = LossTerms(dice=1.0, bce=1.0)
    """Weights of the terms of the loss."""
    dice_over: Literal["image", "batch"] = "image"
    """`image` averages the dice of the pictures. `batch` takes one dice over all pixels of the global batch, as the
    article does."""
    dice_smooth: Annotated[float, Field(ge=0.0)] = 1.0
    """Number added to numerator and denominator of the soft dice in the loss. Metrics never have it."""


class TrainConfig(Section):
    """The run itself."""

    epochs: Count = 10
    """Number of passes over the training pictures."""
    global_batch_size: Count = 16
    """Pictures in one step, over all workers and replicas."""
    per_replica_batch_size: Count | None = None
    """Most pictures that a replica holds at once. It works through its share of the global batch in several passes."""
    rematerialize: bool | None = None
    """Compute each block's activations again for the gradients instead of keeping them: less memory, more time.
    By default only if a step would not fit `cluster.device_bytes` otherwise."""
    precision: Literal["float32", "float64", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Number format of the computation. The mixed ones compute in 16 bits and keep weights in float32."""
    tf32: bool = True
    """Round the inputs of float32 convolutions to 10 bits, which GPUs from Ampere on compute several times as fast.
    TensorFlow does so by default. Under mixed precision it concerns the logits alone, under float64 nothing."""
    initial_loss_scale: Positive = 32768.0
    """First loss scale under `mixed_float16`. It is halved on an overflow and doubled after 2,000 steps without one."""
    clip_norm: Positive | None = None
    """Largest global norm of the gradients, summed over all replicas. By default they are not clipped."""
    ema_momentum: Fraction | None = None
    """Share that an exponential moving average of the weights keeps at each step. Where it is given, the average is
    evaluated and exported."""
    early_stopping_epochs: Count | None = None
    """Evaluations in a row without a better dice after which the run stops. By default it never does."""
    seed: Seed = 0
    """Seed for weights, order of samples, augmentation and dropout."""
    deterministic: bool = False
    """Use deterministic operations: each time the same weights, bit for bit, somewhat slower."""
    xla: bool = False
    """Compile batch norm's own arithmetic with XLA: one pass over the activations between two sums over replicas."""
    init_from: Location | None = None
    """Start from the weights of another run's folder or of a `.keras` file."""


class EvaluationConfig(Section):
    """Scoring on the validation fold, every picture exactly once, at original resolution."""

    every_epochs: Count = 1
    """Epochs from one evaluation to the next."""
    batch_size: Count = 8
    """Pictures that a replica holds at once."""
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """A pixel is object where its probability is at least this."""
    panels: Annotated[int, Field(ge=0)] = 4
    """Number of pictures that are drawn as input, truth, prediction and difference."""
    boundary_pixels: Count = 5
    """Width, in pixels, of the border of the masks, which `jobs/evaluate.py` compares too."""
    worst: Annotated[int, Field(ge=0)] = 8
    """Number of pictures with the lowest dice that `jobs/evaluate.py` draws."""


class CheckpointConfig(Section):
    """When a run's whole state is saved, besides at the end of each epoch."""

    every_steps: Count | None = None
    """Steps from one checkpoint to the next. By default only time counts."""
    every_minutes: Positive = 10.0
    """Minutes from one checkpoint to the next."""
    keep: Annotated[int, Field(ge=2)] = 3
    """Number of the newest checkpoints that stay. The best one stays as well."""


class ClusterConfig(Section):
    """What the run asks of Ray."""

    workers: Count | Annotated[tuple[Count, Count], Field(strict=False)] = 1
    """Number of workers. One worker is one process, normally one node. `[2, 8]` takes as many as there is room for, at
    least 2, and changes their number as nodes come and go; the order of samples stays the same."""
    gpus_per_worker: Annotated[int, Field(ge=0)] = 0
    """GPUs of each worker, with a replica on each. 0 trains on the CPU."""
    cpus_per_worker: Count = 1
    """CPUs that each worker asks of Ray. More than 1 are also the threads that it decodes and scores with."""
    compute_threads: Count | None = None
    """Threads that TensorFlow computes with in each worker. By default all cores that a container may use; in a sweep
    `cpus_per_worker`, because several trials share a machine. The last digits of sums may depend on it."""
    cpu_replicas_per_worker: Count = 1
    """Logical CPU devices that stand in for GPUs where `gpus_per_worker` is 0."""
    device_bytes: Count | None = None
    """Memory of each replica's device, in bytes. Where it is given, pictures at once, rematerialization and, last of
    all, crops are chosen so that a step fits. The global batch stays what it is."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Most restarts of the workers in a row without a new checkpoint. One more failure ends the run."""
    start_timeout_s: Seconds = 600.0
    """Seconds to wait for resources that the cluster may still get."""
    stuck_after_s: Seconds = 600.0
    """Seconds without a step or an answer after which a worker is given up. It must be more than `storage.deadline_s`,
    because a step may wait for storage."""
    first_step_s: Seconds = 1800.0
    """Likewise for the first step of an attempt, if it is more. A GPU that is newer than TensorFlow's build compiles
    all kernels in it, which may take half an hour."""
    grow_after_s: Seconds = 120.0
    """Seconds of free room before a run with a range of workers restarts with more of them."""

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
    """Name of the run, and of its folder."""
    storage: Location = "runs"
    """Folder that holds the runs: a local path or an `s3://` URL."""
    progress_every_s: Seconds = 5.0
    """Seconds from one line of progress to the next where there is no terminal."""

    @property
    def folder(self) -> str:
        return f"{self.storage.rstrip('/')}/{self.name}"


class StorageConfig(Section):
    """How `s3://` URLs are reached; the limits hold for Kaggle too. Keys come from AWS's standard chain alone."""

    endpoint_url: Endpoint | None = None
    """Address of an S3-compatible server. By default `AWS_ENDPOINT_URL`, else AWS itself."""
    region: Text | None = None
    """Region of the buckets. By default `AWS_REGION`, else `AWS_DEFAULT_REGION`."""
    timeout_s: Seconds = 30.0
    """Longest wait for one answer, in seconds."""
    deadline_s: Seconds = 120.0
    """Seconds after which a failed request is not tried again. Until then it is, with random waits."""

"""The whole tree of settings, checked as one; what makes two recipes the same run; mistakes in one sentence."""

import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, Self

import yaml
from pydantic import ValidationError, model_validator

from segtrain.config.inference import InferenceConfig
from segtrain.config.settings import (
    AdamConfig,
    AugmentConfig,
    CheckpointConfig,
    ClusterConfig,
    ConstantSchedule,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    Model,
    Optimizer,
    PrepareConfig,
    RunConfig,
    Schedule,
    Section,
    StorageConfig,
    TrainConfig,
    UNetConfig,
)
from segtrain.config.sources import FolderSource, Source
from segtrain.config.tune import TuneConfig
from segtrain.errors import UserError


class Recipe(Section):
    """The whole tree."""

    source: Source = FolderSource()
    prepare: PrepareConfig = PrepareConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: Model = UNetConfig()
    loss: LossConfig = LossConfig()
    optimizer: Optimizer = AdamConfig()
    schedule: Schedule = ConstantSchedule()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    inference: InferenceConfig = InferenceConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cluster: ClusterConfig = ClusterConfig()
    run: RunConfig = RunConfig()
    storage: StorageConfig = StorageConfig()
    tune: TuneConfig = TuneConfig()
    folds: Literal["one", "all"] = "one"
    """`all` trains one run for each fold, with `data.fold` set to it, and makes an ensemble of them."""

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        workers = self.cluster.max_workers
        replicas = workers * self.cluster.replicas_per_worker
        if self.train.global_batch_size < replicas:
            raise ValueError(
                f"train.global_batch_size is {self.train.global_batch_size} but there are {replicas} replicas "
                f"(cluster.workers x replicas per worker); set it to at least {replicas}"
            )
        if self.train.xla and (self.augment.rotate_degrees or self.augment.scale or self.augment.shift):
            raise ValueError(
                "train.xla is on, and XLA cannot compile augment.rotate_degrees, scale and shift; "
                "set these to 0 or train.xla to off"
            )
        if workers > self.data.lanes:
            raise ValueError(
                f"cluster.workers is {workers} but data.lanes is {self.data.lanes}; "
                f"a lane feeds one worker; ask for at most {self.data.lanes} workers, or raise data.lanes in a new run"
            )
        if self.cluster.stuck_after_s <= self.storage.deadline_s:
            raise ValueError(
                f"cluster.stuck_after_s is {self.cluster.stuck_after_s:g} s and storage.deadline_s is "
                f"{self.storage.deadline_s:g} s; a step may wait so long for storage, so stuck_after_s must be more"
            )
        return self

    def with_workers(self, workers: int | tuple[int, int]) -> "Recipe":
        """The recipe with another `cluster.workers`."""
        tree = self.to_dict()
        tree["cluster"]["workers"] = workers
        return Recipe.from_dict(tree)

    def to_dict(self) -> dict[str, Any]:
        """The tree as plain dicts, lists and scalars; `Recipe.from_dict` gives it back."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Recipe":
        """Check a tree of plain dicts. Raises `UserError` that names the first wrong field and the fix."""
        try:
            return cls.model_validate(dict(tree))
        except ValidationError as error:
            raise UserError(_explain(error, tree)) from None

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def fingerprint(self) -> str:
        """16 hex digits that change with any identity field."""
        text = json.dumps(identity(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


# Sections that decide what a run computes, and the fields in them that do not: where the data lies, how the work is
# split, and how long it goes on (which `--extend` may change).
IDENTITY_SECTIONS = ("data", "augment", "model", "loss", "optimizer", "schedule", "train")
NOT_IDENTITY = frozenset(
    {
        "data.root",
        "data.version",
        "data.cache",
        "data.cache_bytes",
        "data.node_cache",
        "data.node_cache_bytes",
        "data.read_ahead_bytes",
        "data.decode_threads",
        "data.prefetch_batches",
        "data.prefetch_bytes",
        "data.max_quarantined",
        "train.per_replica_batch_size",
        "train.rematerialize",
        "train.xla",
    }
)


def identity(recipe: Recipe) -> dict[str, Any]:
    """Dotted field -> value of every field that makes two runs different runs."""
    flat = flatten({name: recipe.to_dict()[name] for name in IDENTITY_SECTIONS})
    return {path: value for path, value in flat.items() if path not in NOT_IDENTITY}


def identity_differences(old: Recipe, new: Recipe) -> list[str]:
    """One line for each identity field that differs: `model.filters: 16 -> 32`."""
    before, after = identity(old), identity(new)
    paths = [*before, *(path for path in after if path not in before)]
    return [f"{path}: {before.get(path)} -> {after.get(path)}" for path in paths if before.get(path) != after.get(path)]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts to one dict of dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat.update(flatten(value, f"{path}.") if isinstance(value, Mapping) else {path: value})
    return flat


def _explain(error: ValidationError, tree: Mapping[str, Any]) -> str:
    """One sentence for the first mistake pydantic found."""
    first = error.errors()[0]
    path = _dotted(first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path, known_fields(tree), n=1, cutoff=0.5)
        return f"unknown key '{path}'" + (f"; did you mean '{near[0]}'?" if near else "")
    if first["type"] == "union_tag_invalid":
        return f"{path}.kind: {first['ctx']['tag']!r} is not one of {first['ctx']['expected_tags']}"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if first["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path}: {message} (it is {first['input']!r})"


def _dotted(location: tuple[int | str, ...]) -> str:
    """pydantic's location without the tags of unions and the names of validators that it puts between the keys."""
    tags = {"carvana", "folder", "kaggle", "synthetic", "unet", "fcn", "adam", "adamw", "sgd", "rmsprop"}
    tags |= {"constant", "cosine", "plateau"}
    parts = [str(part) for index, part in enumerate(location) if not (index == 1 and part in tags)]
    return ".".join(part for part in parts if "[" not in part and part not in ("float", "tuple", "constrained-int"))


def known_fields(tree: Mapping[str, Any]) -> list[str]:
    """Every dotted field, for the kinds that `tree` chooses; the rest of the tree may be wrong."""
    kinds = {
        name: {"kind": section["kind"]}
        for name, section in tree.items()
        if isinstance(section, Mapping) and "kind" in section
    }
    try:
        recipe = Recipe.model_validate(kinds)
    except ValidationError:
        recipe = Recipe()
    fields = flatten(recipe.to_dict())
    sections = {path.rpartition(".")[0] for path in fields}
    return [*fields, *sections]

"""The whole tree of settings, checked as one; what makes two recipes the same run; mistakes in one sentence."""

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, Self

import yaml
from pydantic import ValidationError, model_validator

from segtrain.config.inference_settings import InferenceConfig
from segtrain.config.kinds import KINDS, put, without_defaults
from segtrain.config.model_settings import Model, UNetConfig
from segtrain.config.older_recipes import as_meant
from segtrain.config.optimizer_settings import AdamConfig, ConstantSchedule, Optimizer, Schedule
from segtrain.config.section import Section
from segtrain.config.settings import (
    AugmentConfig,
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    PrepareConfig,
    RunConfig,
    StorageConfig,
    TrainConfig,
)
from segtrain.config.source_settings import FolderSource, Source
from segtrain.config.sweep_settings import TuneConfig
from segtrain.errors import UserError, printable, shown
from segtrain.locations import without_credentials

WHOLE = ("source", "data", "model", "loss", "optimizer", "schedule", "train", "cluster", "run", "storage", "tune")
"""A tree with all of these sections was written by segtrain: nobody writes all of them by hand."""

WORDS = {
    "model_type": "should be a mapping of settings",
    "dict_type": "should be a mapping",
    "int_type": "should be a whole number",
    "float_type": "should be a finite number",
    "finite_number": "should be a finite number",
    "bool_type": "should be true or false",
}
"""For pydantic's own, by the type of its error."""


class Recipe(Section):
    """The whole tree."""

    source: Source = FolderSource()
    """Where `jobs/prepare.py` finds pictures and masks."""
    prepare: PrepareConfig = PrepareConfig()
    """How raw pictures become shards."""
    data: DataConfig = DataConfig()
    """Which samples a run trains on, at what size, and in what order."""
    augment: AugmentConfig = AugmentConfig()
    """Random changes to training pictures."""
    model: Model = UNetConfig()
    """The network."""
    loss: LossConfig = LossConfig()
    """What training makes small."""
    optimizer: Optimizer = AdamConfig()
    """How a step changes the weights."""
    schedule: Schedule = ConstantSchedule()
    """How the learning rate changes over the epochs."""
    train: TrainConfig = TrainConfig()
    """The run itself."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How the validation fold is scored."""
    inference: InferenceConfig = InferenceConfig()
    """How a trained network is applied to pictures."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When a run's whole state is saved."""
    cluster: ClusterConfig = ClusterConfig()
    """What the run asks of Ray."""
    run: RunConfig = RunConfig()
    """Where the run's folder is."""
    storage: StorageConfig = StorageConfig()
    """How `s3://` URLs are reached."""
    tune: TuneConfig = TuneConfig()
    """What `jobs/tune.py` searches, and how."""
    folds: Literal["one", "all"] = "one"
    """`all` trains one run for each fold, with `data.fold` set to it, and makes an ensemble of the runs."""

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        workers = self.cluster.max_workers
        replicas = workers * self.cluster.replicas_per_worker
        if self.train.global_batch_size < replicas:
            raise ValueError(
                f"train.global_batch_size is {self.train.global_batch_size} but there are {replicas} replicas "
                f"(cluster.workers x replicas per worker); set it to at least {replicas}"
            )
        if self.data.lanes is not None and workers > self.data.lanes:
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

    def updated(self, values: Mapping[str, Any]) -> "Recipe":
        """The recipe with dotted field -> value put in: `recipe.updated({"train.epochs": 5})`.

        It still knows which fields were set and which are defaults. Raises `UserError` as `from_dict` does.
        """
        tree = self.as_set()
        put(tree, values)
        return Recipe.checked(tree)

    def computing(self, other: "Recipe") -> "Recipe":
        """This recipe with what `other` computes: its identity fields, and how its pictures are scored."""
        mine, tree = self.to_dict(), other.to_dict()
        for section in IDENTITY_SECTIONS:
            fields = (field.rpartition(".")[2] for field in NOT_IDENTITY if field.startswith(f"{section}."))
            mine[section] = tree[section] | {name: mine[section][name] for name in fields}
        return Recipe.from_dict(mine | {"evaluation": tree["evaluation"]})

    def as_set(self) -> dict[str, Any]:
        """`to_dict`, but of sections that have a kind only the kind and the fields that were set: see `kinds`."""
        tree = self.to_dict()
        for name in KINDS:
            section: Section = getattr(self, name)
            tree[name] = {"kind": tree[name]["kind"], **section.model_dump(mode="json", exclude_unset=True)}
        return tree

    def to_dict(self) -> dict[str, Any]:
        """The tree as plain dicts, lists and scalars; `Recipe.from_dict` gives it back."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Recipe":
        """Check a tree of plain dicts. Raises `UserError` that names the first wrong field and the fix.

        In a tree with every section, as `to_dict` makes them, the defaults of a kind count as not set, and what an
        older version did not write means what it meant then.
        """
        is_whole = all(name in tree for name in WHOLE)
        return cls.checked(without_defaults(as_meant(tree)) if is_whole else tree)

    @classmethod
    def checked(cls, tree: Mapping[str, Any]) -> "Recipe":
        """`from_dict` of a tree as `as_set` makes them, in which all that a section with a kind has counts as set."""
        try:
            return cls.model_validate(dict(tree))
        except ValidationError as error:
            told = printable(without_credentials(_sentence(error, tree)))
        raise UserError(told)  # out of the block, or what was given, which may hold a password, would come along

    def to_yaml(self) -> str:
        """Every field; `reading.recorded` gives the recipe back."""
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
    return [
        f"{path}: {shown(before.get(path))} -> {shown(after.get(path))}"
        for path in paths
        if before.get(path) != after.get(path)
    ]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts to one dict of dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat.update(flatten(value, f"{path}.") if isinstance(value, Mapping) else {path: value})
    return flat


def _sentence(error: ValidationError, tree: Mapping[str, Any]) -> str:
    """For the first mistake that pydantic found."""
    first = error.errors()[0]
    path, given = _dotted(first["loc"]), first["input"]
    if first["type"] == "extra_forbidden":
        return _unknown(path, tree)
    if first["type"] == "union_tag_invalid":
        return f"{path}.kind: {shown(repr(first['ctx']['tag']))} is not one of {first['ctx']['expected_tags']}"
    own_words = first["msg"].removeprefix("Value error, ").removeprefix("Input ").removeprefix("String ")
    message = WORDS.get(first["type"], own_words)
    if first["type"] == "value_error":
        return f"{path}: {message}" if path else message
    if first["type"] in ("int_type", "float_type") and isinstance(given, str) and re.match(r"[-+.]?[0-9.]", given):
        message += "; write it in decimal, in at most 18 digits"
    return f"{path}: {message} (it is {'empty' if given is None else shown(repr(given))})"


def _unknown(path: str, tree: Mapping[str, Any]) -> str:
    section, _, field = path.partition(".")
    kinds = [kind for kind, model in KINDS.get(section, {}).items() if field in model.model_fields]
    if kinds:
        return f"unknown key '{path}'; only {section}.kind {' or '.join(kinds)} has it"
    near = difflib.get_close_matches(path, known_fields(tree), n=1, cutoff=0.5)
    return f"unknown key '{shown(path)}'" + (f"; did you mean '{near[0]}'?" if near else "")


def _dotted(location: tuple[int | str, ...]) -> str:
    """pydantic's location without the tags of unions and the names of validators that it puts between the keys."""
    tags = {kind for kinds in KINDS.values() for kind in kinds}
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

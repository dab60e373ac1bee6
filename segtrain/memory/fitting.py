"""What a run changes so that a training step fits on its devices, and why."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from segtrain.architectures.layer_list import layer_list
from segtrain.config import Recipe, UNetConfig
from segtrain.config.batch_split import split_of
from segtrain.errors import UserError, gib
from segtrain.memory.footprint import CHANNELS, evaluation_footprint, training_footprint
from segtrain.memory.liveness import Footprint

HEADROOM = 0.1
"""Part of a device that stays free: predictions are not exact, and allocators leave gaps."""
BOTTOM = 4
"""The smallest crop still has so many pixels a side at the bottom of the network."""


@dataclass(frozen=True)
class Plan:
    """A recipe whose training step fits, as far as can be predicted."""

    recipe: Recipe
    """With a concrete `per_replica_batch_size`, `rematerialize`, size of pictures or crops, and batch of scoring."""
    footprint: Footprint
    reasons: list[str]
    """Why each thing was changed, a phrase each; empty where nothing had to be."""


@dataclass(frozen=True)
class _Choice:
    """One way to compute a step of a recipe."""

    recipe: Recipe
    per_replica: int
    accumulation: int
    rematerialize: bool
    height: int
    width: int

    @property
    def size(self) -> str:
        return f"{self.height}x{self.width}"

    @cached_property
    def footprint(self) -> Footprint:
        return training_footprint(
            self.recipe,
            batch=self.per_replica,
            rematerialize=self.rematerialize,
            height=self.height,
            width=self.width,
            accumulation=self.accumulation,
        )


def plan(recipe: Recipe, device_bytes: int | None, *, picture: tuple[int, int] | None = None) -> Plan:
    """Make a step of `recipe` fit into `device_bytes` a replica; with None, only say what it takes.

    It tries, in this order:

    1. fewer pictures on a replica at once, in more passes, so that the global batch stays;
    2. rematerialization, unless `train.rematerialize` says otherwise;
    3. crops, with the most pixels that fit.

    `picture` is (height, width) of the largest stored picture, by default that of `data`. Crops are cut at the
    pictures' own resolution. So they only replace larger crops, or whole pictures that are not scaled down: objects
    keep the size that the recipe gives them.

    Raises UserError if not even one small crop fits, and if a crop would change the scale.
    """
    size = (recipe.data.height, recipe.data.width)
    # From the preferred way to the smallest.
    whole = [_Choice(recipe, *split, again, *size) for again in _rematerialize(recipe) for split in _splits(recipe)]
    if device_bytes is None:
        return Plan(recipe, whole[0].footprint, [])
    room = int(device_bytes * (1 - HEADROOM))
    crops = [replace(whole[-1], height=height, width=width) for height, width in _crops(recipe, picture)]
    choice = next((one for one in whole if one.footprint.total <= room), None) or _largest(crops, room)
    if choice is None:
        raise UserError(_too_little(device_bytes, whole, crops))
    evaluation = _evaluation_batch(recipe, choice.footprint, room, picture)
    reasons = _reasons(whole, choice, evaluation, room)
    return Plan(_with(recipe, choice, evaluation), choice.footprint, list(reasons))


def _largest(crops: list[_Choice], room: int) -> _Choice | None:
    """The largest crop of which one fits, if any does."""
    # They become smaller, so those that fit are the last ones.
    number = bisect_left(crops, True, key=lambda crop: crop.footprint.total <= room)
    return crops[number] if number < len(crops) else None


def _splits(recipe: Recipe) -> list[tuple[int, int]]:
    """(pictures at once, passes), from what the recipe asks for down to one picture at once."""
    share = -(-split_of(recipe).slots // recipe.cluster.replicas_per_worker)
    most = min(share, recipe.train.per_replica_batch_size or share)
    splits = (split_of(recipe, at_once) for at_once in range(most, 0, -1))
    return list(dict.fromkeys((split.per_replica, split.accumulation) for split in splits))


def _rematerialize(recipe: Recipe) -> list[bool]:
    """Whether parts of the network may be computed again, the preferred way first; an FCN has none."""
    if recipe.train.rematerialize is not None:
        return [recipe.train.rematerialize]
    return [False, True] if any(layer.part for layer in layer_list(recipe.model, CHANNELS)) else [False]


def _crops(recipe: Recipe, picture: tuple[int, int] | None) -> Iterator[tuple[int, int]]:
    """Sizes below `data`'s, the largest first, in its proportions as far as the network's multiples allow.

    None where pictures are scaled down, because crops would change that scale.
    """
    size = (recipe.data.height, recipe.data.width)
    scaled = picture is not None and (size[0] < picture[0] or size[1] < picture[1])
    if recipe.data.fit != "crop" and scaled:
        return
    multiple = 2**recipe.model.depth
    least = BOTTOM * multiple
    for side in range((max(size) - 1) // multiple * multiple, least - 1, -multiple):
        height, width = (max(least, round(side * length / max(size) / multiple) * multiple) for length in size)
        if height <= size[0] and width <= size[1]:
            yield height, width


def _evaluation_batch(recipe: Recipe, training: Footprint, room: int, picture: tuple[int, int] | None) -> int:
    """Pictures that fit at once in scoring, while the optimizer's slots and the average stay where they are.

    Raises UserError where not even one does.
    """
    whole = (recipe.data.height, recipe.data.width)
    if recipe.data.fit == "crop" and picture is not None:
        whole = picture  # crops are for training alone
    left = room - training.optimizer - training.ema
    for batch in range(recipe.evaluation.batch_size, 0, -1):
        needed = evaluation_footprint(recipe, *whole, batch=batch).total
        if needed <= left:
            return batch
    raise UserError(
        f"cluster.device_bytes: scoring one picture of {whole[0]}x{whole[1]} needs {gib(needed)}, and {gib(left)} are "
        f"left for it; lower data.height and data.width with data.fit=resize, or model.filters"
    )


def _with(recipe: Recipe, choice: _Choice, evaluation_batch: int) -> Recipe:
    is_whole = (choice.height, choice.width) == (recipe.data.height, recipe.data.width)
    crop = {} if is_whole else {"data.fit": "crop", "data.height": choice.height, "data.width": choice.width}
    return recipe.updated(
        {
            "train.per_replica_batch_size": choice.per_replica,
            "train.rematerialize": choice.rematerialize,
            "evaluation.batch_size": evaluation_batch,
            **crop,
        }
    )


def _reasons(whole: list[_Choice], choice: _Choice, evaluation: int, room: int) -> Iterator[str]:
    """What was changed, and what it would have taken otherwise."""
    first, smallest, recipe = whole[0], whole[-1], choice.recipe
    if choice != first:
        yield f"as asked it would need {gib(first.footprint.total)} of {gib(room)}"
    if choice.accumulation != first.accumulation:
        yield (
            f"{choice.accumulation} x {choice.per_replica} pictures a replica instead of "
            f"{first.accumulation} x {first.per_replica}"
        )
        if isinstance(recipe.model, UNetConfig) and recipe.model.norm in ("batch", "synchronized"):
            yield "batch norm averages over fewer pictures"
    if choice.rematerialize != first.rematerialize:
        yield "activations are computed again on the way back, for about a third more time"
    if choice.size != first.size:
        yield f"crops of {choice.size}: one picture of {first.size} needs {gib(smallest.footprint.total)}"
    if evaluation < recipe.evaluation.batch_size:
        yield f"scored {evaluation} at once instead of {recipe.evaluation.batch_size}"


def _too_little(device_bytes: int, whole: list[_Choice], crops: list[_Choice]) -> str:
    kind, smallest, fix = "picture", whole[-1], "lower data.height and data.width"
    if crops:
        kind, smallest, fix = "crop", crops[-1], "lower model.filters or model.depth"
    elif smallest.recipe.data.fit == "resize":
        fix += ", set data.fit=crop"
    return (
        f"cluster.device_bytes: {gib(device_bytes)}, of which a tenth stays free, is less than the "
        f"{gib(smallest.footprint.total)} that a step on one {kind} of {smallest.size} needs; {fix}, "
        "or take a larger device"
    )

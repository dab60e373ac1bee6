"""What a run does differently once a device ran out of memory."""

import pytest

from segtrain.config import Recipe, override
from segtrain.errors import UserError
from segtrain.memory.smaller_batch import with_smaller_batch

HEADLINE = "OOM when allocating"


@pytest.mark.parametrize(
    ("fields", "halvings"),
    [
        ([], ["2 x 8", "4 x 4", "8 x 2", "16 x 1"]),
        (["train.per_replica_batch_size=6"], ["6 x 3", "8 x 2", "16 x 1"]),
        (["train.global_batch_size=5"], ["2 x 3", "3 x 2", "5 x 1"]),
        (["cluster.workers=2", "cluster.cpu_replicas_per_worker=2"], ["2 x 2", "4 x 1"]),
    ],
)
def test_each_time_the_pictures_on_a_device_halve_and_the_passes_double(fields: list[str], halvings: list[str]) -> None:
    recipe, seen = override(Recipe(), fields), []
    for _ in halvings:
        recipe, line = with_smaller_batch(recipe, HEADLINE, scoring=False)
        seen.append(line.partition("from now on ")[2].partition(" pictures")[0])
    assert seen == halvings
    assert recipe.train.global_batch_size == override(Recipe(), fields).train.global_batch_size
    with pytest.raises(UserError, match="one picture of 96 x 128"):
        with_smaller_batch(recipe, HEADLINE, scoring=False)


@pytest.mark.parametrize(("norm", "told"), [("synchronized", True), ("batch", True), ("group", False), ("none", False)])
def test_that_batch_norm_will_see_fewer_pictures_is_said(norm: str, told: bool) -> None:
    _, line = with_smaller_batch(override(Recipe(), [f"model.norm={norm}"]), HEADLINE, scoring=False)
    assert line.endswith(", and batch norm averages over fewer") == told


@pytest.mark.parametrize(
    ("fields", "fix"),
    [
        ([], "set train.rematerialize=true, or data.fit=crop with a smaller data.height and data.width"),
        (["train.rematerialize=true"], "set data.fit=crop with a smaller data.height and data.width"),
        (["data.fit=crop"], "set train.rematerialize=true, or a smaller data.height and data.width"),
    ],
)
def test_one_picture_that_does_not_fit_is_a_sentence_with_the_ways_that_are_left(fields: list[str], fix: str) -> None:
    recipe = override(Recipe(), ["train.per_replica_batch_size=1", "data.height=1280", "data.width=1918", *fields])
    with pytest.raises(UserError) as caught:
        with_smaller_batch(recipe, HEADLINE, scoring=False)
    assert str(caught.value) == (
        "out of memory on the device (OOM when allocating) with one picture of 1280 x 1918 (data.height x data.width) "
        f"at a time; {fix}"
    )


def test_scoring_that_does_not_fit_takes_fewer_pictures_and_leaves_training_alone() -> None:
    recipe, line = with_smaller_batch(override(Recipe(), ["evaluation.batch_size=3"]), HEADLINE, scoring=True)
    assert recipe.evaluation.batch_size == 1
    assert recipe.train == Recipe().train
    assert (
        line == "out of memory on the device (OOM when allocating); scoring with evaluation.batch_size=1 instead of 3"
    )
    with pytest.raises(UserError, match=r"one picture of 96 x 128 was scored at a time \(evaluation\.batch_size=1\)"):
        with_smaller_batch(recipe, HEADLINE, scoring=True)

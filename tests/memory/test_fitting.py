"""What is changed to make a step fit, in which order, and what is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segtrain.config import Recipe, override
from segtrain.config.batch_split import batch_split, lanes_for
from segtrain.errors import UserError
from segtrain.memory import plan
from segtrain.memory.fitting import HEADROOM

GIB = 2**30
WHOLE = (1280, 1918)
FIELDS = ["data.height=1280", "data.width=1918", "train.global_batch_size=8", "cluster.gpus_per_worker=1"]


def recipe(*fields: str) -> Recipe:
    return override(Recipe(), [*FIELDS, *fields])


def test_without_a_limit_nothing_changes_and_the_need_is_told() -> None:
    found = plan(recipe(), None, picture=WHOLE)
    assert found.recipe == recipe()
    assert found.reasons == []
    assert found.footprint.total > 20 * GIB


def test_what_fits_as_asked_is_only_written_out() -> None:
    found = plan(recipe(), 80 * GIB, picture=WHOLE)
    assert found.reasons == []
    assert found.recipe == recipe("train.per_replica_batch_size=8", "train.rematerialize=false")


def test_a_smaller_batch_comes_first_and_the_global_batch_stays() -> None:
    found = plan(recipe(), 8 * GIB, picture=WHOLE)
    train = found.recipe.train
    assert train.per_replica_batch_size == 2
    assert train.global_batch_size == 8
    assert not train.rematerialize
    assert found.recipe.data == recipe().data
    assert "4 x 2 pictures a replica instead of 1 x 8" in found.reasons


def test_rematerialization_comes_second() -> None:
    found = plan(recipe(), int(2.6 * GIB), picture=WHOLE)
    assert found.recipe.train.per_replica_batch_size == 1
    assert found.recipe.train.rematerialize
    assert found.recipe.data == recipe().data


def test_crops_come_last_in_the_pictures_own_proportions() -> None:
    found = plan(recipe(), GIB, picture=WHOLE)
    data = found.recipe.data
    assert data.fit == "crop"
    assert data.height % 16 == data.width % 16 == 0
    assert data.width / data.height == pytest.approx(1918 / 1280, rel=0.05)
    assert found.recipe.train.rematerialize


def test_what_the_recipe_says_of_rematerialization_holds() -> None:
    assert plan(recipe("train.rematerialize=true"), 80 * GIB).recipe.train.rematerialize
    refused = plan(recipe("train.rematerialize=false"), int(2.6 * GIB), picture=WHOLE).recipe
    assert not refused.train.rematerialize
    assert refused.data.fit == "crop"


def test_an_fcn_is_never_rematerialized() -> None:
    found = plan(recipe("model.kind=fcn", "model.filters=16"), GIB, picture=WHOLE)
    assert found.recipe.train.rematerialize is False


def test_pictures_that_are_scaled_down_are_not_cropped_because_objects_would_change_their_size() -> None:
    with pytest.raises(UserError, match=r"one picture of 640x960 needs; lower data.height and data.width"):
        plan(recipe("data.height=640", "data.width=960"), GIB // 4, picture=WHOLE)


def test_less_than_one_crop_of_one_picture_needs_is_refused() -> None:
    with pytest.raises(UserError, match=r"^cluster.device_bytes: 20 MiB, .* one crop of 64x64 needs; lower model.filt"):
        plan(recipe(), 20 * 2**20, picture=WHOLE)


def test_less_than_scoring_one_whole_picture_needs_is_refused() -> None:
    with pytest.raises(UserError, match=r"scoring one picture of 1280x1918 needs 804 MiB"):
        plan(recipe(), 200 * 2**20, picture=WHOLE)


def test_scoring_has_as_many_pictures_at_once_as_fit() -> None:
    assert plan(recipe("evaluation.batch_size=8"), 2 * GIB, picture=WHOLE).recipe.evaluation.batch_size == 2


@settings(max_examples=8)
@given(st.floats(1.5, 60.0), st.integers(1, 24), st.integers(1, 3), st.integers(1, 2))
def test_a_plan_fits_keeps_the_global_batch_and_is_its_own_plan(
    gibs: float, batch: int, workers: int, replicas: int
) -> None:
    batch = max(batch, workers * replicas)
    fields = [f"train.global_batch_size={batch}", f"cluster.workers={workers}", f"cluster.gpus_per_worker={replicas}"]
    device = int(gibs * GIB)
    found = plan(recipe(*fields), device, picture=WHOLE)
    assert found.footprint.total <= device * (1 - HEADROOM)
    train = found.recipe.train
    assert train.global_batch_size == batch
    split = batch_split(batch, lanes_for(batch), workers, replicas, train.per_replica_batch_size)
    assert split.per_replica == train.per_replica_batch_size
    again = plan(found.recipe, device, picture=WHOLE)
    assert again.recipe == found.recipe
    assert again.reasons == []

"""A run's best model scores as it did when it was kept, and on any other fold."""

import json
from collections.abc import Callable

import pytest

from segtrain.config import Recipe, override
from segtrain.errors import UserError
from segtrain.training.scoring import score
from segtrain.training.status import Progress
from segtrain.training.world import World


def test_the_best_model_scores_as_it_did_in_its_run(finished) -> None:
    told: list[Progress] = []
    found = score(finished.recipe, World(), on_progress=told.append)
    kept = json.loads((finished.path / "best" / "metrics.json").read_text())
    assert found.pop("pictures") == 8
    assert found.keys() >= {"dice_hard_original", "dice_soft", "iou_hard_original"}
    assert found == pytest.approx({name: kept[name] for name in found}, abs=1e-6)
    assert [progress.phase for progress in told] == ["starting", "evaluating"]


def test_another_fold_has_other_scores(finished) -> None:
    own, other = (
        score(override(finished.recipe, [f"data.fold={fold}"]), World(), on_progress=lambda progress: None)
        for fold in (0, 1)
    )
    assert own["dice_soft"] != other["dice_soft"]


def test_a_run_without_a_best_model_cannot_be_scored(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match=r"there is no .*best/model\.keras; the run has not finished an epoch yet"):
        score(recipe(), World(), on_progress=lambda progress: None)


def test_a_data_set_must_be_given(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match=r"data\.root is not set"):
        score(recipe("data.root=null"), World(), on_progress=lambda progress: None)

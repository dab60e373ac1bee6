"""What a run's reading cost in an epoch, over all workers, and the bound on pictures that are left out as damaged."""

from typing import TYPE_CHECKING

from segtrain.config import Recipe
from segtrain.dataset.reader import ReadCounts
from segtrain.errors import DataError
from segtrain.pipeline.worker_data import EvaluationData, TrainingData
from segtrain.training.strategy import sum_over_workers

if TYPE_CHECKING:
    from segtrain.training.run import Run

SHOWN_SENTENCES = 3


def measured(run: "Run") -> dict[str, float]:
    """What has been read since the last call, summed over the workers: a collective, which all of them must call."""
    own = run.newly_read()
    total = ReadCounts.from_array(sum_over_workers(run.strategy, own.as_array()))
    return {
        "downloads": total.downloads,
        "downloaded_bytes": total.downloaded_bytes,
        "downloaded_again": total.downloaded_again,
        "retries": total.retries,
        "cache_hits": total.cache_hits,
    }


def check_left_out(recipe: Recipe, data: TrainingData, step: int, samples: float) -> None:
    """Compare the `samples` that counted up to `step` of an epoch with those that should have.

    Raises `DataError` where more are missing than may be. All workers see the same sum, so all of them raise at the
    same step.
    """
    planned = min((step + 1) * recipe.train.global_batch_size, data.samples_per_epoch)
    _check(recipe, planned - int(samples), data.samples_per_epoch, "training", data.quarantined)


def check_scored(recipe: Recipe, data: EvaluationData, scored: int) -> None:
    """Raises `DataError` where more pictures of a fold could not be scored than may be left out."""
    _check(recipe, len(data.ids) - scored, len(data.ids), "validation", data.quarantined)


def _check(recipe: Recipe, left_out: int, pictures: int, purpose: str, sentences: list[str]) -> None:
    # A tenth: what is left of a small set must still be that set.
    allowed = min(recipe.data.max_quarantined, pictures // 10)
    if left_out <= allowed:
        return
    own = "; ".join(sentences[:SHOWN_SENTENCES]) or "another worker's log names them"
    raise DataError(
        f"{left_out} of {pictures} {purpose} pictures are damaged and at most {allowed} may be left out "
        f"(data.max_quarantined): {own}. Run jobs/data.py verify, and make the data set again with jobs/prepare.py"
    )

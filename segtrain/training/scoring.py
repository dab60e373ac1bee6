"""A run's best model, scored on a fold of any data set."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import keras

import segtrain.models  # noqa: F401  registers the layers that a saved model names
from segtrain.config import Recipe
from segtrain.data.manifest import read_manifest
from segtrain.data.pipeline import EvaluationData
from segtrain.errors import UserError
from segtrain.storage import Storage, join
from segtrain.training.evaluation import compiled_forward, evaluate
from segtrain.training.reading import check_scored
from segtrain.training.status import Progress
from segtrain.training.strategy import build_strategy, configure_process
from segtrain.training.world import World


def score(recipe: Recipe, world: World, *, on_progress: Callable[[Progress], None]) -> dict[str, float]:
    """Score `best/model.keras` of the run's folder on `data.fold` of `data.root`, on this worker's share of it.

    Every worker returns the scores of the whole fold, as `Scores.summary` names them, and the number of `pictures`.
    """
    on_progress(Progress("starting"))
    configure_process(world, deterministic=recipe.train.deterministic, seed=recipe.train.seed)
    storage = Storage(recipe.storage)
    if recipe.data.root is None:
        raise UserError("data.root is not set; give the data set to score on")
    manifest = read_manifest(storage, recipe.data.root)
    strategy = build_strategy(world)
    with strategy.scope():
        model = load_best(recipe.run.folder, storage)
    data = EvaluationData(
        recipe, manifest, storage, worker=world.rank, workers=world.workers, replicas=world.replicas_per_worker
    )
    with data:
        on_progress(Progress("evaluating"))
        scores = evaluate(compiled_forward(strategy, model), strategy, data, threshold=recipe.evaluation.threshold)
        check_scored(recipe, data, len(scores.ids))
    return {**scores.summary(), "pictures": len(scores.ids)}


def load_best(folder: str, storage: Storage) -> keras.Model:
    """The model of a run's best epoch. Raises UserError where there is none yet."""
    url = join(folder, "best", "model.keras")
    with tempfile.TemporaryDirectory(prefix="segtrain-model-") as temporary:
        local = Path(temporary) / "model.keras"
        try:
            local.write_bytes(storage.read_bytes(url))
        except FileNotFoundError:
            raise UserError(f"there is no {url}; the run has not finished an epoch yet") from None
        return keras.models.load_model(local, compile=False)

"""What lies in the folder of a run, of an ensemble or of a sweep: nothing else knows these names."""

from dataclasses import dataclass

from segtrain.config import MOST_RECIPE_BYTES, Recipe, recorded
from segtrain.errors import UserError
from segtrain.storage.files import Storage, join

MODEL_NAME = "model.keras"
METRICS_NAME = "metrics.json"
RECIPE_NAME = "recipe.yaml"
METRICS_LOG_NAME = "metrics.jsonl"
ENSEMBLE_NAME = "ensemble.json"
BEST_NAME = "best"


@dataclass(frozen=True)
class RunFolder:
    """Where things lie in a folder, which is a local path or an `s3://` URL."""

    url: str

    @property
    def recipe(self) -> str:
        """The recipe that the run was begun with."""
        return join(self.url, RECIPE_NAME)

    @property
    def metrics_log(self) -> str:
        """A line of JSON a step and an epoch."""
        return join(self.url, METRICS_LOG_NAME)

    @property
    def goodput(self) -> str:
        """What the time of all attempts went into."""
        return join(self.url, "goodput.json")

    @property
    def owner(self) -> str:
        """The token of the driver that writes here."""
        return join(self.url, "owner")

    @property
    def ensemble(self) -> str:
        """Of runs trained with `folds=all`: names of the members' folders, and their scores."""
        return join(self.url, ENSEMBLE_NAME)

    @property
    def checkpoints(self) -> str:
        """A folder a checkpoint."""
        return join(self.url, "checkpoints")

    @property
    def best(self) -> str:
        """The network of the best epoch, its scores and its recipe."""
        return join(self.url, BEST_NAME)

    @property
    def best_model(self) -> str:
        """The network of the best epoch."""
        return join(self.best, MODEL_NAME)

    @property
    def best_metrics(self) -> str:
        """Scores of the best epoch, written after its network."""
        return join(self.best, METRICS_NAME)

    @property
    def panels(self) -> str:
        """Pictures of what the best network predicts."""
        return join(self.url, "panels")

    @property
    def stuck(self) -> str:
        """Stacks of workers that gave no answer."""
        return join(self.url, "stuck")


def recipe_of(folder: str, storage: Storage) -> Recipe:
    """The recipe that a run's folder was made with.

    Raises FileNotFoundError where there is none, and UserError where it is not one that this segtrain reads.
    """
    url = RunFolder(folder).recipe
    text = storage.read_bytes(url, at_most=MOST_RECIPE_BYTES)
    try:
        return recorded(text)
    except UserError as error:
        raise UserError(
            f"{url} is not a recipe that this segtrain reads ({error}); give another folder (run.name=...)"
        ) from None

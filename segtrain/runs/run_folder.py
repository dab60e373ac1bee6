"""What lies in the folder of a run, of an ensemble or of a sweep: nothing else knows these names."""

from segtrain.config import MOST_RECIPE_BYTES, Recipe, recorded
from segtrain.errors import UserError
from segtrain.storage.files import Storage, join

MODEL_NAME = "model.keras"
METRICS_NAME = "metrics.json"
RECIPE_NAME = "recipe.yaml"
METRICS_LOG_NAME = "metrics.jsonl"
ENSEMBLE_NAME = "ensemble.json"
BEST_NAME = "best"


class RunFolder:
    """Where things lie in a folder, which is a local path or an `s3://` URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.recipe = join(url, RECIPE_NAME)
        """The recipe that the run was begun with."""
        self.metrics_log = join(url, METRICS_LOG_NAME)
        """A line of JSON a step and an epoch."""
        self.goodput = join(url, "goodput.json")
        """What the time of all attempts went into."""
        self.owner = join(url, "owner")
        """The token of the driver that writes here."""
        self.ensemble = join(url, ENSEMBLE_NAME)
        """Of runs trained with `folds=all`: names of the members' folders, and their scores."""
        self.checkpoints = join(url, "checkpoints")
        """A folder a checkpoint."""
        self.best = join(url, BEST_NAME)
        """The network of the best epoch, its scores and its recipe."""
        self.best_model = join(self.best, MODEL_NAME)
        """The network of the best epoch."""
        self.best_metrics = join(self.best, METRICS_NAME)
        """Scores of the best epoch, written after its network."""
        self.panels = join(url, "panels")
        """Pictures of what the best network predicts."""
        self.stuck = join(url, "stuck")
        """Stacks of workers that gave no answer."""


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

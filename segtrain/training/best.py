"""What a run keeps of its best epoch: the model, its scores, and pictures of what it predicts."""

import hashlib
import json
from typing import Any

import numpy as np
from PIL import Image

from segtrain.dataset.shards import Row
from segtrain.metrics import THRESHOLDS, best_threshold
from segtrain.panels import file_bytes, panel
from segtrain.pipeline.decode import decode_image, decode_mask
from segtrain.runs.ownership import write_while
from segtrain.score_table import Scores
from segtrain.storage.ids import file_names, join_inside
from segtrain.training.evaluation import evenly_spread
from segtrain.training.run import Run


class PanelArtist:
    """Draws a few of the chief's validation pictures, the same ones at every evaluation, with what was predicted."""

    def __init__(self, run: Run) -> None:
        self._threshold = run.recipe.evaluation.threshold
        self._chosen = evenly_spread(
            run.validation_data.own_ids, run.recipe.evaluation.panels if run.world.is_chief else 0
        )
        self.panels: dict[str, np.ndarray] = {}
        """Picture id -> uint8 (H, W, 3)."""

    def __call__(self, row: Row, probability: np.ndarray) -> None:
        """Draw this picture if it is one of the chosen. `probability` is float32 (height, width)."""
        if row.id in self._chosen:
            image, truth = decode_image(row, row.height, row.width), decode_mask(row, row.height, row.width)
            self.panels[row.id] = np.asarray(panel(image, truth, probability, threshold=self._threshold, title=row.id))


def keep_best(run: Run, metrics: dict[str, Any], scores: Scores, panels: dict[str, np.ndarray]) -> None:
    """Write `best/model.keras`, `panels/*.png` and, last, `best/metrics.json` into the run's folder.

    The metrics hold the model's checksum. So a reader notices when the two files are not of one epoch.
    """
    model = run.state.exported()
    write_while(run.check_owner, run.folder.best_model, model, run.storage)
    files = file_names(scores.ids)
    for name, picture in panels.items():
        drawn = file_bytes(Image.fromarray(picture), "PNG")
        run.check_owner()
        run.storage.write_bytes(join_inside(run.folder.panels, f"{files[name]}.png"), drawn)
    data, cursor, curve = run.recipe.data, run.state.cursor, scores.threshold_curve()
    threshold, dice = best_threshold(THRESHOLDS.tolist(), curve.tolist())
    facts = {
        **metrics,
        "epoch": cursor.best_epoch,
        "step": cursor.best_step,
        "train_seconds": round(cursor.train_s, 3),
        "threshold": run.recipe.evaluation.threshold,
        "best_threshold": threshold,
        "dice_at_best_threshold": dice,
        "fold": data.fold,
        "test_fold": data.test_fold,
        "input": {"fit": data.fit, "height": data.height, "width": data.width, "channels": 3},
        "model": run.recipe.to_dict()["model"],
        "model_sha256": hashlib.sha256(model).hexdigest(),
        **run.state.facts,
        "validation_ids": scores.ids,
        "validation_dice": [round(value, 6) for value in scores.per_picture("dice_hard_original").tolist()],
        "validation_foreground": [round(value, 6) for value in scores.foreground().tolist()],
        "threshold_curve": {
            "thresholds": THRESHOLDS.tolist(),
            "dice": [round(value, 9) for value in curve.tolist()],
            "pictures": len(scores.ids),
        },
    }
    write_while(run.check_owner, run.folder.best_metrics, json.dumps(facts, indent=1).encode(), run.storage)
    run.kept_step = cursor.best_step

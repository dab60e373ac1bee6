"""What a run keeps of its best epoch: the model, its scores, and pictures of what it predicts."""

import io
import json
from typing import Any

import numpy as np
from PIL import Image

from segtrain.data.shards import Row, unpack_mask
from segtrain.panels import panel
from segtrain.storage import join
from segtrain.training.evaluation import Scores, evenly_spread
from segtrain.training.run import Run


class PanelArtist:
    """Draws the same few validation pictures at every evaluation, from the probabilities as they are computed."""

    def __init__(self, run: Run) -> None:
        self._threshold = run.recipe.evaluation.threshold
        count = run.recipe.evaluation.panels if run.world.is_chief else 0
        self._chosen = evenly_spread(run.validation_data.ids, count)
        self.panels: dict[str, np.ndarray] = {}
        """Picture id -> uint8 (H, W, 3)."""

    def __call__(self, row: Row, probability: np.ndarray) -> None:
        """Draw this picture if it is one of the chosen. `probability` is float32 (height, width)."""
        if row.id not in self._chosen or row.mask is None:
            return
        image = np.asarray(open_picture(row))
        truth = unpack_mask(row.mask, row.height, row.width).astype(bool)
        drawn = panel(image, truth, probability, threshold=self._threshold, title=row.id)
        self.panels[row.id] = np.asarray(drawn.convert("RGB"))


def open_picture(row: Row) -> Image.Image:
    """The stored picture as RGB, turned as its EXIF orientation says."""
    picture = Image.open(io.BytesIO(row.image)).convert("RGB")
    turn = _TURNS.get(row.orientation)
    return picture if turn is None else picture.transpose(turn)


# EXIF orientation -> the transposition that undoes it (EXIF 2.32, tag 274).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def keep_best(run: Run, metrics: dict[str, Any], scores: Scores, panels: dict[str, np.ndarray]) -> None:
    """Write `best/model.keras`, `panels/*.png` and, last, `best/metrics.json` into the run's folder."""
    run.export(join(run.folder, "best", "model.keras"))
    for name, picture in panels.items():
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="PNG")
        run.storage.write_bytes(join(run.folder, "panels", f"{name}.png"), buffer.getvalue())
    facts = {
        **metrics,
        "epoch": run.cursor.best_epoch,
        "step": run.cursor.best_step,
        "train_seconds": round(run.cursor.train_s, 3),
        "threshold": run.recipe.evaluation.threshold,
        "fold": run.recipe.data.fold,
        **run.facts,
        "validation_ids": scores.ids,
        "validation_dice": [round(value, 6) for value in scores.dice_per_picture().tolist()],
    }
    run.storage.write_bytes(join(run.folder, "best", "metrics.json"), json.dumps(facts, indent=1).encode())

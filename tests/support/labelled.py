"""A small labelled data set with its masks as files, and folders like those that runs leave, without any training."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtrain.config import Recipe, override
from segtrain.dataset.manifest import read_manifest
from segtrain.prepare.prepare_set import prepare
from segtrain.storage.files import Storage
from tests.support.small_sources import save_pair


@dataclass(frozen=True)
class LabelledSet:
    """Three folds of 4 pictures of different sizes, one or two to a row group."""

    root: str
    masks: Path
    """Folder of the masks that were prepared, as PNG of {0, 255}."""

    def truth(self, name: str) -> np.ndarray:
        """The mask of a picture, bool (H, W)."""
        return np.asarray(Image.open(self.masks / f"{name}.png")).astype(bool)


def write_set(folder: Path) -> LabelledSet:
    """Noise with a brighter box for a mask."""
    for number in range(12):
        mask = np.zeros((30 + number, 40 + number % 5), np.uint8)
        mask[6 : 18 + number, 8 : 30 - number] = 255
        pixels = np.random.default_rng(number).integers(0, 150, (*mask.shape, 3), np.uint8)
        pixels[mask > 0] += 80
        save_pair(folder / "raw", f"p{number:02d}", pixels, mask)
    settings = [f"source.path={folder / 'raw'}", "prepare.folds=3", "prepare.min_row_groups=9"]
    manifest = prepare(override(Recipe(), settings), str(folder / "set"), parallel=False)
    assert [facts.pictures for facts in manifest.folds] == [4, 4, 4]
    return LabelledSet(str(folder / "set"), folder / "raw" / "masks")


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> LabelledSet:
    """`write_set`, once for all tests; nobody changes it."""
    return write_set(tmp_path_factory.mktemp("labelled"))


def write_rectangles(raw: Path, root: str, *, pictures: int, height: int, width: int) -> None:
    """Noisy rectangles of 16 x 24 pixels, as files in `raw` and prepared in 20 row groups at `root`."""
    random = np.random.default_rng(3)
    for number in range(pictures):
        mask = np.zeros((height, width), np.uint8)
        top, left = random.integers(2, 10, 2)
        mask[top : top + 16, left : left + 24] = 255
        image = (mask[..., None] // 2 + random.integers(0, 100, (height, width, 3))).astype(np.uint8)
        save_pair(raw, f"p{number:02}", image, mask)
    source = ["source.kind=folder", f"source.path={raw}", "prepare.min_row_groups=20"]
    prepare(override(Recipe(), source), root, parallel=False)


def write_run(folder: Path, root: str, *settings: str, best_threshold: float = 0.5, **facts: Any) -> str:
    """What a run on the data set `root` leaves of its best epoch, with a network that has not learnt anything.

    Its logits are scaled so that probabilities spread over 0 to 1, and masks are neither empty nor full.
    """
    from segtrain.models import build_model

    tiny = ["model.filters=2", "model.depth=1", "model.norm=none", "data.height=16", "data.width=24"]
    run = [f"run.storage={folder.parent}", f"run.name={folder.name}", f"data.root={root}"]
    recipe = override(Recipe(), [*tiny, *run, *settings])
    model = build_model(recipe.model, seed=recipe.train.seed)
    last = model.get_layer("logits")
    last.set_weights([20.0 * weight for weight in last.get_weights()])
    (folder / "best").mkdir(parents=True)
    model.save(folder / "best" / "model.keras")
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    known = {
        "fold": recipe.data.fold,
        "test_fold": recipe.data.test_fold,
        "data_fingerprint": read_manifest(Storage(), root).fingerprint,
        "best_threshold": best_threshold,
        "input": {"fit": "resize", "height": 16, "width": 24, "channels": 3},
        "model": recipe.to_dict()["model"],
    }
    (folder / "best" / "metrics.json").write_text(json.dumps({**known, **facts}))
    return str(folder)

"""A data set and a recipe small enough that a job's test is all start-up."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtrain.config import Recipe, override
from segtrain.prepare.prepare_set import prepare


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set of 8 pictures in 2 folds."""
    folder = tmp_path_factory.mktemp("raw")
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    random = np.random.default_rng(0)
    for number in range(8):
        mask = np.zeros((16, 24), np.uint8)
        mask[4:12, 6 : 10 + number] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{number:02d}.png")
        Image.fromarray(random.integers(0, 256, (16, 24, 3), np.uint8)).save(folder / "images" / f"{number:02d}.png")
    root = tmp_path_factory.mktemp("data") / "set"
    prepare(override(Recipe(), [f"source.path={folder}", "prepare.folds=2"]), str(root), parallel=False)
    return str(root)


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe file `tiny.yaml` that names no data set."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(
        "data: {height: 16, width: 24}\n"
        "model: {filters: 2, depth: 1, norm: none}\n"
        "train: {epochs: 1, global_batch_size: 4}\n"
    )
    return path

"""A data set and a recipe small enough that a job's test is all start-up."""

from pathlib import Path

import pytest

from tests.support.small_sources import write_boxes


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set of 8 pictures in 2 folds."""
    return write_boxes(tmp_path_factory.mktemp("eight"), pictures=8, folds=2)


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

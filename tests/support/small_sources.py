"""Small sources of pictures for `prepare`, data sets made of them, and what must lie where one has been written."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtrain.config import Recipe, override
from segtrain.dataset.manifest import Manifest, read_manifest
from segtrain.dataset.verify import verify
from segtrain.dataset.versions import files_of, replaced_versions
from segtrain.prepare.prepare_set import prepare
from segtrain.storage.files import Storage, join

STORAGE = Storage()


def save_pair(folder: Path, name: str, pixels: np.ndarray, mask: np.ndarray) -> None:
    """`pixels` and `mask`, uint8 of {0, 255}, as `images/<name>.png` and `masks/<name>.png`."""
    for kind, values in (("images", pixels), ("masks", mask)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(folder / kind / f"{name}.png")


def draw(folder: Path, shade: int, count: int = 12) -> Recipe:
    """A source of `count` pictures, others for another shade, in 3 folds."""
    for number in range(count):
        mask = np.zeros((16, 24), np.uint8)
        mask[2 : 4 + number, 3:20] = 255
        pixels = np.random.default_rng([shade, number]).integers(0, 256, (16, 24, 3), np.uint8)
        save_pair(folder, f"p{number:02d}", pixels, mask)
    return override(Recipe(), [f"source.path={folder}", "prepare.folds=3"])


def write_boxes(folder: Path, *, pictures: int, folds: int, height: int = 16, width: int = 24) -> str:
    """The root of a data set of noise with a box for a mask, wider in each picture: `00`, `01`, ..."""
    random = np.random.default_rng(0)
    for number in range(pictures):
        mask = np.zeros((height, width), np.uint8)
        mask[height // 4 : height * 3 // 4, 6 : 10 + number % (width - 10)] = 255
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        save_pair(folder / "raw", f"{number:02d}", pixels, mask)
    source = [f"source.path={folder / 'raw'}", f"prepare.folds={folds}"]
    prepare(override(Recipe(), source), str(folder / "set"), parallel=False)
    return str(folder / "set")


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set of 12 pictures of 16 x 24 pixels in 4 folds; nobody changes it."""
    return write_boxes(tmp_path_factory.mktemp("boxes"), pictures=12, folds=4)


def lying_in(dest: str) -> set[str]:
    """Every file of a data set, relative to it."""
    names = STORAGE.list(dest)
    inside = [f"{fold}/{name}" for fold in names if fold.startswith("fold=") for name in STORAGE.list(join(dest, fold))]
    return {name for name in names if not name.startswith("fold=")} | set(inside)


def assert_whole(dest: str, manifest: Manifest) -> None:
    """The manifest is there, and versions before it, with all that they name, and nothing else is left."""
    assert read_manifest(STORAGE, dest) == manifest
    versions = replaced_versions(STORAGE, dest)
    for each in (manifest, *(version.manifest for version in versions)):
        assert verify(STORAGE, dest, each, every_s=1e9, parallel=False) == []
    named = files_of([manifest, *(version.manifest for version in versions)])
    assert lying_in(dest) == {"manifest.json", *(version.name for version in versions), *named}

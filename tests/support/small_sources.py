"""Small sources of pictures for `prepare`, and what must lie where a data set has been written."""

from pathlib import Path

import numpy as np
from PIL import Image

from segtrain.config import Recipe, override
from segtrain.dataset.manifest import Manifest, read_manifest
from segtrain.dataset.verify import verify
from segtrain.dataset.versions import files_of, replaced_versions
from segtrain.storage.files import Storage, join

STORAGE = Storage()


def draw(folder: Path, shade: int, count: int = 12) -> Recipe:
    """A source of `count` pictures, others for another shade, in 3 folds."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        mask = np.zeros((16, 24), np.uint8)
        mask[2 : 4 + number, 3:20] = 255
        pixels = np.random.default_rng([shade, number]).integers(0, 256, (16, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"images/p{number:02d}.png")
        Image.fromarray(mask).save(folder / f"masks/p{number:02d}.png")
    return override(Recipe(), [f"source.path={folder}", "prepare.folds=3"])


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

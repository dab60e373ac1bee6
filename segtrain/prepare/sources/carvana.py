"""Kaggle's Carvana folders: `<car>_<view>.jpg` in `train/` or `train_hq/`, with masks from GIFs or from a CSV.

The GIFs are `train_masks/<car>_<view>_mask.gif`; the CSV, `train_masks.csv`, has each mask as run lengths.
"""

from pathlib import PurePosixPath

from segtrain.config import CarvanaSource
from segtrain.errors import UserError, shown
from segtrain.locations import within
from segtrain.prepare.sources import IMAGE_SUFFIXES, MASK_SUFFIXES, Picture, files_by_stem, require_pairs, require_path
from segtrain.prepare.sources.csv_files import read_rows
from segtrain.storage.files import Storage, join

UNPACK = "unpack it again from Kaggle's train_masks.csv.zip"


def scan(config: CarvanaSource, storage: Storage) -> list[Picture]:
    """Every picture, sorted by id; the car's id (all before the last `_`) is the group.

    Raises `UserError` for a missing folder, an image without a mask and the other way round, and a name without `_`.
    """
    root = require_path(config.path)
    images = files_by_stem(storage, within(root, config.images), IMAGE_SUFFIXES)
    for stem, url in images.items():
        if not _car(stem):
            raise UserError(f"{url} is not named <car>_<view>; rename it, or use source.kind=folder")
    if config.masks == "gif":
        masks = files_by_stem(storage, join(root, "train_masks"), MASK_SUFFIXES, ending="_mask")
        require_pairs(images, masks)
        return [Picture(stem, _car(stem), url, mask=masks[stem]) for stem, url in images.items()]
    run_lengths = _read_csv(storage, join(root, "train_masks.csv"))
    require_pairs(images, {stem: f"{stem} in {join(root, 'train_masks.csv')}" for stem in run_lengths})
    return [Picture(stem, _car(stem), url, run_lengths=run_lengths[stem]) for stem, url in images.items()]


def _car(stem: str) -> str:
    return stem.rpartition("_")[0]


def _read_csv(storage: Storage, url: str) -> dict[str, str]:
    """Stem -> run lengths from the columns `img` (a file name) and `rle_mask`."""
    found: dict[str, str] = {}
    try:
        for line, row in read_rows(storage, url, ("img", "rle_mask"), fix=UNPACK):
            if len(row) < 2:
                raise UserError(f"{url} has no rle_mask in line {line}; {UNPACK}, or end the line in a comma")
            stem = PurePosixPath(row[0]).stem
            if stem in found:
                raise UserError(f"{url} has two rows with the id '{shown(stem)}'; remove one of them")
            found[stem] = row[1]
    except FileNotFoundError:
        raise UserError(
            f"{url} is not there; unpack it from Kaggle's train_masks.csv.zip or set source.masks=gif"
        ) from None
    return found

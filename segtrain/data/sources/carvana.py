"""Kaggle's Carvana folders: `<car>_<view>.jpg` in `train/` or `train_hq/`, with masks from GIFs or from a CSV.

The GIFs are `train_masks/<car>_<view>_mask.gif`; the CSV, `train_masks.csv`, has each mask as run lengths.
"""

import csv
import io
from pathlib import PurePosixPath

from segtrain.config import CarvanaSource
from segtrain.data.sources import IMAGE_SUFFIXES, MASK_SUFFIXES, Picture, files_by_stem, require_pairs, require_path
from segtrain.errors import UserError
from segtrain.locations import within
from segtrain.storage import Storage, join

# A field of the csv module holds 128 KiB by default; a ragged mask's run lengths may be longer.
FIELD_LIMIT_BYTES = 2**27


def scan(config: CarvanaSource, storage: Storage) -> list[Picture]:
    """Every picture, sorted by id; the car's id (all before the last `_`) is the group.

    Raises `UserError` for a missing folder, an image without a mask and the other way round, and a name without `_`.
    """
    root = require_path(config.path)
    images = files_by_stem(storage, within(root, config.images), IMAGE_SUFFIXES)
    for stem, url in images.items():
        if not stem.rpartition("_")[0]:
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
    try:
        text = storage.read_bytes(url).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(
            f"{url} is not there; unpack it from Kaggle's train_masks.csv.zip or set source.masks=gif"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{url} is not UTF-8 text; unpack it again from Kaggle's train_masks.csv.zip") from None
    csv.field_size_limit(FIELD_LIMIT_BYTES)
    reader = csv.DictReader(io.StringIO(text))
    if not {"img", "rle_mask"} <= set(reader.fieldnames or ()):
        raise UserError(f"{url} does not start with the header img,rle_mask; unpack it again")
    found: dict[str, str] = {}
    for row in reader:
        stem = PurePosixPath(row["img"]).stem
        if stem in found:
            raise UserError(f"{url} has two rows with the id '{stem}'; remove one of them")
        found[stem] = row["rle_mask"] or ""
    return found

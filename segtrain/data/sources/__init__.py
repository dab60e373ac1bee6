"""Sources of raw pictures. Each is a module whose `scan(config, storage)` lists the pictures, reading none of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from segtrain.errors import UserError
from segtrain.storage import Storage, join

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
MASK_SUFFIXES = (".png", ".gif", ".bmp", ".jpg", ".jpeg")


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture and where its mask comes from: a file or run lengths."""

    id: str
    group: str
    image: str
    """Path or URL, as is `mask`."""
    mask: str | None = None
    run_lengths: str | None = None


def files_by_stem(storage: Storage, folder: str, suffixes: tuple[str, ...], ending: str = "") -> dict[str, str]:
    """Stem -> URL of the files in `folder`, sorted by stem, where stems all end in `ending`, which is cut off.

    Hidden files are passed over. Raises `UserError` for a folder that is missing or empty, a file that is none of
    `suffixes`, and two files of one stem.
    """
    names = [name for name in storage.list(folder) if not name.startswith(".")]
    if not names:
        state = "empty" if storage.exists(folder) else "not there"
        raise UserError(f"the folder {folder} is {state}; set source.path to the folder that holds the pictures")
    found: dict[str, str] = {}
    for name in names:
        path = PurePosixPath(name)
        if path.suffix.lower() not in suffixes:
            kinds = ", ".join(suffix.lstrip(".") for suffix in suffixes)
            raise UserError(f"{join(folder, name)} is none of {kinds}; convert it or move it away")
        if not path.stem.endswith(ending):
            raise UserError(f"{join(folder, name)} does not end in {ending}{path.suffix}; rename it or move it away")
        stem = path.stem.removesuffix(ending)
        if stem in found:
            raise UserError(f"{found[stem]} and {join(folder, name)} have the same id '{stem}'; remove one of them")
        found[stem] = join(folder, name)
    return dict(sorted(found.items()))


def require_pairs(images: Mapping[str, str], masks: Mapping[str, str]) -> None:
    """Raise `UserError` that names the first image without a mask, or mask without an image, and how many there are."""
    for lonely, what, missing in (
        (sorted(images.keys() - masks.keys()), images, "mask"),
        (sorted(masks.keys() - images.keys()), masks, "image"),
    ):
        if lonely:
            more = f" (and {len(lonely) - 1} more like it)" if len(lonely) > 1 else ""
            raise UserError(f"{what[lonely[0]]} has no {missing}{more}; add the {missing} or take it out")


def require_path(path: str | None) -> str:
    """`source.path`, which every source of files needs."""
    if path is None:
        raise UserError("source.path is not set; give the folder that holds the pictures: source.path=FOLDER")
    return path

"""Sources of raw pictures. Each is a module whose `scan(config, storage)` lists the pictures, reading none of them."""

import logging
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from segtrain.errors import UserError, printable
from segtrain.storage.files import Storage, join

logger = logging.getLogger(__name__)

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

    Hidden files are passed over, which is said of those that may be pictures. Raises `UserError` for a folder that is
    missing or empty, a file that is none of `suffixes`, and two files of one stem.
    """
    listed = storage.list(folder)
    names = [name for name in listed if not name.startswith(".")]
    # What begins with `._` macOS adds to the files of other systems' disks: no pictures, whatever they are called.
    hidden = [name for name in sorted({*listed} - {*names}) if name.lower().endswith(suffixes) and name[:2] != "._"]
    if hidden:
        more = f" and {len(hidden) - 1} more" if len(hidden) > 1 else ""
        logger.warning(
            "warning: passed over %s%s: a name that begins with a dot is hidden; rename what is a picture",
            printable(join(folder, hidden[0])),
            more,
        )
    if not names:
        state = "empty" if storage.exists(folder) else "not there"
        raise UserError(f"the folder {folder} is {state}; set source.path to the folder that holds the pictures")
    found: dict[str, str] = {}
    for name in names:
        path, url = PurePosixPath(name), join(folder, name)
        if not name.lower().endswith(suffixes):
            if storage.exists(url) and not storage.is_file(url):
                raise UserError(f"{printable(url)} is a folder; move its files into {folder}, or move it away")
            kinds = ", ".join(suffix.lstrip(".") for suffix in suffixes)
            raise UserError(f"{printable(url)} is none of {kinds}; convert it or move it away")
        if not path.stem.endswith(ending):
            raise UserError(f"{printable(url)} does not end in {ending}{path.suffix}; rename it or move it away")
        stem = path.stem.removesuffix(ending)
        if stem in found:
            both = f"{printable(found[stem])} and {printable(url)}"
            raise UserError(f"{both} have the same id '{printable(stem)}'; remove one of them")
        found[stem] = url
    return dict(sorted(found.items()))


def require_pairs(images: Mapping[str, str], masks: Mapping[str, str]) -> None:
    """Raise `UserError` that names the first image without a mask, or mask without an image, and counts the others.

    It also suggests a file of nearly the same name: in another case or Unicode form, or with a longer name.
    """
    lonely_images, lonely_masks = (
        sorted(one.keys() - other.keys()) for one, other in ((images, masks), (masks, images))
    )
    for lonely, urls, missing, others, other_urls in (
        (lonely_images, images, "mask", lonely_masks, masks),
        (lonely_masks, masks, "image", lonely_images, images),
    ):
        if lonely:
            more = f" (and {len(lonely) - 1} more like it)" if len(lonely) > 1 else ""
            fix = _near(lonely[0], others, other_urls) or f"add the {missing} or take it out"
            raise UserError(f"{printable(urls[lonely[0]])} has no {missing}{more}; {fix}")


def _near(stem: str, others: Sequence[str], urls: Mapping[str, str]) -> str | None:
    """What to do about a file of nearly the same name, where there is one."""
    form = _plain(stem)
    alike = next((other for other in others if _plain(other) == form), None)
    if alike is not None:
        case = unicodedata.normalize("NFC", stem) != unicodedata.normalize("NFC", alike)
        what = "in another case" if case else "in another Unicode form (composed or decomposed)"
        return f"{printable(urls[alike])} has the same name {what}: rename one of them like the other"
    within = re.compile(rf"(?<![^\W_]){re.escape(form)}(?![^\W_])")
    longer = next((other for other in others if within.search(_plain(other))), None)
    if longer is None:
        return None
    url = PurePosixPath(urls[longer])
    return f"the names of both are to be the same: rename {printable(str(url))} to {printable(stem)}{url.suffix}"


def _plain(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).casefold()


def require_path(path: str | None) -> str:
    """`source.path`, which every source of files needs."""
    if path is None:
        raise UserError("source.path is not set; give the folder that holds the pictures: source.path=FOLDER")
    return path

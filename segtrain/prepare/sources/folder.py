"""`images/` and `masks/`, matched by file stem."""

import re

from segtrain.config import FolderSource
from segtrain.errors import UserError, shown
from segtrain.locations import within
from segtrain.prepare.sources import IMAGE_SUFFIXES, MASK_SUFFIXES, Picture, files_by_stem, require_pairs, require_path
from segtrain.prepare.sources.csv_files import read_rows
from segtrain.storage.csv_cells import text_of
from segtrain.storage.files import Storage


def scan(config: FolderSource, storage: Storage) -> list[Picture]:
    """Every picture, sorted by id, which is its file's stem.

    Where no grouping is set each picture is a group of its own. A stem that the regular expression does not match, or
    whose cell in the CSV file is empty, has the group "", which `prepare` rejects. Raises `UserError` for a missing
    or empty folder, an image without a mask and the other way round, two files of one stem, and a wrong grouping.
    """
    root = require_path(config.path)
    images = files_by_stem(storage, within(root, config.images), IMAGE_SUFFIXES)
    masks = files_by_stem(storage, within(root, config.masks), MASK_SUFFIXES)
    require_pairs(images, masks)
    groups = _groups(config, storage, root, list(images))
    return [Picture(stem, groups[stem], url, mask=masks[stem]) for stem, url in images.items()]


def _groups(config: FolderSource, storage: Storage, root: str, ids: list[str]) -> dict[str, str]:
    """Group of each id; `ids` are sorted."""
    if config.group_run is not None:
        # A run is named after its first picture, so that pictures added behind it leave the name alone.
        return {stem: ids[number - number % config.group_run] for number, stem in enumerate(ids)}
    if config.group_regex is not None:
        return _groups_by_regex(config.group_regex, ids)
    if config.group_csv is not None and config.group_column is not None:
        return _groups_by_csv(storage, within(root, config.group_csv), config.group_column, ids)
    return {stem: stem for stem in ids}


def _groups_by_regex(regex: str, ids: list[str]) -> dict[str, str]:
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise UserError(f"source.group_regex: '{regex}' is not a regular expression: {error}") from None
    number = 1 if pattern.groups else 0
    return {stem: (match[number] or "") if (match := pattern.search(stem)) else "" for stem in ids}


def _groups_by_csv(storage: Storage, url: str, column: str, ids: list[str]) -> dict[str, str]:
    field = "source.group_csv"
    cells: dict[str, tuple[int, str]] = {}
    try:
        for line, row in read_rows(storage, url, ("id", column), field=field):
            name, group = row[0] if row else "", row[1].strip() if len(row) == 2 else ""
            first, other = cells.setdefault(name, (line, group))
            if other != group:
                raise UserError(
                    f"{field}: {url} has two groups for '{shown(name)}' (lines {first} and {line}); keep one"
                )
    except FileNotFoundError:
        raise UserError(f"{field}: {url} is not there; the path is relative to source.path") from None
    # A list that segtrain wrote, and somebody added a column to, has ids quoted that would be formulas.
    quoted = {text_of(name): group for name, (_, group) in cells.items()}
    groups = {stem: cells[stem][1] if stem in cells else quoted.get(stem) for stem in ids}
    missing = [stem for stem, group in groups.items() if group is None]
    if missing:
        more = f" (and {len(missing) - 1} more pictures)" if len(missing) > 1 else ""
        raise UserError(f"{field}: {url} has no row for '{shown(missing[0])}'{more}; add it")
    return {stem: group for stem, group in groups.items() if group is not None}

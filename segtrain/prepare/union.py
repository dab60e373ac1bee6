"""The pictures of a data set and those of a source become one set. No I/O.

A picture of the set keeps its group and its fold. It stays where the source lacks it, unless it is to be removed.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from segtrain.prepare.changes import Changes
from segtrain.prepare.pairs import Checked
from segtrain.prepare.sources import Picture
from segtrain.prepare.stored_rows import RowPlace, Stored


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture of the new set, which passed every check."""

    picture: Picture
    checked: Checked
    place: RowPlace | None = None
    """Where its row lies in the earlier set; None where it comes from the source."""


@dataclass(frozen=True)
class Grouping:
    """A source's pictures with their groups; pictures that are in the set keep their groups there."""

    pictures: list[Picture]
    regrouped: dict[str, tuple[str, str]]
    """Id -> (group in the set, group by the source), where these differ."""
    folds: dict[str, int]
    """Group -> fold, of groups in the set, and of new groups to which the source assigns pictures of the set."""


def group_as_stored(pictures: Sequence[Picture], stored: Mapping[str, Stored]) -> Grouping:
    """Give pictures of the set their groups there.

    A new picture has the group that the source says. The source may give a group that is not in the set also to
    pictures that are: then this group goes into the fold of most of these, so that neighbours stay on one side of a
    split.
    """
    groups = {id: one.picture.group for id, one in stored.items()}
    nearby: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for picture in pictures:
        if picture.id in stored:
            nearby[picture.group][stored[picture.id].fold] += 1
    grouped = [replace(one, group=groups.get(one.id, one.group)) for one in pictures]
    pairs = zip(pictures, grouped, strict=True)
    regrouped = {new.id: (new.group, one.group) for one, new in pairs if new.group != one.group}
    folds = {group: min(found, key=lambda fold: (-found[fold], fold)) for group, found in nearby.items()}
    return Grouping(grouped, regrouped, folds | {one.picture.group: one.fold for one in stored.values()})


def merge(
    stored: Mapping[str, Stored],
    facts: Mapping[str, Checked],
    source: Grouping,
    good: Mapping[str, Checked],
    *,
    remove: bool,
) -> tuple[list[Pair], Changes]:
    """The pictures of the new set, and how it differs from the stored one.

    `facts` are of the stored pictures whose rows are not damaged; `good` are of the source's pictures that passed every
    check. One that did not pass leaves the stored one as it is.

    Raises `KeyError` for a picture that has to stay but is not in `facts`.
    """
    pairs = [Pair(picture, good[picture.id]) for picture in source.pictures if picture.id in good]
    added = sorted(good.keys() - stored.keys())
    both = sorted(good.keys() & stored.keys())
    changed = [id for id in both if id not in facts or _blobs(facts[id]) != _blobs(good[id])]
    missing = stored.keys() - good.keys()
    removed = sorted(missing - {picture.id for picture in source.pictures}) if remove else []
    kept = sorted(missing.difference(removed))
    pairs += [Pair(stored[id].picture, facts[id], stored[id].place) for id in kept]
    return pairs, Changes(added, changed, kept, removed, source.regrouped)


def kinds_of(source: str) -> set[str]:
    """The kinds of source that a manifest's `source` names; Kaggle's download is of the kind `carvana`."""
    return {"carvana" if kind == "kaggle" else kind for kind in source.split("+")}


def _blobs(checked: Checked) -> tuple[int, ...]:
    return checked.image_bytes, checked.image_crc32c, checked.mask_bytes, checked.mask_crc32c

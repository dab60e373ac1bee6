"""What a data set holds and what a source brings become one set. No I/O.

A picture of the set keeps its group and its fold. What the source does not have stays, unless it is to be removed.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from segtrain.prepare.changes import Changes
from segtrain.prepare.pairs import Checked
from segtrain.prepare.sources import Picture
from segtrain.prepare.stored_rows import RowPlace, Stored


@dataclass(frozen=True, slots=True)
class UnionPicture:
    """A picture of the new set."""

    picture: Picture
    checked: Checked
    place: RowPlace | None = None
    """Where its row lies in the earlier set; None where it comes from the source."""


@dataclass(frozen=True)
class Grouping:
    """The groups of a source's pictures, with those that are in the set in the groups that they have there."""

    pictures: list[Picture]
    regrouped: dict[str, tuple[str, str]]
    """Id -> (group in the set, group by the source), where these differ."""
    folds: dict[str, int]
    """Group -> fold, of those in the set, and of new ones that the source says pictures of the set belong to."""


def group_as_stored(pictures: Sequence[Picture], stored: Mapping[str, Stored]) -> Grouping:
    """Give pictures of the set their groups there.

    New pictures have the group that the source says. Where that is not in the set, but pictures that are belong to it
    by the source, it goes into the fold of most of these: else neighbours would be on both sides of a split.
    """
    grouped, regrouped = [], {}
    nearby: dict[str, Counter[int]] = {}
    for picture in pictures:
        there = stored.get(picture.id)
        if there is None:
            grouped.append(picture)
            continue
        nearby.setdefault(picture.group, Counter())[there.fold] += 1
        if picture.group != there.picture.group:
            regrouped[picture.id] = (there.picture.group, picture.group)
        grouped.append(replace(picture, group=there.picture.group))
    folds = {group: min(found, key=lambda fold: (-found[fold], fold)) for group, found in nearby.items()}
    return Grouping(grouped, regrouped, folds | {one.picture.group: one.fold for one in stored.values()})


def merge(
    stored: Mapping[str, Stored],
    facts: Mapping[str, Checked],
    source: Grouping,
    good: Mapping[str, Checked],
    *,
    remove: bool,
) -> tuple[list[UnionPicture], Changes]:
    """The pictures of the new set, and what is different.

    `facts` are of the stored pictures, as far as they can be had; `good` are those of the source's pictures that
    passed every check. One that did not pass leaves the stored one as it is. Raises KeyError for a picture that has to
    stay but is not in `facts`.
    """
    members, changes, in_source = [], Changes(regrouped=source.regrouped), set()
    for picture in source.pictures:
        in_source.add(picture.id)
        if picture.id not in good:
            continue
        members.append(UnionPicture(picture, good[picture.id]))
        if picture.id not in stored:
            changes.added.append(picture.id)
        elif picture.id not in facts or _blobs(facts[picture.id]) != _blobs(good[picture.id]):
            changes.changed.append(picture.id)
    for id, there in sorted(stored.items()):
        if id in good:
            continue
        if remove and id not in in_source:
            changes.removed.append(id)
        else:
            changes.kept.append(id)
            members.append(UnionPicture(there.picture, facts[id], there.place))
    changes.added.sort()
    changes.changed.sort()
    return members, changes


def kinds_of(source: str) -> set[str]:
    """The kinds of source that a manifest's `source` names; Kaggle's download is of the kind `carvana`."""
    return {"carvana" if kind == "kaggle" else kind for kind in source.split("+")}


def _blobs(checked: Checked) -> tuple[int, ...]:
    return checked.image_bytes, checked.image_crc32c, checked.mask_bytes, checked.mask_crc32c

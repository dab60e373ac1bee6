"""The first half of `prepare`: every pair is decoded and judged, and the facts are kept.

They are kept in a folder that other writers may clear at any moment: nothing relies on it, it only saves time. The
facts save decoding after a kill. The packed masks save it in the second half, where decoding a mask's GIF would take as
long as everything else together.
"""

import contextlib
import fnmatch
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from segtrain.pictures.decodable import MOST_PIXELS
from segtrain.pictures.pillow_files import BadMaskError, BadPairError
from segtrain.prepare.pairs import FACTS, RULES, Checked, check_pair, read_mask, read_source, unchanged
from segtrain.prepare.sources import Picture
from segtrain.storage.csv_cells import csv_bytes
from segtrain.storage.files import Storage, join

FACTS_PREFIX = f"checked-{RULES}-"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A pair that is left out, and why."""

    picture: Picture
    reason: str
    file: str
    """The one of the two files that the reason is about."""


@dataclass(frozen=True, slots=True)
class Findings:
    """The results of checking some pictures."""

    good: list[Checked]
    bad: list[Rejected]
    bytes: int
    """Read from the source."""


def check_chunk(
    storage: Storage,
    pictures: Sequence[Picture],
    known: Mapping[str, Checked],
    folder: str,
    most_pixels: int = MOST_PIXELS,
) -> Findings:
    """Check some pictures, and keep the packed masks of the good ones in a file in `folder`.

    Pictures in `known` are only read: where their files are the same and not larger than `most_pixels`, they stay good.
    """
    good: list[Checked] = []
    bad: list[Rejected] = []
    fresh: list[tuple[Checked, bytes]] = []
    read_bytes = 0
    for picture in pictures:
        try:
            image, mask = read_source(picture.image, storage), read_mask(picture, storage)
            read_bytes += len(image) + len(mask)
            earlier = known.get(picture.id)
            if (
                earlier is not None
                and earlier.height * earlier.width <= most_pixels
                and picture.group
                and unchanged(earlier, image, mask)
            ):
                good.append(earlier)
            else:
                fresh.append(check_pair(picture, image, mask, most_pixels))
        except BadPairError as error:
            file = picture.mask if isinstance(error, BadMaskError) and picture.mask else picture.image
            bad.append(Rejected(picture, str(error), file))
    return Findings(good + _keep_masks(storage, folder, fresh), bad, read_bytes)


def _keep_masks(storage: Storage, folder: str, fresh: Sequence[tuple[Checked, bytes]]) -> list[Checked]:
    """Write the packed masks one after the other into one file; the facts, with the places of the masks in it."""
    if not fresh:
        return []
    name = f"masks-{_digest([checked for checked, _ in fresh])}.bin"
    write_hint(storage, join(folder, name), b"".join(packed for _, packed in fresh))
    places = accumulate((checked.mask_bytes for checked, _ in fresh), initial=0)
    return [replace(one, packed_in=name, packed_at=at) for (one, _), at in zip(fresh, places, strict=False)]


def save_facts(storage: Storage, folder: str, good: list[Checked]) -> None:
    """Keep facts in a file of their own in `folder`, whose name says by which rules they were found."""
    write_hint(storage, join(folder, f"{FACTS_PREFIX}{_digest(good)}.json"), FACTS.dump_json(good))


def _digest(good: Sequence[Checked]) -> str:
    """Name for the files kept of these pictures; it differs where their masks changed, so that no file changes."""
    names = "\n".join(f"{checked.id}\t{checked.mask_crc32c}" for checked in good)
    return hashlib.sha256(names.encode()).hexdigest()[:16]


def load_facts(storage: Storage, folder: str) -> dict[str, Checked]:
    """Id -> facts that `save_facts` kept; those by other rules, and damaged ones, are passed over."""
    known: dict[str, Checked] = {}
    for text in read_hints(storage, folder, f"{FACTS_PREFIX}*"):
        with contextlib.suppress(ValueError):
            known |= {one.id: one for one in FACTS.validate_json(text, strict=True)}
    return known


def write_hint(storage: Storage, url: str, data: bytes) -> None:
    """Write a file that saves time if it is there later."""
    # Another writer that ends may remove the folder just between its making and the file's.
    with contextlib.suppress(FileNotFoundError):
        storage.write_bytes(url, data)


def read_hints(storage: Storage, folder: str, pattern: str) -> Iterator[bytes]:
    """Contents of the files in `folder` whose names match a pattern; files that are gone are passed over."""
    for name in fnmatch.filter(storage.list(folder), pattern):
        with contextlib.suppress(FileNotFoundError):
            yield storage.read_bytes(join(folder, name))


def duplicates_across_groups(pairs: Iterable[tuple[Picture, Checked]]) -> list[list[Picture]]:
    """Sets of pictures that are the same file, byte for byte, and stand in different groups: a leak between folds."""
    alike: defaultdict[str, list[Picture]] = defaultdict(list)
    for picture, checked in pairs:
        alike[checked.image_digest].append(picture)
    return [same for same in alike.values() if len({picture.group for picture in same}) > 1]


def rejected_csv(bad: Iterable[Rejected]) -> bytes:
    """`id,image,mask,reason`, sorted by id, without a mask where it comes as run lengths.

    Text that is no UTF-8 is escaped.
    """
    rows = sorted((one.picture.id, one.picture.image, one.picture.mask or "", one.reason) for one in bad)
    return csv_bytes(("id", "image", "mask", "reason"), rows)


def duplicates_csv(duplicates: Iterable[Sequence[Picture]]) -> bytes:
    """`set,id,group`: pictures of one set are the same file."""
    rows = [(number, one.id, one.group) for number, same in enumerate(duplicates) for one in same]
    return csv_bytes(("set", "id", "group"), rows)

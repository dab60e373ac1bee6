"""The first half of `prepare`: every pair is decoded and judged, and what is found out is kept for a restart."""

import csv
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from segtrain.data.pairs import BadPairError, Checked, check, read_sources, unchanged
from segtrain.data.sources import Picture
from segtrain.storage import Storage, join

FACTS_PREFIX = "checked-"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A pair that is left out, and why."""

    id: str
    image: str
    reason: str


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found out about some pictures."""

    good: list[Checked]
    bad: list[Rejected]


def check_chunk(storage: Storage, pictures: Sequence[Picture], known: Mapping[str, Checked]) -> Findings:
    """Check some pictures. Those in `known` are only read: where their files are the same, they stay good."""
    found = Findings([], [])
    for picture in pictures:
        try:
            image, mask = read_sources(picture, storage)
            earlier = known.get(picture.id)
            same = earlier is not None and picture.group and unchanged(earlier, image, mask)
            found.good.append(earlier if earlier is not None and same else check(picture, image, mask))
        except BadPairError as error:
            found.bad.append(Rejected(picture.id, picture.image, str(error)))
    return found


def save_facts(storage: Storage, folder: str, good: Sequence[Checked]) -> None:
    """Keep facts in a file of their own in `folder`."""
    name = hashlib.sha256("\n".join(checked.id for checked in good).encode()).hexdigest()[:16]
    text = json.dumps([asdict(checked) for checked in good])
    storage.write_bytes(join(folder, f"{FACTS_PREFIX}{name}.json"), text.encode())


def load_facts(storage: Storage, folder: str) -> dict[str, Checked]:
    """Id -> facts that `save_facts` kept; those of another version of segtrain are passed over."""
    names = {field.name for field in fields(Checked)}
    known: dict[str, Checked] = {}
    for name in storage.list(folder):
        if name.startswith(FACTS_PREFIX):
            facts = json.loads(storage.read_bytes(join(folder, name)))
            known.update({one["id"]: Checked(**one) for one in facts if one.keys() == names})
    return known


def duplicates_across_groups(pictures: Iterable[Picture], good: Mapping[str, Checked]) -> list[list[Picture]]:
    """Sets of pictures that are the same file, byte for byte, and stand in different groups: a leak between folds."""
    alike: defaultdict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        if picture.id in good:
            alike[good[picture.id].image_digest].append(picture)
    return [same for same in alike.values() if len({picture.group for picture in same}) > 1]


def rejected_csv(bad: Iterable[Rejected]) -> bytes:
    """`id,image,reason`, sorted by id."""
    rows = sorted((one.id, one.image, one.reason) for one in bad)
    return _csv(("id", "image", "reason"), rows)


def duplicates_csv(duplicates: Iterable[Sequence[Picture]]) -> bytes:
    """`set,id,group`: pictures of one set are the same file."""
    rows = [(number, one.id, one.group) for number, same in enumerate(duplicates) for one in same]
    return _csv(("set", "id", "group"), rows)


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()

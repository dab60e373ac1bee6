"""Part files: the masks of one finished task, as run lengths, in one file that is there whole or not at all.

Three pieces: a line that says what this is, in which version, and the CRC32C of the rest; a line of JSON with
`[id, height, width, bytes]` of every mask and the pictures that could not be read; then the run lengths, a line each.
`bytes` lets a reader find one mask among many without looking at the others. 20 pictures of 1918x1280 make 100 KB.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import google_crc32c

from segtrain.errors import DataError
from segtrain.storage import Storage

FORMAT_VERSION = 1
FIRST_LINE = re.compile(rb"segtrain part, version (\d+), crc32c ([0-9a-f]{8})\n")


class PredictedMask(NamedTuple):
    """A picture's predicted mask at the picture's own size."""

    id: str
    height: int
    width: int
    rle: str
    """What `segtrain.rle.encode` makes of the mask; "" where nothing was found."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one task has found out."""

    masks: Sequence[PredictedMask]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Id -> reason, of pictures that could not be decoded and have no mask."""


class Place(NamedTuple):
    """Where in a part file's bytes the run lengths of a mask are."""

    id: str
    height: int
    width: int
    start: int
    end: int


def write_part(storage: Storage, url: str, part: Part) -> None:
    """Write a part file; a reader sees all of it or nothing. Raises as `Storage` does."""
    texts = [mask.rle.encode("ascii") for mask in part.masks]
    head = {
        "masks": [[mask.id, mask.height, mask.width, len(text)] for mask, text in zip(part.masks, texts, strict=True)],
        "unreadable": dict(part.unreadable),
    }
    rest = b"".join(line + b"\n" for line in (json.dumps(head, separators=(",", ":")).encode(), *texts))
    first = b"segtrain part, version %d, crc32c %08x\n" % (FORMAT_VERSION, google_crc32c.value(rest))
    storage.write_bytes(url, first + rest)


def read_part(storage: Storage, url: str) -> Part:
    """What `write_part` has written.

    Raises `FileNotFoundError` where there is no such file, `DataError` where it is damaged, and as `Storage` does.
    """
    data = storage.read_bytes(url)
    places, unreadable = index(data, url)
    masks = tuple(
        PredictedMask(place.id, place.height, place.width, data[place.start : place.end].decode("ascii"))
        for place in places
    )
    return Part(masks, unreadable)


def index(data: bytes, url: str) -> tuple[list[Place], dict[str, str]]:
    """Where in the bytes of a part file each mask is, and which pictures could not be read: id -> reason.

    `url` is for messages. Raises `DataError` where the bytes are damaged.
    """
    first = FIRST_LINE.match(data)
    if first is None:
        raise _damaged(url)
    if int(first[1]) != FORMAT_VERSION:
        raise DataError(f"{url} is of format version {int(first[1])}; this segtrain reads version {FORMAT_VERSION}")
    if google_crc32c.value(data[first.end() :]) != int(first[2], 16):
        raise _damaged(url)
    start = data.index(b"\n", first.end()) + 1
    head = json.loads(data[first.end() : start])
    places = []
    for picture, height, width, length in head["masks"]:
        places.append(Place(picture, height, width, start, start + length))
        start += length + 1
    return places, head["unreadable"]


def _damaged(url: str) -> DataError:
    return DataError(f"{url} is damaged or no part file; delete it, then run the same command again")

"""Part files: the masks of one finished task, as run lengths, in one file that is there whole or not at all.

A file has three pieces:

1. a line that says what this is, in which version, and the CRC32C of the rest;
2. a line of JSON with `[id, height, width, bytes]` of every mask, the unreadable pictures, and what each picture was;
3. the run lengths, a line each. `bytes` is how many the line has.

20 pictures of 1918x1280 make 100 KB. Version 1 did not say what the pictures were.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from json import dumps
from typing import Any, NamedTuple, TypeVar

from segtrain.errors import DataError, UserError
from segtrain.pipeline.prefetch import started_ahead
from segtrain.storage.checksums import crc32c
from segtrain.storage.files import Storage
from segtrain.storage.json_text import read_json

T = TypeVar("T")

FETCHED_AT_ONCE = 16
"""Parts that are on their way, or wait in memory: 1.6 MB where each holds 20 pictures of 1918x1280."""
FORMAT_VERSION = 2
FIRST_LINE = re.compile(rb"segtrain part, version (\d{1,9}), crc32c ([0-9a-f]{8})\n")


class PredictedMask(NamedTuple):
    """A picture's predicted mask at the picture's own size."""

    id: str
    height: int
    width: int
    rle: str
    """What `segtrain.rle.encode` makes of the mask; "" where nothing was found."""


class Seen(NamedTuple):
    """What a picture was when it was predicted."""

    mark: str
    """Of its file or row group, as `tasks.Subject.mark`; another mark may mean another content."""
    digest: str
    """32 hex digits over the bytes of the picture's file; "" where they could not be had."""
    file: str
    """Name of its outputs, without a suffix."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one task has found out."""

    masks: Sequence[PredictedMask]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Id -> reason, of pictures that could not be decoded and have no mask."""
    seen: Mapping[str, Seen] = field(default_factory=dict)
    """By id; empty in a part of version 1."""

    @property
    def ids(self) -> list[str]:
        """Of all its pictures."""
        return [*(mask.id for mask in self.masks), *self.unreadable]

    def without(self, ids: set[str]) -> "Part":
        """The part of the other pictures."""
        return Part(
            [mask for mask in self.masks if mask.id not in ids],
            {id: reason for id, reason in self.unreadable.items() if id not in ids},
            {id: seen for id, seen in self.seen.items() if id not in ids},
        )


def write_part(storage: Storage, url: str, part: Part) -> None:
    """Write a part file; a reader sees all of it or nothing. Raises as `Storage` does."""
    texts = [mask.rle.encode("ascii") for mask in part.masks]
    head = {
        "masks": [[mask.id, mask.height, mask.width, len(text)] for mask, text in zip(part.masks, texts, strict=True)],
        "unreadable": dict(part.unreadable),
        "seen": {id: list(seen) for id, seen in part.seen.items()},
    }
    rest = b"".join(line + b"\n" for line in (dumps(head, separators=(",", ":")).encode(), *texts))
    first = b"segtrain part, version %d, crc32c %08x\n" % (FORMAT_VERSION, crc32c(rest))
    storage.write_bytes(url, first + rest)


def read_part(storage: Storage, url: str) -> Part:
    """What `write_part` has written.

    Raises `FileNotFoundError` where there is no such file, `DataError` where it is damaged, `UserError` where a newer
    segtrain wrote it, and as `Storage` does.
    """
    return parse_part(storage.read_bytes(url), url)


def fetched_ahead(fetch: Callable[[str], T], names: Iterable[str]) -> Iterator[tuple[str, T]]:
    """Each name and what `fetch` returns for it, in order, a few fetched ahead. Raises what `fetch` raises."""
    with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
        coming = ((name, pool.submit(fetch, name)) for name in names)
        try:
            for name, found in started_ahead(coming, FETCHED_AT_ONCE - 1):
                yield name, found.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def parse_part(data: bytes, url: str) -> Part:
    """What the bytes of a part file hold; `url` is for messages.

    Raises `DataError` where the bytes are damaged, and `UserError` where a newer segtrain wrote them.
    """
    first = FIRST_LINE.match(data)
    if first is None:
        raise _damaged(url)
    if int(first[1]) not in (1, FORMAT_VERSION):
        raise UserError(
            f"{url} is of format version {int(first[1])}; this segtrain reads versions 1 to {FORMAT_VERSION}; use the "
            f"segtrain that wrote it, or give another DEST"
        )
    end = data.find(b"\n", first.end())
    if crc32c(data[first.end() :]) != int(first[2], 16) or end < 0:
        raise _damaged(url)
    try:
        return _parse(read_json(data[first.end() : end]), data[end + 1 :])
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _damaged(url) from None


def _parse(head: Any, texts: bytes) -> Part:
    """Raises ValueError, TypeError, KeyError or AttributeError for a head that `write_part` has not written."""
    masks, start = [], 0
    for picture, height, width, length in head["masks"]:
        if not isinstance(picture, str) or not all(
            isinstance(one, int) and one >= 0 for one in (height, width, length)
        ):
            raise TypeError("no mask")
        masks.append(PredictedMask(picture, height, width, texts[start : start + length].decode("ascii", "replace")))
        start += length + 1
    if start != len(texts):
        raise ValueError("run lengths are missing")
    unreadable = {str(id): str(reason) for id, reason in head["unreadable"].items()}
    return Part(tuple(masks), unreadable, {id: Seen(*map(str, seen)) for id, seen in head.get("seen", {}).items()})


def _damaged(url: str) -> DataError:
    return DataError(f"{url} is damaged or no part file; delete it, then run the same command again")

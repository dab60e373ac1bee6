"""The index of a data set: `manifest.json`, which names every other file, and one row a picture in Parquet.

Nothing in a data set is listed to be read: reading starts from the manifest, which is written last and swapped in
whole. One that was replaced stays for a while as `manifest-<fingerprint>.json` (`segtrain.dataset.versions`).
The models are columnar (`RowGroups` holds lists, not a list of models) so that 100,000 row groups parse in under a
second.
"""

import io
import json
import re
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from segtrain.dataset.soundness import wrong_index, wrong_index_size, wrong_manifest
from segtrain.errors import DataError, UserError, shown
from segtrain.storage.checksums import crc32c
from segtrain.storage.files import Storage, join

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
VERSION_NAME = re.compile(r"manifest-([0-9a-f]{16})\.json")

INDEX_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("fold", pa.int32(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("row_group", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("foreground", pa.float32(), nullable=False),
        pa.field("labelled", pa.bool_(), nullable=False),
    ]
)
"""`shard` counts in `Manifest.shards`, `row_group` within the shard, `row` within the row group."""


class _Facts(BaseModel):
    """A frozen part of the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ByteRange(_Facts):
    """Part of a file, with the CRC32C of its bytes."""

    offset: int
    length: int
    crc32c: int


class RowGroups(_Facts):
    """One entry a row group; its column chunks lie in one contiguous byte range."""

    offset: list[int]
    length: list[int]
    crc32c: list[int]
    rows: list[int]

    @model_validator(mode="after")
    def _same_lengths(self) -> Self:
        if not len(self.offset) == len(self.length) == len(self.crc32c) == len(self.rows):
            raise ValueError("offset, length, crc32c and rows differ in length")
        return self

    def __len__(self) -> int:
        return len(self.rows)

    def byte_range(self, row_group: int) -> ByteRange:
        return ByteRange(offset=self.offset[row_group], length=self.length[row_group], crc32c=self.crc32c[row_group])


class Shard(_Facts):
    """One Parquet file: pictures of one fold."""

    path: str
    """Relative to the data set: `fold=0/part-00000-5b1c09e2.parquet`."""
    fold: int
    bytes: int
    rows: int
    sha256: str
    footer: ByteRange
    """From the end of the last row group to the end of the file."""
    row_groups: RowGroups

    def __hash__(self) -> int:
        return hash(self.path)


class FoldFacts(_Facts):
    """How much is in one fold."""

    fold: int
    pictures: int
    groups: int
    foreground: float
    """Mean over its labelled pictures of the fraction of object pixels."""


class IndexFile(_Facts):
    """The Parquet file with one row a picture (`INDEX_SCHEMA`)."""

    path: str
    bytes: int
    crc32c: int


class Manifest(_Facts):
    """Everything that reading a data set starts from."""

    format_version: int = FORMAT_VERSION
    fingerprint: str
    """16 hex digits over ids, groups, folds, checksums and order: the same for the same contents, wherever they lie."""
    created: str
    """UTC, ISO 8601."""
    source: str
    """Kind of the source: carvana, folder or synthetic."""
    pictures: int
    groups: int
    labelled: int
    mean_foreground: float
    """Mean over the labelled pictures of the fraction of object pixels."""
    min_height: int
    max_height: int
    min_width: int
    max_width: int
    row_schema: str
    """Arrow schema of a shard, as text."""
    folds: list[FoldFacts]
    shards: list[Shard]
    index: IndexFile
    replaces: str | None = None
    """Version, as storage names it, of the manifest whose place this one took; so no manifest is ever written twice."""


class VersionGoneError(UserError):
    """A version of a data set that is not there any more, as newer ones took its place."""


def read_manifest(storage: Storage, root: str, fingerprint: str | None = None) -> Manifest:
    """The manifest of the data set at `root`, or of its version `fingerprint`, whether or not that was replaced.

    Raises `UserError` where there is none, and where its format is not `FORMAT_VERSION`; `DataError` where it is
    damaged; `VersionGoneError` where the version is not there.
    """
    newest = read_manifest_version(storage, root)[0]
    return newest if fingerprint is None else read_version(storage, root, fingerprint, newest)


def read_version(storage: Storage, root: str, fingerprint: str, newest: Manifest) -> Manifest:
    """The manifest of a version, where the newest one has been read already: that is it in the usual case.

    Raises `VersionGoneError` where the version is not there, `DataError` where its manifest is damaged.
    """
    if fingerprint == newest.fingerprint:
        return newest
    url = join(root, version_name(fingerprint))
    try:
        return parse_manifest(storage.read_bytes(url), url)
    except FileNotFoundError:
        raise VersionGoneError(
            f"{root} has no version {fingerprint} (any more: `jobs/data.py prune` removes versions, and so does "
            f"`jobs/prepare.py` beyond prepare.keep_versions); it is {newest.fingerprint} now"
        ) from None


def version_name(fingerprint: str) -> str:
    """Name of the file in which the manifest of a version stays once another one has taken its place."""
    return f"manifest-{fingerprint}.json"


def read_manifest_version(storage: Storage, root: str) -> tuple[Manifest, str]:
    """`read_manifest`, and the version of the file in storage, for `Manifest.replaces` of the next one."""
    url = join(root, MANIFEST_NAME)
    try:
        text, version = storage.read_versioned(url)
    except FileNotFoundError:
        raise UserError(f"there is no {MANIFEST_NAME} in {root}; make the data set with jobs/prepare.py") from None
    return parse_manifest(text, url), version


def parse_manifest(text: bytes, url: str) -> Manifest:
    """The manifest that the file `url` holds.

    Raises `UserError` where it is none that this segtrain reads, and `DataError` where it is damaged.
    """
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{url} is not JSON; make the data set again with jobs/prepare.py") from None
    if not isinstance(tree, dict) or "format_version" not in tree:
        raise UserError(f"{url} is no manifest of a data set; name the folder of one that jobs/prepare.py made")
    format_version = tree["format_version"]
    if format_version != FORMAT_VERSION:
        raise UserError(
            f"{url} has format_version {shown(str(format_version))}, this segtrain reads {FORMAT_VERSION}; "
            "make the data set again with jobs/prepare.py or use the segtrain that wrote it"
        )
    try:
        manifest = Manifest.model_validate(tree)
        reason = wrong_manifest(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{shown('.'.join(str(part) for part in first['loc']))}: {first['msg']}"
    if reason is not None:
        raise DataError(f"{url} is damaged: {reason}; make the data set again")
    return manifest


def write_manifest(storage: Storage, root: str, manifest: Manifest) -> None:
    """Write `manifest.json`. Call it last: from then on readers see the new data set.

    Raises `ConflictError` where the manifest that is there is not the version `manifest.replaces`: another writer has
    been faster. None means that there is none yet.
    """
    storage.write_if_version(join(root, MANIFEST_NAME), manifest.model_dump_json().encode(), manifest.replaces)


def read_index(storage: Storage, root: str, manifest: Manifest) -> pa.Table:
    """One row a picture (`INDEX_SCHEMA`), ordered by (shard, row_group, row), every value looked at.

    Raises `DataError` where the file is not the one that the manifest promises, and for values that cannot be.
    """
    index = load_index(storage, root, manifest)
    has_columns = index.schema.equals(INDEX_SCHEMA)
    reason = wrong_index(manifest, index) if has_columns else f"has other columns than format {FORMAT_VERSION}"
    if reason is not None:
        raise DataError(f"{join(root, manifest.index.path)} {reason}; make the data set again")
    return index


def load_index(storage: Storage, root: str, manifest: Manifest) -> pa.Table:
    """What the index holds, of which only its size and its checksum have been compared; as `read_index` otherwise."""
    url = join(root, manifest.index.path)
    try:
        data = storage.read_bytes(url)
    except FileNotFoundError:
        raise lost_file(storage, root, manifest, url) from None
    if len(data) != manifest.index.bytes or crc32c(data) != manifest.index.crc32c:
        raise DataError(f"{url} does not match its checksum in the manifest; make the data set again")
    # Not `pq.read_table`: its threads abort one short program in forty as the interpreter exits (pyarrow 26.0.1).
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        reason = wrong_index_size(file.metadata, len(data), manifest.pictures)
        if reason is None:
            return file.read(use_threads=False)
    except (OSError, pa.ArrowException) as error:
        reason = f"cannot be read: {' '.join(str(error).split())}"
    raise DataError(f"{url} {reason}; make the data set again")


def lost_file(storage: Storage, root: str, manifest: Manifest, url: str) -> DataError:
    """What to raise where a file of a data set is not there: it is damaged, or this version of it was removed."""
    try:
        current = read_manifest(storage, root).fingerprint
    except (UserError, DataError):
        current = manifest.fingerprint
    if current == manifest.fingerprint:
        return DataError(f"{url} is named in the manifest but is not there; make the data set again (jobs/prepare.py)")
    return DataError(
        f"{url} is not there any more: version {manifest.fingerprint} of the data set was removed while it was read "
        f"(by `jobs/data.py prune`, or by `jobs/prepare.py` beyond prepare.keep_versions); begin again on {current}"
    )


def encode_index(table: pa.Table) -> bytes:
    """A table of `INDEX_SCHEMA` as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table.cast(INDEX_SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()

"""The second half of `prepare`: checked pictures are laid out, and each shard is written on its own."""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa

from segtrain.config import PrepareConfig
from segtrain.dataset.manifest import FORMAT_VERSION, INDEX_SCHEMA, FoldFacts, Shard
from segtrain.dataset.shards import Row, write_shard
from segtrain.errors import ShortFileError, UserError, first_fault
from segtrain.pictures.pillow_files import BadPairError
from segtrain.prepare.checks import read_hints, write_hint
from segtrain.prepare.layout import Entry, cut_rows, cut_shards, shuffled
from segtrain.prepare.pairs import Checked, make_row, pack, read_mask, read_source
from segtrain.prepare.stored_rows import StoredRows
from segtrain.prepare.union import Pair
from segtrain.storage.checksums import crc32c
from segtrain.storage.files import Storage, join
from segtrain.storage.scratch import scratch_folder

AGAIN = "run the same command again"
READ_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """What goes into one shard, in order."""

    path: str
    """Relative to the data set. It ends in a digest of the contents and a token of the earlier data set, so a file of
    another content is never replaced and an earlier file never touched: a data set stays whole, for its readers too,
    until the new manifest takes the old one's place."""
    fold: int
    row_groups: list[list[Pair]]

    @property
    def pairs(self) -> list[Pair]:
        """All pairs of the shard, in order."""
        return [pair for row_group in self.row_groups for pair in row_group]


def plan_shards(pairs: Sequence[Pair], folds: Mapping[str, int], config: PrepareConfig, token: str) -> list[ShardPlan]:
    """The shards of a data set, fold by fold; a function of the pairs and the settings, not of the pairs' order.

    `folds` has the fold of each group. `token` stands at the end of the shards' names.
    """
    by_fold: defaultdict[int, dict[str, Pair]] = defaultdict(dict)
    for pair in pairs:
        by_fold[folds[pair.picture.group]][pair.picture.id] = pair
    plans = []
    for fold, members in sorted(by_fold.items()):
        entries = [Entry(name, pair.checked.image_bytes + pair.checked.mask_bytes) for name, pair in members.items()]
        fewest = math.ceil(config.min_row_groups * len(members) / len(pairs))
        row_groups = cut_rows(shuffled(entries, config.seed), config.row_group_bytes, fewest)
        for number, shard in enumerate(cut_shards(row_groups, config.shard_bytes)):
            content = [[members[entry.id] for entry in row_group] for row_group in shard]
            path = f"fold={fold}/part-{number:05d}-{_digest(content)[:8]}-{token}.parquet"
            plans.append(ShardPlan(path, fold, content))
    return plans


def without_token(path: str) -> str:
    """The part of a shard's path that stands for its contents."""
    return path.rpartition("-")[0]


def write_one(storage: Storage, root: str, plan: ShardPlan, finished: Shard | None, facts: str) -> Shard:
    """Write one shard and keep its facts as a JSON file in the folder `facts`.

    A shard of the same content that is `finished`, under whatever name, and whose stored bytes still match is left
    alone. Holds a few row groups in memory. Raises `UserError` where a picture has changed since it was checked, and
    `DataError` where the row of one that the data set holds cannot be read any more.
    """
    if finished is not None and _is_stored(storage, join(root, finished.path), finished):
        return finished
    with scratch_folder("prepare") as folder:
        local = folder / "shard.parquet"
        stored = StoredRows(storage, root)
        rows = ([_row(storage, pair, facts, stored) for pair in group] for group in plan.row_groups)
        shard = write_shard(local, plan.path, plan.fold, rows)
        storage.write_file(join(root, plan.path), local)
    write_hint(storage, join(facts, f"{PurePosixPath(plan.path).name}.json"), shard.model_dump_json().encode())
    return shard


def load_finished(storage: Storage, facts: str) -> list[Shard]:
    """Facts of the shards that an earlier, killed `prepare` finished."""
    return [Shard.model_validate_json(text) for text in read_hints(storage, facts, "*.parquet.json")]


def _is_stored(storage: Storage, url: str, shard: Shard) -> bool:
    digest = hashlib.sha256()
    try:
        if storage.size(url) != shard.bytes:
            return False
        for start in range(0, shard.bytes, READ_BYTES):
            digest.update(storage.read_range(url, start, min(READ_BYTES, shard.bytes - start)))
    except FileNotFoundError:
        return False
    return digest.hexdigest() == shard.sha256


def _row(storage: Storage, pair: Pair, facts: str, stored: StoredRows) -> Row:
    if pair.place is not None:
        return stored.row(pair.place, pair.checked)
    picture, checked = pair.picture, pair.checked
    try:
        image = read_source(picture.image, storage)
        packed = _kept_mask(storage, checked, facts) or pack(picture, checked, read_mask(picture, storage))
    except BadPairError as error:
        raise UserError(f"{picture.id}: {error}; {AGAIN}") from None
    fault = first_fault(
        (crc32c(image) != checked.image_crc32c, f"{picture.image} changed meanwhile"),
        (crc32c(packed) != checked.mask_crc32c, f"the mask of {picture.image} changed meanwhile"),
    )
    if fault is not None:
        raise UserError(f"{fault}; {AGAIN}")
    return make_row(picture, checked, image, packed)


def _kept_mask(storage: Storage, checked: Checked, facts: str) -> bytes | None:
    """The packed mask that the check has kept, if it is still there."""
    if not checked.packed_in:
        return None
    try:
        packed = storage.read_range(join(facts, checked.packed_in), checked.packed_at, checked.mask_bytes)
    except (FileNotFoundError, ShortFileError):
        return None
    return packed if crc32c(packed) == checked.mask_crc32c else None


def fingerprint(plans: Sequence[ShardPlan]) -> str:
    """16 hex digits over ids, groups, folds, checksums and order."""
    return _digest([[[plan.fold], *(_identity(pair) for pair in group)] for plan in plans for group in plan.row_groups])


def _digest(content: object) -> str:
    text = json.dumps([FORMAT_VERSION, content], default=_identity)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _identity(pair: Pair) -> list[object]:
    """What makes two rows the same row."""
    return [pair.picture.id, pair.picture.group, pair.checked.image_digest, pair.checked.mask_crc32c]


def index_table(plans: Sequence[ShardPlan]) -> pa.Table:
    """One row a picture (`INDEX_SCHEMA`), ordered by (shard, row_group, row)."""
    rows = [
        (
            *(pair.picture.id, pair.picture.group),
            *(plan.fold, shard, row_group, row),
            *(pair.checked.height, pair.checked.width, pair.checked.foreground, True),
        )
        for shard, plan in enumerate(plans)
        for row_group, pairs in enumerate(plan.row_groups)
        for row, pair in enumerate(pairs)
    ]
    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=INDEX_SCHEMA)


def fold_facts(plans: Sequence[ShardPlan], folds: int) -> list[FoldFacts]:
    """How much is in each fold."""
    facts = []
    for fold in range(folds):
        members = [pair for plan in plans if plan.fold == fold for pair in plan.pairs]
        foreground = math.fsum(pair.checked.foreground for pair in members) / max(1, len(members))
        groups = len({pair.picture.group for pair in members})
        facts.append(FoldFacts(fold=fold, pictures=len(members), groups=groups, foreground=foreground))
    return facts

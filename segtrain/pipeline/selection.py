"""Which rows of a data set a run trains on, and which it is scored on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from segtrain.config import DataConfig
from segtrain.dataset.data_set import DataSet
from segtrain.dataset.manifest import Manifest
from segtrain.errors import UserError
from segtrain.pipeline.plan import RowGroupTable, kept_groups

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """Row groups in stored order, and which of their rows are selected; every row group has at least one."""

    shards: Int64
    """(n,) number of each row group's shard in the manifest."""
    row_groups: Int64
    """(n,) number within the shard."""
    table: RowGroupTable
    kept: list[Int64] | None
    """Of each row group the selected rows, in stored order; None where it is all rows of all of them."""

    def place(self, group: int) -> tuple[int, int]:
        """(shard, row group within it) of the selection's row group number `group`."""
        return int(self.shards[group]), int(self.row_groups[group])

    def stored_row(self, group: int, row: int) -> int:
        """Where the selected row number `row` of a row group is among all its rows."""
        return row if self.kept is None else int(self.kept[group][row])


def training_selection(config: DataConfig, seed: int, data: DataSet) -> Selection:
    """The labelled pictures of every fold but `fold` and `test_fold`, of `max_groups` groups at most.

    Raises `UserError` for a fold that the data set does not have, and where nothing is left to train on.
    """
    manifest = data.manifest
    left_out = {config.fold} if config.test_fold is None else {config.fold, config.test_fold}
    _check_folds([config.fold], manifest, "data.fold")
    _check_folds(left_out - {config.fold}, manifest, "data.test_fold")
    folds = [facts.fold for facts in manifest.folds if facts.fold not in left_out]
    if config.max_groups is None and manifest.labelled == manifest.pictures:
        selection = _whole_row_groups(folds, manifest)
    else:
        index = _rows_of(folds, data.index)
        groups = kept_groups(index["group"].unique().to_pylist(), config.max_groups, seed)
        selection = _rows(index.filter(pc.is_in(index["group"], pa.array(sorted(groups), pa.string()))), manifest)
    if selection is None:
        raise UserError(
            f"{data.root} has no labelled picture outside fold {config.fold}; prepare it with more folds or masks"
        )
    return selection


def evaluation_selection(folds: Sequence[int], data: DataSet) -> tuple[Selection, list[str]]:
    """The labelled pictures of these folds, and their ids in the same order.

    Raises `UserError` for a fold that the data set does not have or that holds no labelled picture.
    """
    _check_folds(folds, data.manifest, "data.fold")
    index = _rows_of(folds, data.index)
    selection = _rows(index, data.manifest)
    if selection is None:
        named = ", ".join(map(str, folds))
        raise UserError(f"{data.root} has no labelled picture in fold {named}; choose another fold")
    return selection, index["id"].to_pylist()


def _check_folds(folds: Iterable[int], manifest: Manifest, field: str) -> None:
    known = [facts.fold for facts in manifest.folds]
    for fold in folds:
        if fold not in known:
            raise UserError(f"fold {fold} is not in the data set, which has {', '.join(map(str, known))}; set {field}")


def _rows_of(folds: Sequence[int], index: pa.Table) -> pa.Table:
    return index.filter(pc.and_(index["labelled"], pc.is_in(index["fold"], pa.array(folds, pa.int32()))))


def _whole_row_groups(folds: Sequence[int], manifest: Manifest) -> Selection | None:
    shards = [number for number, shard in enumerate(manifest.shards) if shard.fold in folds]
    if not shards:
        return None
    parts = [manifest.shards[number].row_groups for number in shards]
    return Selection(
        shards=np.repeat(np.array(shards, np.int64), [len(part) for part in parts]),
        row_groups=np.concatenate([np.arange(len(part)) for part in parts]),
        table=RowGroupTable(
            rows=np.concatenate([np.array(part.rows, np.int64) for part in parts]),
            bytes=np.concatenate([np.array(part.length, np.int64) for part in parts]),
        ),
        kept=None,
    )


def _rows(index: pa.Table, manifest: Manifest) -> Selection | None:
    """The rows of an index ordered by (shard, row group, row), grouped by row group."""
    if index.num_rows == 0:
        return None
    shards, row_groups, rows = (index[name].to_numpy().astype(np.int64) for name in ("shard", "row_group", "row"))
    changes = np.flatnonzero((np.diff(shards) != 0) | (np.diff(row_groups) != 0)) + 1
    starts = np.concatenate(([0], changes))
    places = zip(shards[starts].tolist(), row_groups[starts].tolist(), strict=True)
    sizes = [manifest.shards[shard].row_groups.length[row_group] for shard, row_group in places]
    return Selection(
        shards=shards[starts],
        row_groups=row_groups[starts],
        table=RowGroupTable(
            rows=np.diff(np.concatenate((starts, [rows.size]))).astype(np.int64), bytes=np.array(sizes, np.int64)
        ),
        kept=np.split(rows, changes),
    )

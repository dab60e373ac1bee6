"""Which rows of a data set a run trains on, and which it is scored on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segtrain.config import DataConfig
from segtrain.dataset.data_set import DataSet
from segtrain.dataset.manifest import Manifest
from segtrain.errors import UserError
from segtrain.pipeline.plan import Int64, RowGroupTable, kept_groups


@dataclass(frozen=True)
class Selection:
    """Row groups in stored order, and which of their rows are selected; every row group has at least one."""

    places: list[tuple[int, int]]
    """Of each row group the number of its shard in the manifest, and its own within the shard."""
    table: RowGroupTable
    kept: list[Int64]
    """Of each row group the places of the selected rows among all its rows, in stored order."""


def training_selection(config: DataConfig, seed: int, data: DataSet) -> Selection:
    """The labelled pictures of every fold but `fold` and `test_fold`, of `max_groups` groups at most.

    Raises `UserError` for a fold that the data set does not have, and where nothing is left to train on.
    """
    manifest = data.manifest
    left_out = {config.fold} if config.test_fold is None else {config.fold, config.test_fold}
    _check_folds([config.fold], manifest, "data.fold")
    _check_folds(left_out - {config.fold}, manifest, "data.test_fold")
    folds = [facts.fold for facts in manifest.folds if facts.fold not in left_out]
    index = _rows_of(folds, data.index)
    if config.max_groups is not None:
        groups = kept_groups(index["group"].unique().to_pylist(), config.max_groups, seed)
        index = index.filter(pc.is_in(index["group"], pa.array(sorted(groups), pa.string())))
    if index.num_rows == 0:
        raise UserError(
            f"{data.root} has no labelled picture outside fold {config.fold}; prepare it with more folds or masks"
        )
    return _rows(index, manifest)


def evaluation_selection(folds: Sequence[int], data: DataSet) -> tuple[Selection, list[str]]:
    """The labelled pictures of these folds, and their ids in the same order.

    Raises `UserError` for a fold that the data set does not have or that holds no labelled picture.
    """
    _check_folds(folds, data.manifest, "data.fold")
    index = _rows_of(folds, data.index)
    if index.num_rows == 0:
        named = ", ".join(map(str, folds))
        raise UserError(f"{data.root} has no labelled picture in fold {named}; choose another fold")
    return _rows(index, data.manifest), index["id"].to_pylist()


def _check_folds(folds: Iterable[int], manifest: Manifest, field: str) -> None:
    known = [facts.fold for facts in manifest.folds]
    for fold in folds:
        if fold not in known:
            raise UserError(f"fold {fold} is not in the data set, which has {', '.join(map(str, known))}; set {field}")


def _rows_of(folds: Sequence[int], index: pa.Table) -> pa.Table:
    return index.filter(pc.and_(index["labelled"], pc.is_in(index["fold"], pa.array(folds, pa.int32()))))


def _rows(index: pa.Table, manifest: Manifest) -> Selection:
    """The rows of an index, at least one and ordered by (shard, row group, row), grouped by row group."""
    shards, row_groups, rows = (index[name].to_numpy().astype(np.int64) for name in ("shard", "row_group", "row"))
    changes = np.flatnonzero((np.diff(shards) != 0) | (np.diff(row_groups) != 0)) + 1
    starts = np.concatenate(([0], changes))
    places = list(zip(shards[starts].tolist(), row_groups[starts].tolist(), strict=True))
    sizes = [manifest.shards[shard].row_groups.length[row_group] for shard, row_group in places]
    return Selection(
        places=places,
        table=RowGroupTable(
            rows=np.diff(np.concatenate((starts, [rows.size]))).astype(np.int64), bytes=np.array(sizes, np.int64)
        ),
        kept=np.split(rows, changes),
    )

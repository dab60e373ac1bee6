"""Training takes what validation and test leave; `max_groups` takes whole groups of it; both only what has a mask."""

import dataclasses

import pytest

from segtrain.config import DataConfig
from segtrain.dataset.reader import RowGroupReader
from segtrain.errors import UserError
from segtrain.pipeline.selection import Selection, evaluation_selection, training_selection
from segtrain.storage.files import Storage


def selected_rows(data_set, selection: Selection) -> list:
    reader = RowGroupReader(data_set.manifest, Storage(), data_set.root)
    return [
        reader.read(*selection.places[group])[selection.kept[group][row]]
        for group, rows in enumerate(selection.table.rows)
        for row in range(rows)
    ]


def train_on(data_set, **settings: object) -> Selection:
    config = DataConfig.model_validate({"root": data_set.root, **settings})
    return training_selection(config, 0, data_set.stored)


def test_training_leaves_out_the_validation_and_test_folds(tiny) -> None:
    ids = [row.id for row in tiny.rows]
    assert [row.id for row in selected_rows(tiny, train_on(tiny, fold=0))] == ids[9:]
    assert [row.id for row in selected_rows(tiny, train_on(tiny, fold=0, test_fold=2))] == ids[9:29]


def test_max_groups_takes_whole_groups_and_nests(tiny) -> None:
    training = selected_rows(tiny, train_on(tiny, fold=0))
    smaller: set[str] = set()
    for count in (1, 3, 7, 12):
        selection = train_on(tiny, fold=0, max_groups=count)
        rows = selected_rows(tiny, selection)
        groups = {row.group for row in rows}
        assert len(groups) == count
        assert [row.id for row in rows] == [row.id for row in training if row.group in groups]
        assert smaller <= groups
        assert selection.table.rows.min() > 0
        smaller = groups


def test_pictures_without_a_mask_are_left_out(tiny, make_data_set) -> None:
    bare = [dataclasses.replace(row, mask=None, mask_crc32c=None) for row in tiny.rows]
    written = make_data_set([[[tiny.rows[0], bare[1]]], [[bare[2], tiny.rows[3]], [bare[4]], [tiny.rows[5], bare[6]]]])
    assert [row.id for row in selected_rows(written, train_on(written, fold=0))] == ["p003", "p005"]
    selection, ids = evaluation_selection([0], written.stored)
    assert ids == ["p000"]
    assert [row.id for row in selected_rows(written, selection)] == ids


def test_evaluation_names_its_pictures_in_stored_order(tiny) -> None:
    selection, ids = evaluation_selection([0, 2], tiny.stored)
    assert ids == [row.id for row in [*tiny.rows[:9], *tiny.rows[29:]]]
    assert [row.id for row in selected_rows(tiny, selection)] == ids


def test_a_fold_that_is_not_there_is_named(tiny) -> None:
    with pytest.raises(UserError, match=r"fold 7 is not in the data set, which has 0, 1, 2"):
        train_on(tiny, fold=7)
    with pytest.raises(UserError, match="fold 9"):
        evaluation_selection([9], tiny.stored)


def test_nothing_to_train_on_or_to_score_is_a_users_error(tiny, make_data_set) -> None:
    bare = [dataclasses.replace(row, mask=None, mask_crc32c=None) for row in tiny.rows]
    written = make_data_set([[[tiny.rows[0]]], [[bare[1]]]])
    with pytest.raises(UserError, match="no labelled picture outside fold 0"):
        train_on(written, fold=0)
    with pytest.raises(UserError, match="no labelled picture in fold 1"):
        evaluation_selection([1], written.stored)

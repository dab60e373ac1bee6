"""Reading and decoding in the background."""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future

import pytest

from segtrain.dataset.reader import RowGroupReader
from segtrain.dataset.shards import Row
from segtrain.pipeline.loader import Loader
from segtrain.storage.files import Storage
from tests.support.data_sets import DataSet


@pytest.fixture
def loader(tiny: DataSet) -> Iterator[Loader]:
    loader = Loader(RowGroupReader(tiny.manifest, Storage(), tiny.root), decode_threads=1)
    yield loader
    loader.close()


def test_each_row_is_decoded_once_its_row_group_is_there(loader: Loader, tiny: DataSet) -> None:
    rows = loader.read(1, 0)
    names = [loader.decode(lambda row: row.id, rows, number) for number in range(3)]
    assert [name.result() for name in names] == [row.id for row in tiny.rows[9:12]]


def test_a_row_in_quarantine_is_not_decoded(loader: Loader, tiny: DataSet) -> None:
    rows: Future[list[Row | None]] = Future()
    rows.set_result([None, tiny.rows[1]])
    assert [loader.decode(lambda row: row.id, rows, number).result() for number in (0, 1)] == [None, "p001"]


def test_what_has_not_begun_is_given_up_and_all_threads_end(loader: Loader, tiny: DataSet) -> None:
    before = threading.active_count()
    rows: Future[list[Row | None]] = Future()
    under_way, begun = threading.Event(), threading.Event()

    def decode(row: Row) -> str:
        begun.set()
        under_way.wait()
        return row.id

    rows.set_result(list(tiny.rows[:2]))
    first, second = (loader.decode(decode, rows, number) for number in (0, 1))
    begun.wait()
    loader.cancel()
    with pytest.raises(CancelledError):
        second.result()
    under_way.set()
    assert first.result() == "p000"
    loader.close()
    assert threading.active_count() == before

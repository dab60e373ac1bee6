"""What there is to predict, cut into tasks, and how a task's pictures are read."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from segtrain.dataset.salvage import LostRow
from segtrain.dataset.shards import Row
from segtrain.prediction.tasks import take_inventory, task_reader
from segtrain.storage.files import Storage
from tests.support.data_sets import DataSet, encode

PICTURES = 12
"""Of `data_root`, each in a row group of its own."""


def test_a_data_set_has_a_task_for_each_row_group_with_its_ids(data_root: str) -> None:
    inventory = take_inventory(Storage(), data_root, None)
    tasks = inventory.tasks()
    assert len(inventory.subjects) == len(tasks) == PICTURES
    assert inventory.folds == [0, 1, 2, 3]
    assert sorted(id for task in tasks for id in task.ids) == [f"{n:02d}" for n in range(PICTURES)]
    assert len({task.name for task in tasks}) == PICTURES
    assert all(task.place is not None for task in tasks)
    one = take_inventory(Storage(), data_root, [1]).tasks()
    assert [task.name for task in one] == [task.name for task in tasks if task in one]
    assert [task.ids for task in inventory.tasks(["03"])] == [task.ids for task in tasks if task.ids != ("03",)]


def test_a_folders_tasks_are_the_same_each_time_until_its_files_change(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02d}.JPG").write_bytes(b"")
    inventory = take_inventory(Storage(), str(tmp_path), None)
    tasks = inventory.tasks()
    assert [len(task.ids) for task in tasks] == [16, 16, 8]
    assert tasks == take_inventory(Storage(), str(tmp_path), None).tasks()
    assert [len(task.ids) for task in inventory.tasks({"00", "17"})] == [16, 16, 6]
    (tmp_path / "39.JPG").write_bytes(b"another")
    changed = take_inventory(Storage(), str(tmp_path), None).tasks()
    assert [one == other for one, other in zip(changed, tasks, strict=True)] == [True, True, False]
    assert changed[2].name != tasks[2].name


def test_a_row_that_is_damaged_is_read_as_lost_and_the_others_as_they_are(tiny: DataSet, tmp_path: Path) -> None:
    shard = tiny.manifest.shards[0]
    damaged = bytearray((Path(tiny.root) / shard.path).read_bytes())
    damaged[damaged.index(tiny.rows[1].image) + 60] ^= 1
    (tmp_path / shard.path).parent.mkdir()
    (tmp_path / shard.path).write_bytes(damaged)
    task = take_inventory(Storage(), tiny.root, [0]).tasks()[0]
    with ThreadPoolExecutor(1) as io:
        read = task_reader(Storage(), str(tmp_path), tiny.manifest, io)(task)
    assert [type(row) for row in read] == [Row, LostRow, Row]
    assert [row.id for row in read] == list(task.ids) == [row.id for row in tiny.rows[:3]]


def test_files_are_read_in_order_and_those_that_cannot_be_had_are_lost_with_a_reason(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(encode(np.zeros((3, 5, 3), np.uint8)))
    inventory = take_inventory(Storage(), str(tmp_path), None)
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").write_bytes(b"no picture")
    [task] = inventory.tasks()
    with ThreadPoolExecutor(2) as io:
        gone, broken, whole = task_reader(Storage(), str(tmp_path), None, io)(task)
    assert gone == LostRow("a", f"{tmp_path}/a.png is not there any more")
    assert isinstance(broken, LostRow)
    assert broken.reason.startswith(f"{tmp_path}/b.png: ")
    assert isinstance(whole, Row)
    assert (whole.id, whole.height, whole.width, whole.mask) == ("c", 3, 5, None)

"""What is saved comes back bit for bit; what is damaged or unfinished is passed over, never trusted, never deleted."""

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segtrain.config import Recipe
from segtrain.errors import StorageError, UserError
from segtrain.storage import Storage
from segtrain.training.checkpoint import Checkpoint, Checkpoints, Cursor, check_same_run, facts_of

FACTS = facts_of(Recipe(), "feedfacefeedface")
FILES = ["arrays.npz", "state.json", "recipe.yaml", "checksums.json"]


def arrays_of(step: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(step)
    return {
        "model/0000": random.random((3, 3, 3, 4)).astype(np.float32),
        "model/0001": np.array([np.nan, np.inf, -0.0, 1e-40], np.float32),
        "optimizer/0000": np.array(step, np.int64),
        "ema/0000": random.random(5),
    }


def cursor_of(step: int) -> Cursor:
    return Cursor(epoch=step // 4, step_in_epoch=step % 4, step=step, loss_sum=0.1 + step, best_metrics={"dice": 0.1})


def save(checkpoints: Checkpoints, *steps: int, best: int = 0) -> None:
    for step in steps:
        cursor = cursor_of(step)
        cursor.best_step = best
        checkpoints.save(arrays_of(step), cursor, FACTS, Recipe())
    checkpoints.wait()


def folder_of(root: Path, step: int) -> Path:
    return root / "checkpoints" / f"step-{step:08d}"


def steps_in(root: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (root / "checkpoints").iterdir())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(str(tmp_path), Storage(), keep=2)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path, checkpoints: Checkpoints) -> None:
    save(checkpoints, 7)
    found = Checkpoints(str(tmp_path), Storage(), keep=2).restore()
    assert found is not None
    assert found.cursor == cursor_of(7)
    assert found.facts == FACTS
    assert found.arrays.keys() == arrays_of(7).keys()
    for name, expected in arrays_of(7).items():
        assert found.arrays[name].dtype == expected.dtype
        assert found.arrays[name].shape == expected.shape
        assert found.arrays[name].tobytes() == expected.tobytes()


def test_a_checkpoint_says_what_made_it(tmp_path: Path, checkpoints: Checkpoints) -> None:
    save(checkpoints, 7)
    folder = folder_of(tmp_path, 7)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert json.loads((folder / "checksums.json").read_text()).keys() == set(FILES[:-1])
    assert (folder / "recipe.yaml").read_text() == Recipe().to_yaml()
    facts = json.loads((folder / "state.json").read_text())["facts"]
    assert (facts["recipe_fingerprint"], facts["seed"], facts["lanes"]) == (Recipe().fingerprint(), 0, 16)
    assert {"tensorflow", "keras", "ray", "numpy", "pyarrow"} <= facts["versions"].keys()


def test_a_new_run_has_nothing_to_restore(checkpoints: Checkpoints) -> None:
    assert checkpoints.restore() is None
    assert checkpoints.restore(4) is None


def test_the_newest_is_restored_and_any_other_by_its_step(checkpoints: Checkpoints) -> None:
    save(checkpoints, 2, 10)
    newest, older = checkpoints.restore(), checkpoints.restore(2)
    assert newest is not None
    assert older is not None
    assert (newest.cursor.step, older.cursor.step) == (10, 2)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
def test_a_damaged_file_is_named_and_an_older_checkpoint_restored(
    tmp_path: Path,
    checkpoints: Checkpoints,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    file: str,
) -> None:
    save(checkpoints, 4, 8)
    damage(folder_of(tmp_path, 8) / file)
    left = {path.name for path in folder_of(tmp_path, 8).iterdir()}
    with caplog.at_level(logging.WARNING):
        found = checkpoints.restore()
    assert found is not None
    assert found.cursor.step == 4
    assert found.arrays["ema/0000"].tobytes() == arrays_of(4)["ema/0000"].tobytes()
    if damage is Path.unlink and file == "checksums.json":
        assert caplog.text == ""  # one that was never finished is no damage
    else:
        assert "step-00000008 is damaged" in caplog.text
    assert {path.name for path in folder_of(tmp_path, 8).iterdir()} == left


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with the checkpoint of step 4."""
    root = tmp_path_factory.mktemp("saved")
    save(Checkpoints(str(root), Storage(), keep=2), 4)
    return root


@settings(deadline=None)
@given(file=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_is_ever_restored(saved: Path, file: str, place: float, bit: int) -> None:
    path = folder_of(saved, 4) / file
    sound = path.read_bytes()
    flipped = bytearray(sound)
    flipped[int(place * len(sound))] ^= 1 << bit
    path.write_bytes(flipped)
    assert Checkpoints(str(saved), Storage(), keep=2).restore() is None
    path.write_bytes(sound)
    assert Checkpoints(str(saved), Storage(), keep=2).restore() is not None


def test_where_all_are_damaged_there_is_none(tmp_path: Path, checkpoints: Checkpoints) -> None:
    save(checkpoints, 4, 8)
    for step in (4, 8):
        flip_a_bit(folder_of(tmp_path, step) / "arrays.npz")
    assert checkpoints.restore() is None
    assert steps_in(tmp_path) == [4, 8]


def test_the_newest_stay_and_the_best(tmp_path: Path, checkpoints: Checkpoints) -> None:
    save(checkpoints, 2, 4, 6, 8, 10, best=4)
    assert steps_in(tmp_path) == [4, 8, 10]
    save(checkpoints, 12, best=12)
    assert steps_in(tmp_path) == [10, 12]


def test_damaged_and_unfinished_ones_stay_and_are_not_counted(tmp_path: Path, checkpoints: Checkpoints) -> None:
    save(checkpoints, 4, 20)
    flip_a_bit(folder_of(tmp_path, 20) / "arrays.npz")
    folder_of(tmp_path, 16).mkdir()
    (folder_of(tmp_path, 16) / "arrays.npz").write_bytes(b"cut off")
    assert checkpoints.restore() is not None
    save(checkpoints, 6, 8, 10)
    assert steps_in(tmp_path) == [8, 10, 16, 20]
    save(checkpoints, 16, 18, 20)  # the run has come as far again
    assert steps_in(tmp_path) == [18, 20]
    found = checkpoints.restore()
    assert found is not None
    assert found.cursor.step == 20


def test_a_deletion_that_is_cut_short_leaves_no_damaged_checkpoint(
    tmp_path: Path, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(checkpoints, 2, 4)
    deleted = []

    def delete(self: Storage, url: str) -> None:
        deleted.append(url)
        Path(url).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(Storage, "delete", delete)
    with pytest.raises(KeyboardInterrupt):
        save(checkpoints, 6)
    assert deleted == [str(folder_of(tmp_path, 2) / "checksums.json")]


class Failing(Storage):
    """Storage that refuses what ends in `suffix`."""

    suffix = ".npz"

    def write_bytes(self, url: str, data: bytes) -> None:
        if url.endswith(self.suffix):
            raise StorageError(f"{url}: no space left on device")
        super().write_bytes(url, data)

    def read_bytes(self, url: str) -> bytes:
        if url.endswith(self.suffix):
            raise StorageError(f"{url}: no answer within 120 s")
        return super().read_bytes(url)


@pytest.mark.parametrize("suffix", FILES)
def test_a_failed_write_is_raised_by_the_next_save_or_wait_and_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(Failing, "suffix", suffix)
    checkpoints = Checkpoints(str(tmp_path), Failing(), keep=2)
    for surface in (lambda: checkpoints.save(arrays_of(8), cursor_of(8), FACTS, Recipe()), checkpoints.wait):
        checkpoints.save(arrays_of(4), cursor_of(4), FACTS, Recipe())
        with pytest.raises(StorageError, match="no space left"):
            surface()
        checkpoints.wait()  # raised once
    assert checkpoints.restore() is None


def test_storage_that_does_not_answer_is_not_taken_for_damage(tmp_path: Path, checkpoints: Checkpoints) -> None:
    save(checkpoints, 4)
    with pytest.raises(StorageError, match="no answer"):
        Checkpoints(str(tmp_path), Failing(), keep=2).restore()


def test_the_caller_goes_on_while_the_write_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write, wrote_by = threading.Event(), []
    write = Storage.write_bytes

    def wait_and_write(self: Storage, url: str, data: bytes) -> None:
        assert may_write.wait(timeout=60)
        wrote_by.append(threading.current_thread())
        write(self, url, data)

    monkeypatch.setattr(Storage, "write_bytes", wait_and_write)
    checkpoints = Checkpoints(str(tmp_path), Storage(), keep=2)
    cursor = cursor_of(4)
    checkpoints.save(arrays_of(4), cursor, FACTS, Recipe())
    cursor.step = 5  # training goes on; what is being written stays as it was
    assert checkpoints.restore() is None
    may_write.set()
    checkpoints.wait()
    assert threading.current_thread() not in wrote_by
    found = checkpoints.restore()
    assert found is not None
    assert found.cursor.step == 4


def test_a_run_on_another_data_set_is_refused() -> None:
    checkpoint = Checkpoint({}, Cursor(), FACTS)
    check_same_run(checkpoint, FACTS, "runs/cars")
    with pytest.raises(UserError, match=r"data\.root: the run in runs/cars .*feedfacefeedface.*run\.name"):
        check_same_run(checkpoint, facts_of(Recipe(), "0123456789abcdef"), "runs/cars")


def test_checkpoints_live_in_a_bucket_as_well(s3_root: str) -> None:
    checkpoints = Checkpoints(s3_root, Storage(), keep=2)
    save(checkpoints, 2, 4, 6)
    assert Storage().list(f"{s3_root}/checkpoints") == ["step-00000004", "step-00000006"]
    found = checkpoints.restore()
    assert found is not None
    assert found.arrays["model/0000"].tobytes() == arrays_of(6)["model/0000"].tobytes()

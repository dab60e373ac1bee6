"""What is saved comes back bit for bit; what is damaged or unfinished is passed over, never trusted, never deleted."""

import hashlib
import io
import json
import logging
import threading
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segtrain.config import Recipe, override
from segtrain.errors import DataError, StorageError, TakenOverError, UserError
from segtrain.storage.files import Storage
from segtrain.training.checkpoint import Checkpoints, Cursor, facts_of

RECIPE = override(Recipe(), ["data.lanes=16"])
FACTS = facts_of(RECIPE, "feedfacefeedface")
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
        checkpoints.save(arrays_of(step), cursor, FACTS, RECIPE)
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
    assert (folder / "recipe.yaml").read_text() == RECIPE.to_yaml()
    facts = json.loads((folder / "state.json").read_text())["facts"]
    assert (facts["recipe_fingerprint"], facts["seed"], facts["lanes"]) == (RECIPE.fingerprint(), 0, 16)
    assert {"tensorflow", "keras", "ray", "numpy", "pyarrow"} <= facts["versions"].keys()


def test_a_new_run_has_nothing_to_restore(checkpoints: Checkpoints) -> None:
    assert checkpoints.restore() is None
    assert checkpoints.cursor() == Cursor()
    with pytest.raises(DataError, match=r"checkpoint of step 4 .* is damaged"):
        checkpoints.restore_step(4)


def test_the_newest_is_restored_and_any_other_by_its_step(checkpoints: Checkpoints) -> None:
    save(checkpoints, 2, 10)
    newest, older = checkpoints.restore(), checkpoints.restore_step(2)
    assert newest is not None
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


@given(file=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_is_ever_restored(saved: Path, file: str, place: float, bit: int) -> None:
    path = folder_of(saved, 4) / file
    sound = path.read_bytes()
    flipped = bytearray(sound)
    flipped[int(place * len(sound))] ^= 1 << bit
    path.write_bytes(flipped)
    with pytest.raises(DataError, match=r"no checkpoint of .* can be read"):
        Checkpoints(str(saved), Storage(), keep=2).restore()
    path.write_bytes(sound)
    assert Checkpoints(str(saved), Storage(), keep=2).restore() is not None


@pytest.mark.parametrize("file", ["arrays.npz", "state.json"])
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
def test_where_all_are_damaged_they_are_named_with_the_way_out(
    tmp_path: Path, checkpoints: Checkpoints, damage: Callable[[Path], None], file: str
) -> None:
    """To start from the beginning would empty the run's record."""
    save(checkpoints, 4, 8)
    for step in (4, 8):
        damage(folder_of(tmp_path, step) / file)
    with pytest.raises(DataError, match=r"no checkpoint .*step-00000008: .*; step-00000004: .*put back a copy"):
        checkpoints.restore()
    if file == "state.json":  # the arrays are not read for the cursor
        with pytest.raises(DataError, match="delete that folder to train from the start"):
            checkpoints.cursor()
    assert steps_in(tmp_path) == [4, 8]


def rewrite(root: Path, step: int, **files: bytes) -> None:
    """Other contents under checksums that hold, as a newer segtrain or a foreign hand would leave them."""
    folder = folder_of(root, step)
    sums = json.loads((folder / "checksums.json").read_text())
    for stem, data in files.items():
        name = {"arrays": "arrays.npz", "state": "state.json"}.get(stem, stem)
        (folder / name).write_bytes(data)
        sums[name] = hashlib.sha256(data).hexdigest()
    (folder / "checksums.json").write_text(json.dumps(sums))


def state_with(**changes: object) -> bytes:
    cursor = changes.pop("cursor", {})
    return json.dumps({"cursor": {**asdict(cursor_of(8)), **cursor}, "facts": FACTS, **changes}).encode()  # type: ignore[dict-item]


DEEP = b"[" * 100_000


def npy(header: str) -> bytes:
    """An array's file whose header declares whatever it likes, with 4 bytes of data."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"1234"


def zipped(member: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w", method) as archive:
        archive.writestr("model/0000.npy", member)
    return stored.getvalue()


@pytest.mark.parametrize("sums", [b"null", b"[]", b"3", b"{}", b'{"arrays.npz": null}', DEEP, b"\xff"])
def test_checksums_of_odd_shape_are_damage(tmp_path: Path, checkpoints: Checkpoints, sums: bytes) -> None:
    save(checkpoints, 4, 8)
    (folder_of(tmp_path, 8) / "checksums.json").write_bytes(sums)
    found = checkpoints.restore()
    assert found is not None
    assert found.cursor.step == checkpoints.cursor().step == 4


@pytest.mark.parametrize(
    "state",
    [
        *(b"null", b"[1]", DEEP, b"{}"),
        b'{"cursor": null, "facts": {}}',
        b'{"cursor": {"step": 8}, "facts": []}',
        state_with(cursor={"step": 9}),
        state_with(cursor={"step": "eight"}),
        state_with(cursor={"loss_sum": float("nan")}),
        state_with(cursor={"best_epoch": 1, "best_metrics": {}}),
    ],
    ids=range(10),
)
def test_a_state_of_odd_shape_is_damage(tmp_path: Path, checkpoints: Checkpoints, state: bytes) -> None:
    save(checkpoints, 4, 8)
    rewrite(tmp_path, 8, state=state)
    found = checkpoints.restore()
    assert found is not None
    assert found.cursor.step == checkpoints.cursor().step == 4


@pytest.mark.parametrize(
    "arrays",
    [
        b"no zip",
        zipped(b"no array"),
        zipped(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n")),
        zipped(npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n")),
        zipped(npy("(" * 5000)),
        zipped(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n"), zipfile.ZIP_DEFLATED),
    ],
    ids=["no zip", "no array", "huge", "pickled", "deep", "packed"],
)
def test_arrays_that_are_none_are_damage_before_memory_is_taken(
    tmp_path: Path, checkpoints: Checkpoints, arrays: bytes
) -> None:
    save(checkpoints, 4, 8)
    rewrite(tmp_path, 8, arrays=arrays)
    found = checkpoints.restore()
    assert found is not None
    assert found.cursor.step == 4


@pytest.mark.parametrize(
    ("state", "what"),
    [
        (state_with(format_version=2), "has format version 2; this segtrain reads 1"),
        (state_with(format_version=None), "has format version None"),
        (state_with(cursor={"tokens": 1}), "has the field tokens, which this segtrain does not know"),
        (state_with(shards=[]), "has the field shards"),
    ],
)
def test_what_a_newer_segtrain_wrote_is_refused_and_not_passed_over(
    tmp_path: Path, checkpoints: Checkpoints, state: bytes, what: str
) -> None:
    save(checkpoints, 4, 8)
    rewrite(tmp_path, 8, state=state)
    for read in (checkpoints.restore, checkpoints.cursor):
        with pytest.raises(UserError, match=f"step-00000008 {what}.*go on with the segtrain that wrote it"):
            read()
    flip_a_bit(folder_of(tmp_path, 8) / "arrays.npz")
    found = checkpoints.restore()  # damage stays damage
    assert found is not None
    assert found.cursor.step == 4


def test_a_file_that_is_not_known_is_refused(tmp_path: Path, checkpoints: Checkpoints) -> None:
    save(checkpoints, 8)
    rewrite(tmp_path, 8, **{"slots.npz": b"x"})
    with pytest.raises(UserError, match=r"has the file slots\.npz"):
        checkpoints.restore()


def test_a_checkpoint_says_its_format_version_and_without_one_is_of_the_first(
    tmp_path: Path, checkpoints: Checkpoints
) -> None:
    save(checkpoints, 8)
    state = json.loads((folder_of(tmp_path, 8) / "state.json").read_text())
    assert state.pop("format_version") == 1
    rewrite(tmp_path, 8, state=json.dumps(state).encode())
    found = checkpoints.restore()
    assert found is not None
    assert found.cursor == cursor_of(8)


def test_a_write_that_was_held_up_does_not_damage_the_checkpoint_of_the_process_that_took_over(tmp_path: Path) -> None:
    """Both come to the same step; the older one's file would not match the newer one's checksums."""
    newer, taken = Checkpoints(str(tmp_path), Storage(), keep=2), []

    class Held(Storage):
        def write_if_version(self, url: str, data: bytes, version: str | None) -> None:
            if not taken:
                taken.append(url)
                newer.save({**arrays_of(8), "more": np.zeros(3)}, cursor_of(8), FACTS, RECIPE)
                newer.wait()
            super().write_if_version(url, data, version)

    def check_owner() -> None:
        if taken:
            raise TakenOverError("it is trained by another process by now")

    older = Checkpoints(str(tmp_path), Held(), keep=2, check_owner=check_owner)
    older.save(arrays_of(8), cursor_of(8), FACTS, RECIPE)
    with pytest.raises(TakenOverError):
        older.wait()
    found = newer.restore()
    assert found is not None
    assert "more" in found.arrays


def test_nothing_is_written_once_the_folder_is_anothers(tmp_path: Path) -> None:
    """Not even the rest of a checkpoint that was begun before."""
    asked: list[int] = []

    def check_owner() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise TakenOverError("runs/cars is trained by another process by now")

    checkpoints = Checkpoints(str(tmp_path), Storage(), keep=2, check_owner=check_owner)
    checkpoints.save(arrays_of(8), cursor_of(8), FACTS, RECIPE)
    with pytest.raises(TakenOverError):
        checkpoints.wait()
    assert sorted(path.name for path in folder_of(tmp_path, 8).iterdir()) == ["arrays.npz", "state.json"]


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

    def write_if_version(self, url: str, data: bytes, version: str | None) -> None:
        if url.endswith(self.suffix):
            raise StorageError(f"{url}: no space left on device")
        super().write_if_version(url, data, version)

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
    for surface in (lambda: checkpoints.save(arrays_of(8), cursor_of(8), FACTS, RECIPE), checkpoints.wait):
        checkpoints.save(arrays_of(4), cursor_of(4), FACTS, RECIPE)
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
    write = Storage.write_if_version

    def wait_and_write(self: Storage, url: str, data: bytes, version: str | None) -> None:
        assert may_write.wait(timeout=60)
        wrote_by.append(threading.current_thread())
        write(self, url, data, version)

    monkeypatch.setattr(Storage, "write_if_version", wait_and_write)
    checkpoints = Checkpoints(str(tmp_path), Storage(), keep=2)
    cursor = cursor_of(4)
    checkpoints.save(arrays_of(4), cursor, FACTS, RECIPE)
    cursor.step = 5  # training goes on; what is being written stays as it was
    assert checkpoints.restore() is None
    may_write.set()
    checkpoints.wait()
    assert threading.current_thread() not in wrote_by
    found = checkpoints.restore()
    assert found is not None
    assert found.cursor.step == 4


def test_checkpoints_live_in_a_bucket_as_well(s3_root: str) -> None:
    checkpoints = Checkpoints(s3_root, Storage(), keep=2)
    save(checkpoints, 2, 4, 6)
    assert Storage().list(f"{s3_root}/checkpoints") == ["step-00000004", "step-00000006"]
    found = checkpoints.restore()
    assert found is not None
    assert found.arrays["model/0000"].tobytes() == arrays_of(6)["model/0000"].tobytes()

"""The record of a run reads like that of an undisturbed one, wherever it lies."""

import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from segtrain.errors import TakenOverError, UserError
from segtrain.storage.files import Storage
from segtrain.training.metrics_log import Record

PANEL = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)


def write(folder: str, *, resumed_step: int = 0, steps: range = range(1, 5)) -> None:
    """A record of these steps, with an epoch's line after every second one."""
    record = Record(folder, Storage(), resumed_step=resumed_step)
    for step in steps:
        record.step(step=step, loss=1 / step)
        if step % 2 == 0:
            values = {"epoch": step // 2, "dice_hard_original": 0.9 + step / 1000, "note": "no scalar"}
            record.epoch(step, values, {"car_01": PANEL})
    record.close()


def lines(data: bytes) -> list[tuple[str, int]]:
    """(kind, step) of the lines of a `metrics.jsonl`."""
    return [(line["kind"], line["step"]) for line in map(json.loads, data.decode().splitlines())]


def events(folder: Path) -> list[tuple[int, str, tf.Tensor]]:
    """(step, tag, value) of everything in TensorBoard's files."""
    paths = sorted((folder / "tensorboard").iterdir())
    found = (event for path in paths for event in tf.compat.v1.train.summary_iterator(str(path)))
    return [(event.step, value.tag, tf.make_ndarray(value.tensor)) for event in found for value in event.summary.value]


UNDISTURBED = [("step", 1), ("step", 2), ("epoch", 2), ("step", 3), ("step", 4), ("epoch", 4)]


def test_steps_and_epochs_are_one_line_each(tmp_path: Path) -> None:
    write(str(tmp_path))
    text = (tmp_path / "metrics.jsonl").read_bytes()
    assert lines(text) == UNDISTURBED
    assert json.loads(text.splitlines()[0]) == {"kind": "step", "step": 1, "loss": 1.0}
    assert json.loads(text.splitlines()[2])["dice_hard_original"] == 0.902


@pytest.mark.parametrize("resumed_step", [0, 1, 2, 3, 4])
def test_lines_beyond_the_resumed_step_are_dropped(tmp_path: Path, resumed_step: int) -> None:
    write(str(tmp_path))
    Record(str(tmp_path), Storage(), resumed_step=resumed_step).close()
    kept = lines((tmp_path / "metrics.jsonl").read_bytes())
    assert kept == [line for line in UNDISTURBED if line[1] <= resumed_step]


@pytest.mark.parametrize(("cut", "resumed_step"), [(1, 3), (7, 3), (20, 3), (1, 4)])
def test_a_resumed_record_reads_like_an_undisturbed_one(tmp_path: Path, cut: int, resumed_step: int) -> None:
    """A kill cuts off the last line, in its middle or before its end of line."""
    write(str(tmp_path))
    path = tmp_path / "metrics.jsonl"
    undisturbed = path.read_bytes()
    path.write_bytes(undisturbed[:-cut])
    write(str(tmp_path), resumed_step=resumed_step, steps=range(resumed_step + 1, 5))
    assert path.read_bytes() == undisturbed


def test_lines_are_in_the_folder_when_flush_returns(tmp_path: Path) -> None:
    record = Record(str(tmp_path), Storage(), resumed_step=0)
    record.step(step=1, loss=1.0)
    record.flush()
    assert lines((tmp_path / "metrics.jsonl").read_bytes()) == [("step", 1)]
    record.close()


def test_tensorboard_holds_each_epochs_numbers_and_panels(tmp_path: Path) -> None:
    write(str(tmp_path))
    found = events(tmp_path)
    scalars = {(step, tag): float(value) for step, tag, value in found if value.ndim == 0}
    assert scalars == pytest.approx(
        {
            (2, "epoch"): 1,
            (2, "dice_hard_original"): 0.902,
            (4, "epoch"): 2,
            (4, "dice_hard_original"): 0.904,
        }
    )
    images = {(step, tag): value for step, tag, value in found if value.ndim}
    assert images.keys() == {(2, "panels/car_01"), (4, "panels/car_01")}
    width, height, png = images[2, "panels/car_01"]
    assert (int(width), int(height)) == (8, 6)
    np.testing.assert_array_equal(tf.io.decode_png(png).numpy(), PANEL)


def test_a_bucket_gets_a_copy_at_every_flush_of_what_has_grown(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spool"))
    (tmp_path / "spool").mkdir()
    uploads: list[str] = []

    def noted(write: Callable[..., None]) -> Callable[..., None]:
        def note_and_write(self: Storage, url: str, *what: Any) -> None:
            if url.startswith(s3_root):
                uploads.append(url.removeprefix(s3_root))
            write(self, url, *what)

        return note_and_write

    for method in ("write_file", "write_if_version"):
        monkeypatch.setattr(Storage, method, noted(getattr(Storage, method)))
    record = Record(s3_root, Storage(), resumed_step=0)
    record.epoch(2, {"dice": 0.5}, {"car_01": PANEL})
    assert lines(Storage().read_bytes(f"{s3_root}/metrics.jsonl")) == [("epoch", 2)]
    assert len(uploads) == 2
    record.step(step=3, loss=1.0)
    record.flush()
    assert lines(Storage().read_bytes(f"{s3_root}/metrics.jsonl")) == [("epoch", 2), ("step", 3)]
    assert uploads[2:] == ["/metrics.jsonl"]
    record.close()
    assert list((tmp_path / "spool").iterdir()) == []
    _copy_events(s3_root, tmp_path)
    assert {tag for _, tag, _ in events(tmp_path)} == {"dice", "panels/car_01"}


def test_a_record_in_a_bucket_goes_on_after_the_resumed_step(s3_root: str, tmp_path: Path) -> None:
    write(s3_root)
    write(s3_root, resumed_step=2, steps=range(3, 5))
    assert lines(Storage().read_bytes(f"{s3_root}/metrics.jsonl")) == UNDISTURBED
    _copy_events(s3_root, tmp_path)
    assert {(step, tag) for step, tag, _ in events(tmp_path)} >= {(2, "dice_hard_original"), (4, "dice_hard_original")}


def _copy_events(root: str, folder: Path) -> None:
    (folder / "tensorboard").mkdir()
    for name in Storage().list(f"{root}/tensorboard"):
        (folder / "tensorboard" / name).write_bytes(Storage().read_bytes(f"{root}/tensorboard/{name}"))


@pytest.mark.parametrize("remote", [False, True])
def test_a_record_in_a_folder_that_another_process_has_taken_over_is_left_alone(
    tmp_path: Path, request: pytest.FixtureRequest, remote: bool
) -> None:
    """Neither by lines that an older chief still holds nor, in a bucket, by its whole copy when it ends."""
    folder, taken = str(request.getfixturevalue("s3_root")) if remote else str(tmp_path / "run"), []

    def owned() -> None:
        if taken:
            raise TakenOverError("it is trained by another process by now")

    older = Record(folder, Storage(), resumed_step=0, owned=owned)
    older.step(step=1, loss=1.0)
    older.flush()
    taken.append(1)
    newer = Record(folder, Storage(), resumed_step=1)
    newer.step(step=2, loss=2.0)
    newer.close()
    for step in range(2, 200):  # more than a buffer holds
        older.step(step=step, loss=1.0)
    if remote:
        with pytest.raises(TakenOverError):
            older.close()
    else:
        older.close()
    assert lines(Storage().read_bytes(f"{folder}/metrics.jsonl")) == [("step", 1), ("step", 2)]
    with pytest.raises(TakenOverError):  # nor by one that was held up as it began
        Record(folder, Storage(), resumed_step=0, owned=owned) if not remote else owned()
    assert lines(Storage().read_bytes(f"{folder}/metrics.jsonl")) == [("step", 1), ("step", 2)]


def test_a_damaged_line_is_dropped_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(str(tmp_path))
    path = tmp_path / "metrics.jsonl"
    sound = path.read_bytes()
    path.write_bytes(b"[" * 100_000 + b"\nnull\n" + sound)
    with caplog.at_level(logging.WARNING):
        write(str(tmp_path), resumed_step=4, steps=range(0))
    assert f"{tmp_path}/metrics.jsonl: 2 lines are damaged and dropped" in caplog.text
    assert path.read_bytes().startswith(sound[: sound.rindex(b'{"kind": "epoch"')])


def test_a_file_in_the_place_of_tensorboards_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_bytes(b"")
    with pytest.raises(UserError, match=r"/tensorboard is a file, where TensorBoard's folder belongs; move it away"):
        Record(str(tmp_path), Storage(), resumed_step=0)


def test_what_cannot_be_uploaded_is_an_error_and_not_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("the bucket is gone")

    monkeypatch.setattr(Storage, "read_if_there", lambda self, url: b"")
    record = Record("s3://bucket/run", Storage(), resumed_step=0)
    for method in ("write_file", "write_if_version", "read_versioned"):
        monkeypatch.setattr(Storage, method, refuse)
    record.step(step=1, loss=1.0)
    with pytest.raises(OSError, match="gone"):
        record.flush()
    with pytest.raises(OSError, match="gone"):
        record.close()

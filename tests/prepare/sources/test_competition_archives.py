"""Unpacking archives that are there already: neither a server nor a key is needed, nor looked for."""

import contextlib
import io
import os
import random
import zipfile
from pathlib import Path

import pytest

from segtrain.config import KaggleSource, StorageConfig
from segtrain.errors import StorageError, UserError
from segtrain.kaggle.client import _forget_odd_marker
from segtrain.prepare.sources.competition import fetch
from tests.support.kaggle_state import zipped

MASKS = {f"train_masks/{number}_01_mask.gif": random.Random(number).randbytes(300) + bytes(700) for number in range(3)}


def unpack(root: Path, archive: bytes) -> dict[str, bytes]:
    """Path -> content of what `fetch` makes of an archive."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "train_masks.zip").write_bytes(archive)
    fetch(KaggleSource(path=str(root), files=("train_masks.zip",)), StorageConfig(), 5.0)
    return unpacked(root)


def unpacked(root: Path) -> dict[str, bytes]:
    paths = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths if path.suffix != ".zip"}


def test_macos_litter_is_left_out(tmp_path: Path) -> None:
    assert (
        unpack(
            tmp_path,
            zipped({**MASKS, "__MACOSX/train_masks/._0_01_mask.gif": b"litter", "train_masks/.DS_Store": b"litter"}),
        )
        == MASKS
    )


def test_no_damage_is_unpacked_or_passed_over(tmp_path: Path) -> None:
    whole, rng = zipped(MASKS), random.Random(0)
    for number in range(600):
        damaged, at = bytearray(whole), rng.randrange(len(whole))
        if number % 5:
            damaged[at] ^= 1 << rng.randrange(8)
        else:
            del damaged[at:]
        root = tmp_path / str(number)
        with contextlib.suppress(StorageError, UserError):
            assert unpack(root, bytes(damaged)) == MASKS, at  # a bit that carries no meaning
        assert unpacked(root).items() <= MASKS.items(), at


@pytest.mark.parametrize(
    "archive", [b"", b"<html>", zipped(MASKS)[:-1], zipped(MASKS)[1:]], ids=["empty", "page", "cut", "late"]
)
def test_what_is_no_archive_is_removed(tmp_path: Path, archive: bytes) -> None:
    with pytest.raises(StorageError, match=r"train_masks\.zip is damaged \(.*\) and was removed; run the same command"):
        unpack(tmp_path, archive)
    assert not (tmp_path / "train_masks.zip").exists()


def test_unpacking_goes_on_where_it_was(tmp_path: Path) -> None:
    unpack(tmp_path, zipped(MASKS))
    first, second, _ = (tmp_path / name for name in MASKS)
    os.utime(first, (1, 1))
    second.rename(second.with_name(f".{second.name}.part"))  # as a kill leaves it
    assert unpack(tmp_path, zipped(MASKS)) == MASKS
    assert first.stat().st_mtime == 1
    assert not list((tmp_path / "train_masks").glob(".*"))


@pytest.mark.parametrize("name", ["train.zip", "Train_Masks.ZIP", "train.zip.part", "x.kaggle-partial", ".kaggle-lock"])
def test_an_archive_writes_nothing_over_what_the_job_keeps(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="over what this job keeps"):
        unpack(tmp_path / "raw", zipped({**MASKS, name: b"out"}))
    assert unpacked(tmp_path / "raw") == {}


@pytest.mark.parametrize("name", [".kaggle-competition", "train_masks/.0_01_mask.gif.part", "train/a\nb.jpg"])
def test_hidden_files_and_odd_names_in_an_archive_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"over what this job keeps .* or under a name that no picture has"):
        unpack(tmp_path / "raw", zipped({**MASKS, name: b"out"}))
    assert (tmp_path / "raw/.kaggle-competition").read_text() == "carvana-image-masking-challenge\n"


def test_an_archive_that_unpacks_to_far_more_than_it_is_is_not_unpacked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'train/a\.jpg' has \d+ bytes and would unpack to 9000000, over 200 times"):
        unpack(tmp_path, zipped({**MASKS, "train/a.jpg": bytes(9_000_000)}))
    assert unpacked(tmp_path) == {}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_that_holds_a_file_twice_is_damaged(tmp_path: Path) -> None:
    buffer = io.BytesIO(zipped(MASKS))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(next(iter(MASKS)), b"another")
    with pytest.raises(StorageError, match="twice"):
        unpack(tmp_path, buffer.getvalue())
    with pytest.raises(StorageError, match="holds 'train_masks' as a file and as a folder"):
        unpack(tmp_path, zipped({**MASKS, "train_masks": b"a file"}))


@pytest.mark.parametrize("text", ["[" * 100_000, "null", "?", '{"validator": 1}' + " " * 5000])
def test_an_odd_marker_of_a_part_is_forgotten(tmp_path: Path, text: str) -> None:
    marker = tmp_path / "a.zip.part.kaggle-partial"
    marker.write_text(text)
    _forget_odd_marker(marker)
    assert not marker.exists()
    marker.write_text('{"validator": "etag", "size": 3}')
    _forget_odd_marker(marker)
    assert marker.exists()


@pytest.mark.parametrize("name", [".", "../out.jpg", "/out.jpg", "train/../../out.jpg", "..\\out.jpg"])
def test_an_archive_writes_nothing_outside_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="outside of"):
        unpack(tmp_path / "raw", zipped({**MASKS, name: b"out"}))
    assert not list(tmp_path.rglob("*out.jpg"))
    assert not Path("/out.jpg").exists()

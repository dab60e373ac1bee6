"""What preparing says and does with pictures, masks and names that nobody should train on."""

import csv
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtrain.config import Recipe, StorageConfig, override
from segtrain.dataset.data_set import read_data_set
from segtrain.dataset.manifest import Manifest, read_index
from segtrain.errors import UserError
from segtrain.launch.workload import workload_of
from segtrain.prepare.prepare_set import prepare
from segtrain.storage.files import Storage
from tests.support.odd_images import bmp, png
from tests.support.small_sources import save_pair

SIZE = (12, 16)


def draw(root: Path, empty: int = 0, count: int = 8) -> Path:
    """Pictures of noise with a box as the mask; the first `empty` masks are black."""
    for number in range(count):
        mask = np.zeros(SIZE, np.uint8)
        mask[2:9, 3:13] = 255 * (number >= empty)
        pixels = np.random.default_rng(number).integers(0, 256, (*SIZE, 3), np.uint8)
        save_pair(root, f"p{number}", pixels, mask)
    return root


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return draw(tmp_path / "source")


def made(source: Path, *overrides: str) -> Manifest:
    settings = [f"source.path={source}", "prepare.folds=2", "prepare.min_row_groups=1", *overrides]
    return prepare(override(Recipe(), settings), str(source.parent / "set"), parallel=False)


def cautions_of(root: str) -> tuple[str, ...]:
    """What a run on the data set is told before it starts."""
    recipe = override(Recipe(), [f"data.root={root}"])
    return workload_of(recipe, read_data_set(Storage(), recipe.data)).cautions


def rejected(source: Path) -> dict[str, str]:
    text = (source.parent / "set" / "rejected.csv").read_text()
    return {row["id"]: row["reason"] for row in csv.DictReader(text.splitlines())}


def test_a_group_with_a_control_character_is_refused(source: Path) -> None:
    rows = "".join(f"p{number},{'a' if number else 'a' + chr(0)}\n" for number in range(8))
    (source / "groups.csv").write_text(f"id,patient\n{rows}")
    grouped = ["source.group_csv=groups.csv", "source.group_column=patient"]
    with pytest.raises(UserError, match=r"its group 'a\\x00' has a control character"):
        made(source, *grouped)


def test_a_fold_most_of_whose_masks_are_black_is_named(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        Image.new("L", SIZE[::-1]).save(source / f"masks/p{number}.png")
    made(source, "source.group_run=4")
    assert sum("masks have no object; its scores say little" in message for message in caplog.messages) == 1


@pytest.mark.parametrize(
    ("empty", "words"), [(8, "all 8 masks have no object"), (2, "2 of 8 masks have no object (p0, p1)")]
)
def test_black_masks_are_warned_of_when_preparing_and_before_training(
    empty: int, words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "segtrain"):
        made(draw(tmp_path / "source", empty))
    lines = cautions_of(str(tmp_path / "set"))
    assert words in caplog.messages[0]
    assert words in lines[0]


def test_a_set_of_sound_masks_is_warned_of_nothing(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "segtrain"):
        made(source)
    assert caplog.messages == []
    assert cautions_of(str(tmp_path / "set")) == ()


def test_images_that_exif_turns_upside_down_are_named(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    tags = Image.Exif()
    tags[0x0112] = 3
    Image.open(source / "images/p3.png").save(source / "images/p3.png", exif=tags)
    with caplog.at_level(logging.WARNING, "segtrain"):
        made(source)
    assert "EXIF mirrors 1 images or turns them upside down (p3)" in caplog.text


def test_what_training_cannot_read_is_listed_and_named_with_its_reason(source: Path) -> None:
    red_first = bmp(16, 12, 32, compression=3, order=(0xFF000000, 0xFF0000, 0xFF00))
    for number, data in enumerate([bmp(16, 12, 16), bmp(16, 12, header=12), red_first]):
        (source / f"images/p{number}.png").unlink()
        (source / f"images/p{number}.bmp").write_bytes(data)
    (source / "masks/p3.png").write_bytes(png(16, 12, depth=16, rows=(b"\0" + bytes(95) + b"\1") * 12))
    with pytest.raises(UserError, match=r"4 bad pairs .*p0\.bmp: image is a BMP with 16 bits a pixel"):
        made(source)
    reasons = rejected(source)
    assert sorted(reasons) == ["p0", "p1", "p2", "p3"]
    assert "16-bit PNG (RGB)" in reasons["p3"]
    assert made(source, "prepare.allow_rejected=4").pictures == 4


def test_a_picture_of_more_pixels_than_are_allowed_is_refused_by_its_header(source: Path) -> None:
    (source / "images/p0.png").write_bytes(png(15_000, 15_000, 0, rows=b""))
    with pytest.raises(UserError, match=r"1 bad pair .*p0\.png: image is 15000x15000, more than 100,000 pixels"):
        made(source, "prepare.max_pixels=100000")
    (source / "images/p0.png").write_bytes(png(20_000, 20_000, 0, rows=b""))
    with pytest.raises(UserError, match=r"image is 20000x20000, more than 268,435,456 pixels"):
        made(source)


@pytest.mark.parametrize("name", ["a\nb", "back\\slash", "x" * 229, "é" * 101, os.fsdecode(b"caf\xe9")])
def test_a_name_that_cannot_be_an_id_is_a_bad_pair_and_its_line_can_be_printed(source: Path, name: str) -> None:
    for folder in ("images", "masks"):
        (source / folder / "p0.png").rename(source / folder / f"{name}.png")
    with pytest.raises(UserError, match=r"1 bad pair .*the id, which is its name, .*rename image and mask") as caught:
        made(source)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()
    assert len(rejected(source)) == 1


def test_names_that_differ_in_case_alone_are_two_pictures(source: Path) -> None:
    for folder in ("images", "masks"):
        (source / folder / "p0.png").rename(source / folder / "P1.png")
    manifest = made(source)
    ids = read_index(Storage(), str(source.parent / "set"), manifest)["id"].to_pylist()
    assert {"p1", "P1"} <= set(ids)


def test_a_pipe_among_the_pictures_is_refused_and_not_waited_for(source: Path) -> None:
    (source / "images/p0.png").unlink()
    os.mkfifo(source / "images/p0.png")
    with pytest.raises(UserError, match=r"images/p0\.png is no file but a pipe"):
        made(source)


def test_ids_that_are_formulas_are_quoted_in_lists_and_taken_as_ids(source: Path) -> None:
    for folder in ("images", "masks"):
        (source / folder / "p0.png").rename(source / folder / "=1+1.png")
        (source / folder / "p1.png").rename(source / folder / "@a.png")
    (source / "masks/@a.png").write_bytes(b"no mask")
    (source / "images/p2.png").write_bytes((source / "images/=1+1.png").read_bytes())
    assert made(source, "prepare.allow_rejected=1").pictures == 7
    assert "'@a," in (source.parent / "set" / "rejected.csv").read_text()
    assert "0,'=1+1,'=1+1" in (source.parent / "set" / "duplicates.csv").read_text()
    (source / "groups.csv").write_text("id,patient\n'=1+1,x\n'@a,x\n" + "".join(f"p{n},{n}\n" for n in range(2, 8)))
    grouped = ["source.group_csv=groups.csv", "source.group_column=patient", "prepare.allow_rejected=1"]
    (source.parent / "set").rename(source.parent / "first")
    index = read_index(Storage(StorageConfig()), str(source.parent / "set"), made(source, *grouped))
    assert dict(zip(index["id"].to_pylist(), index["group"].to_pylist(), strict=True))["=1+1"] == "x"

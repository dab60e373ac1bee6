"""Kaggle's layout, with masks from GIFs or from run lengths."""

from pathlib import Path

import pytest

from segtrain.config import CarvanaSource
from segtrain.errors import UserError
from segtrain.prepare.sources.carvana import scan
from segtrain.storage.files import Storage

STEMS = ["00087a6bd4dc_01", "00087a6bd4dc_02", "02159e548029_01"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("train", "train_masks"):
        (tmp_path / folder).mkdir()
    for stem in STEMS:
        (tmp_path / "train" / f"{stem}.jpg").touch()
        (tmp_path / "train_masks" / f"{stem}_mask.gif").touch()
    rows = "".join(f"{stem}.jpg,1 {number} 9 1\n" for number, stem in enumerate(STEMS, 1))
    (tmp_path / "train_masks.csv").write_text("img,rle_mask\n" + rows)
    return tmp_path


def test_the_car_is_the_group(root: Path) -> None:
    pictures = scan(CarvanaSource(path=str(root)), Storage())
    assert [(picture.id, picture.group) for picture in pictures] == [(stem, stem[:12]) for stem in STEMS]
    assert pictures[0].mask == str(root / "train_masks/00087a6bd4dc_01_mask.gif")


def test_the_pictures_may_lie_in_another_folder(root: Path) -> None:
    (root / "train").rename(root / "train_hq")
    for masks in ("gif", "csv"):
        pictures = scan(CarvanaSource(path=str(root), images="train_hq", masks=masks), Storage())
        assert [picture.image for picture in pictures] == [str(root / f"train_hq/{stem}.jpg") for stem in STEMS]
    with pytest.raises(UserError, match="train is not there"):
        scan(CarvanaSource(path=str(root)), Storage())


def test_run_lengths_take_the_place_of_gifs(root: Path) -> None:
    pictures = scan(CarvanaSource(path=str(root), masks="csv"), Storage())
    assert [picture.run_lengths for picture in pictures] == ["1 1 9 1", "1 2 9 1", "1 3 9 1"]
    assert pictures[0].mask is None


def test_run_lengths_may_be_longer_than_the_csv_modules_limit(root: Path) -> None:
    long = " ".join(["1 1"] * 60_000)
    (root / "train_masks.csv").write_text("img,rle_mask\n" + "".join(f"{stem}.jpg,{long}\n" for stem in STEMS))
    assert scan(CarvanaSource(path=str(root), masks="csv"), Storage())[0].run_lengths == long


def test_an_empty_cell_is_an_empty_mask(root: Path) -> None:
    (root / "train_masks.csv").write_text("img,rle_mask\n" + "".join(f"{stem}.jpg,\n" for stem in STEMS))
    assert scan(CarvanaSource(path=str(root), masks="csv"), Storage())[0].run_lengths == ""


def test_each_mistake_is_named(root: Path) -> None:
    (root / "train_masks" / f"{STEMS[0]}_mask.gif").rename(root / "train_masks" / f"{STEMS[0]}.gif")
    with pytest.raises(UserError, match=r"00087a6bd4dc_01\.gif does not end in _mask\.gif"):
        scan(CarvanaSource(path=str(root)), Storage())
    (root / "train_masks" / f"{STEMS[0]}.gif").unlink()
    with pytest.raises(UserError, match=r"train/00087a6bd4dc_01\.jpg has no mask"):
        scan(CarvanaSource(path=str(root)), Storage())
    (root / "train" / "nocar.jpg").touch()
    with pytest.raises(UserError, match=r"nocar\.jpg is not named <car>_<view>"):
        scan(CarvanaSource(path=str(root)), Storage())
    with pytest.raises(UserError, match="train is not there"):
        scan(CarvanaSource(path=str(root / "elsewhere")), Storage())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"train_masks\.csv is not there; .* source\.masks=gif"),
        ("file,mask\n", "has no column 'img'; its columns are file, mask"),
        (f"img,rle_mask\n{STEMS[0]}.jpg,1 1\n{STEMS[1]}.jpg\n", "has no rle_mask in line 3; unpack it again"),
        (f'img,rle_mask\n{STEMS[0]}.jpg,"1 1\n', "no CSV in line|has no mask"),
        ("img,rle_mask\n" + "1" * 2**27 + "1,1\n", "no CSV in line 2: field larger than field limit"),
        ("img,rle_mask\na_1.jpg,1 1\na_1.jpg,1 2\n", "two rows with the id 'a_1'"),
        (f"img,rle_mask\n{STEMS[0]}.jpg,1 1\n", r"00087a6bd4dc_02\.jpg has no mask \(and 1 more like it\)"),
        ("\xff\xfe", "is not UTF-8"),
    ],
)
def test_each_mistake_in_the_csv_is_named(root: Path, text: str | None, message: str) -> None:
    (root / "train_masks.csv").unlink()
    if text is not None:
        (root / "train_masks.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        scan(CarvanaSource(path=str(root), masks="csv"), Storage())

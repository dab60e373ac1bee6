"""The folder source: pairs by stem, groups in four ways, and each mistake named."""

from collections.abc import Callable
from pathlib import Path

import pytest

from segtrain.config import FolderSource
from segtrain.errors import UserError
from segtrain.prepare.sources import Picture
from segtrain.prepare.sources.folder import scan
from segtrain.storage.files import Storage

STEMS = ["car1_a", "car1_b", "car2_a", "car2_b", "car3_a"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for stem in STEMS:
        touch(tmp_path / "images" / f"{stem}.jpg")
        touch(tmp_path / "masks" / f"{stem}.png")
    return tmp_path


def touch(path: Path, text: str = "") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def groups(root: Path, **settings: object) -> list[str]:
    return [picture.group for picture in scan(FolderSource(path=str(root), **settings), Storage())]


def test_pictures_are_matched_by_stem_and_each_is_its_own_group(root: Path) -> None:
    pictures = scan(FolderSource(path=str(root)), Storage())
    assert [picture.id for picture in pictures] == STEMS
    assert pictures[0] == Picture(
        "car1_a", "car1_a", str(root / "images/car1_a.jpg"), mask=str(root / "masks/car1_a.png")
    )


def test_other_folder_names_and_upper_case_endings_do(root: Path) -> None:
    touch(root / "photos" / "x.JPG")
    touch(root / "labels" / "x.Gif")
    pictures = scan(FolderSource(path=str(root), images="photos", masks="labels"), Storage())
    assert [picture.id for picture in pictures] == ["x"]


def test_hidden_files_are_passed_over(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(root / "images" / ".DS_Store")
    touch(root / "images" / "._car1_a.jpg")
    assert len(groups(root)) == 5
    assert caplog.messages == []


def test_hidden_files_that_may_be_pictures_are_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(root / "images" / ".hid.jpg")
    touch(root / "images" / "....png")
    touch(root / "masks" / ".hid.png")
    assert len(groups(root)) == 5
    assert [message.split(": a name")[0] for message in caplog.messages] == [
        f"warning: passed over {root}/images/....png and 1 more",
        f"warning: passed over {root}/masks/.hid.png",
    ]


def test_a_regular_expression_names_the_group(root: Path) -> None:
    assert groups(root, group_regex=r"^(car\d)_") == ["car1", "car1", "car2", "car2", "car3"]
    assert groups(root, group_regex=r"\d") == ["1", "1", "2", "2", "3"]
    assert groups(root, group_regex=r"^car1|xyz()") == ["", "", "", "", ""]


def test_a_csv_column_names_the_group(root: Path) -> None:
    rows = "".join(f"{stem},{stem[-1]}\n" for stem in STEMS)
    touch(root / "groups.csv", "\ufeffid,view\n" + rows)
    assert groups(root, group_csv="groups.csv", group_column="view") == ["a", "b", "a", "b", "a"]


def test_neighbouring_stems_form_runs(root: Path) -> None:
    assert groups(root, group_run=2) == ["car1_a", "car1_a", "car2_a", "car2_a", "car3_a"]


def rename(folder: str, old: str, new: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        (path,) = (root / folder).glob(f"{old}.*")
        path.rename(path.with_stem(new))

    return change


def test_a_csv_of_an_old_spreadsheet_and_one_of_long_fields_are_read(root: Path) -> None:
    rows = "".join(f"{stem},{stem[-1]},{'note ' * 40_000}\r" for stem in STEMS)
    touch(root / "groups.csv", "id,view,note\r" + rows)
    assert groups(root, group_csv="groups.csv", group_column="view") == ["a", "b", "a", "b", "a"]
    touch(root / "groups.csv", "id,view\n" + "".join(f"{stem},{stem[-1]}\n" for stem in (*STEMS, STEMS[0])))
    assert groups(root, group_csv="groups.csv", group_column="view") == ["a", "b", "a", "b", "a"]


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda root: touch(root / "images" / "lonely.jpg"), {}, r"images/lonely\.jpg has no mask; add the mask"),
        (lambda root: touch(root / "masks" / "lonely.png"), {}, r"masks/lonely\.png has no image; add the image"),
        (lambda root: touch(root / "images" / "car1_a.png"), {}, r"car1_a\.png have the same id 'car1_a'"),
        (lambda root: touch(root / "images" / "notes.txt"), {}, r"notes\.txt is none of jpg, jpeg, png, bmp"),
        (lambda root: None, {"images": "nowhere"}, r"nowhere is not there; set source\.path"),
        (lambda root: (root / "void").mkdir(), {"masks": "void"}, "void is empty"),
        (lambda root: None, {"path": None}, r"source\.path is not set"),
        (lambda root: None, {"group_regex": "("}, r"source\.group_regex: '\(' is not a regular expression"),
        (lambda root: None, {"group_csv": "g.csv", "group_column": "c"}, r"source\.group_csv: .*g\.csv is not there"),
        (
            lambda root: touch(root / "g.csv", "id,b\n"),
            {"group_csv": "g.csv", "group_column": "c"},
            "has no column 'c'; its columns are id, b",
        ),
        (
            lambda root: touch(root / "g.csv", "id,c\ncar1_a,x\n"),
            {"group_csv": "g.csv", "group_column": "c"},
            r"has no row for 'car1_b' \(and 3 more pictures\)",
        ),
        (
            lambda root: touch(root / "g.csv", "id,c\ncar1_a,x\ncar1_b,y\ncar1_a,y\n"),
            {"group_csv": "g.csv", "group_column": "c"},
            r"has two groups for 'car1_a' \(lines 2 and 4\); keep one",
        ),
        (
            lambda root: touch(root / "g.csv", "id,c,c\n"),
            {"group_csv": "g.csv", "group_column": "c"},
            "has the column 'c' 2 times",
        ),
        (
            lambda root: touch(root / "g.csv", "id;c\n"),
            {"group_csv": "g.csv", "group_column": "c"},
            "its columns are id;c; semicolons seem to separate its columns: save it with commas",
        ),
        (
            lambda root: touch(root / "g.csv", 'id,c\ncar1_a,x\ncar1_b,"y\n'),
            {"group_csv": "g.csv", "group_column": "c"},
            r"is no CSV in line 3: unexpected end of data",
        ),
        (lambda root: (root / "images/sub").mkdir(), {}, r"images/sub is a folder; move its files into .*images"),
        (
            rename("masks", "car1_a", "car1_a_mask"),
            {},
            r"car1_a\.jpg has no mask; .* rename .*_mask\.png to car1_a\.png",
        ),
        (rename("masks", "car1_a", "car1_a-segmentation"), {}, r"rename .*car1_a-segmentation\.png to car1_a\.png"),
        (rename("masks", "car1_a", "CAR1_A"), {}, "has the same name in another case: rename one"),
        (
            lambda root: (touch(root / "images/caf\u00e9.jpg"), touch(root / "masks/cafe\u0301.png")),
            {},
            "has the same name in another Unicode form",
        ),
    ],
)
def test_each_mistake_is_named(root: Path, change: object, settings: dict[str, object], message: str) -> None:
    change(root)  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        scan(FolderSource(**({"path": str(root)} | settings)), Storage())


def test_several_images_without_masks_are_counted(root: Path) -> None:
    for number in range(3):
        touch(root / "images" / f"lonely{number}.jpg")
    with pytest.raises(UserError, match=r"lonely0\.jpg has no mask \(and 2 more like it\)"):
        groups(root)

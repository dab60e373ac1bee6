"""Submissions against their samples: order, quoting, masks bit by bit, and what is wrong with parts and samples."""

import csv
import io
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from segtrain import rle
from segtrain.errors import DataError, UserError
from segtrain.prediction.part_files import FETCHED_AT_ONCE, Part, PredictedMask, write_part
from segtrain.prediction.submission import check_sample, write
from segtrain.storage.files import Storage, join

HEIGHT, WIDTH = 30, 41


def picture(number: int) -> str:
    return f"{number:03}.x_{number % 16:02}"


def mask_of(number: int) -> np.ndarray:
    """Empty, full, and noise by turns."""
    if number % 5 < 2:
        return np.full((HEIGHT, WIDTH), number % 5, np.uint8)
    return (np.random.default_rng(number).random((HEIGHT, WIDTH)) < 0.3).astype(np.uint8)


def write_parts(root: str, numbers: Sequence[int], size: int = 2) -> list[str]:
    """Part files of `size` masks each, in this order."""
    urls = []
    for start in range(0, len(numbers), size):
        masks = [
            PredictedMask(picture(number), HEIGHT, WIDTH, rle.encode(mask_of(number)))
            for number in numbers[start : start + size]
        ]
        urls.append(join(root, f"parts/{start:03}.part"))
        write_part(Storage(), urls[-1], Part(masks))
    return urls


def sample_text(numbers: Sequence[int]) -> str:
    return "img,rle_mask\n" + "".join(f"{picture(number)}.jpg,1 1\n" for number in numbers)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Parts of five pictures, 0 to 4, in two files."""
    write_parts(str(tmp_path), [3, 0, 4, 1, 2], 3)
    return tmp_path


def written(root: Path, sample: str | bytes) -> str:
    """The submission for this sample from the parts in `root`."""
    (root / "sample.csv").write_bytes(sample if isinstance(sample, bytes) else sample.encode())
    parts = sorted(str(path) for path in (root / "parts").iterdir())
    write(parts, str(root / "sample.csv"), str(root / "out.csv"), Storage())
    return (root / "out.csv").read_bytes().decode()


def test_every_row_of_the_sample_comes_in_its_order_with_its_mask(tmp_path: Path) -> None:
    numbers = list(range(3 * FETCHED_AT_ONCE))
    order = random.Random(1).sample(numbers, len(numbers))
    parts = write_parts(str(tmp_path), numbers, 1)
    (tmp_path / "sample.csv").write_text(sample_text(order))
    out = tmp_path / "made/out.csv"
    assert write(iter(parts), str(tmp_path / "sample.csv"), str(out), Storage()) == len(numbers)

    assert b"\r" not in out.read_bytes()
    header, *rows = csv.reader(out.read_text().splitlines())
    assert header == ["img", "rle_mask"]
    assert [row[0] for row in rows] == [f"{picture(number)}.jpg" for number in order]
    for number, (_, text) in zip(order, rows, strict=True):
        np.testing.assert_array_equal(rle.decode(text, HEIGHT, WIDTH), mask_of(number))
    assert os.listdir(out.parent) == ["out.csv"]


def test_an_empty_mask_is_an_empty_field_and_a_full_one_is_one_run(root: Path) -> None:
    assert written(root, sample_text([1, 0])) == "img,rle_mask\n001.x_01.jpg,1 1230\n000.x_00.jpg,\n"


def test_pictures_that_the_sample_does_not_name_are_left_out_and_counted(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "segtrain"):
        assert written(root, sample_text([0])).count("\n") == 2
    assert "4 predicted pictures are not in" in caplog.text


@pytest.mark.parametrize(
    "sample",
    [
        b"\xef\xbb\xbfimg,rle_mask\r\n000.x_00.jpg,1 1\r\n",
        b"rle_mask,img\n1 1,000.x_00.jpg\n",
        b"img,rle_mask\n000.x_00.JPG,\n\n",
        b"img,rle_mask\n000.x_00,\n",
    ],
    ids=["windows", "columns-turned", "suffix-in-capitals", "stem"],
)
def test_samples_may_look_a_little_different(root: Path, sample: bytes) -> None:
    name = csv.DictReader(io.StringIO(sample.decode("utf-8-sig"))).__next__()["img"]
    assert written(root, sample) == f"img,rle_mask\n{name},\n"


def test_the_sample_may_be_in_kaggles_archive(root: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("__MACOSX/._sample_submission.csv", b"\0")
        file.writestr("sample_submission.csv", sample_text([0]))
    assert written(root, archive.getvalue()) == "img,rle_mask\n000.x_00.jpg,\n"


def packed(
    data: bytes, *, encrypted: bool = False, size: int | None = None, method: int = zipfile.ZIP_DEFLATED
) -> bytes:
    """An archive of one CSV file, whose directory may say that it is encrypted or of another size."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", method) as file:
        file.writestr("sample_submission.csv", data)
    made = bytearray(archive.getvalue())
    entry = made.index(b"PK\x01\x02")
    if encrypted:
        made[entry + 8] |= 1
        made[6] |= 1
    if size is not None:
        made[entry + 24 : entry + 28] = size.to_bytes(4, "little")
    return bytes(made)


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (lambda: packed(b"a" * 50_000_000), r"says that it unpacks to 48 MiB, more than 200 times its size; unpack it"),
        (lambda: packed(sample_text([0]).encode(), size=2**31), r"says that it unpacks to 2048 MiB, more than 200"),
        (lambda: packed(sample_text([0]).encode(), size=5000), r"does not hold the 5000 bytes that it says; d|no CSV"),
        (lambda: packed(sample_text([0]).encode(), size=5), r"is no CSV file|has the columns"),
        (lambda: packed(sample_text([0]).encode(), encrypted=True), r"is encrypted; unpack it and give the CSV file"),
        (lambda: packed(sample_text([0]).encode())[:-40], r"is no CSV file"),
    ],
    ids=["bomb", "declared", "more", "less", "encrypted", "cut"],
)  # fmt: skip
def test_an_archive_that_cannot_be_trusted_is_refused_before_it_is_unpacked(
    root: Path, archive: Callable[[], bytes], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        written(root, archive())


def test_what_is_wrong_is_found_before_there_is_a_part(tmp_path: Path) -> None:
    sample = tmp_path / "sample.csv"
    sample.write_text(sample_text([0, 1]))
    check_sample(str(sample), [picture(0), picture(1), picture(2)], Storage())
    with pytest.raises(UserError, match=r"names 1 picture of 2 that are not among those to predict \(001\.x_01\.jpg\)"):
        check_sample(str(sample), [picture(0)], Storage())


def test_of_a_part_only_the_pictures_are_taken_that_are_wanted(root: Path) -> None:
    write_parts(str(root / "more"), [3])
    parts = {str(root / "parts/000.part"): {picture(0)}, str(root / "more/parts/000.part"): {picture(3)}}
    (root / "sample.csv").write_text(sample_text([0, 3]))
    assert write(parts, str(root / "sample.csv"), str(root / "out.csv"), Storage(), only=parts) == 2


def test_a_name_with_a_comma_is_quoted(tmp_path: Path) -> None:
    write_part(Storage(), str(tmp_path / "parts/0.part"), Part([PredictedMask('a,"b', 1, 1, "1 1")]))
    text = written(tmp_path, 'img,rle_mask\n"a,""b.jpg",\n')
    assert list(csv.reader(text.splitlines())) == [["img", "rle_mask"], ['a,"b.jpg', "1 1"]]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (sample_text([7, 0, 9]), r"sample\.csv: no mask is predicted for 2 ids of 3 \(007\.x_07\.jpg, 009.x_09.jpg\);"),
        (sample_text(range(5, 5000)), r"for 4995 ids of 4995 \(005\.x_05\.jpg, .*, 009.x_09.jpg, \.\.\.\); predict"),
        (sample_text([1, 0, 1, 1]), r"names 1 picture more than once \(001\.x_01\); give Kaggle's own file"),
        ("img,rle_mask\na.jpg,\na.png,\n", r"names 1 picture more than once \(a\)"),
        ("image,mask\na.jpg,\n", r"has the columns image, mask; a sample_submission\.csv of Carvana has img and rle"),
        ("", r"has the columns \(none\); a sample"),
        ("img,rle_mask\n", r"has no rows; give"),
        ("rle_mask,img\n1 1\n", r"has rows without an id; give"),
        (b"\xff\xfe\x00", r"is no CSV file \(.*\); give"),
        (b"PK\x03\x04 no archive", r"is no CSV file \(.*\); give"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_sample_is_named(root: Path, sample: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        written(root, sample)
    assert sorted(os.listdir(root)) == ["parts", "sample.csv"]


def test_pictures_that_could_not_be_read_are_told_from_those_that_were_not_predicted(root: Path) -> None:
    write_part(Storage(), str(root / "parts/9.part"), Part([], {picture(6): "no JPEG", picture(8): "no JPEG"}))
    with pytest.raises(
        UserError, match=r"for 2 ids of 3 .*; 1 of them could not be read, see unreadable\.csv; predict"
    ):
        written(root, sample_text([0, 5, 6]))


def test_a_picture_in_two_parts_is_refused(root: Path) -> None:
    write_parts(str(root / "more"), [3])
    parts = [str(root / "parts/000.part"), str(root / "more/parts/000.part")]
    (root / "sample.csv").write_text(sample_text([0, 3]))
    with pytest.raises(UserError, match=r"more/parts/000\.part has a mask of id 003\.x_03, of which another part has"):
        write(parts, str(root / "sample.csv"), str(root / "out.csv"), Storage())


def test_a_damaged_or_missing_part_is_named_and_nothing_is_written(root: Path) -> None:
    (root / "sample.csv").write_text(sample_text([0]))
    part = root / "parts/000.part"
    for damage, error in ((lambda: part.write_bytes(part.read_bytes()[:-3]), DataError), (part.unlink, OSError)):
        damage()
        with pytest.raises(error) as caught:
            write([str(part)], str(root / "sample.csv"), str(root / "out.csv"), Storage())
        assert str(part) in str(caught.value)
    assert sorted(os.listdir(root)) == ["parts", "sample.csv"]


def test_a_folder_that_is_none_is_named(root: Path) -> None:
    (root / "sample.csv").write_text(sample_text([0]))
    with pytest.raises(UserError, match=r"sample\.csv is not a folder"):
        write([], str(root / "sample.csv"), str(root / "sample.csv/out.csv"), Storage())


def test_a_full_disk_is_one_message_and_leaves_nothing(root: Path) -> None:
    program = (
        "import resource, signal, sys\n"
        "from segtrain.errors import NoSpaceError\n"
        "from segtrain.prediction.submission import write\n"
        "from segtrain.storage.files import Storage\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"  # a file that may not grow stands in for a full disk
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try:\n"
        "    write(sys.argv[3:], sys.argv[1], sys.argv[2], Storage())\n"
        "except NoSpaceError as error:\n"
        "    print(error)\n"
    )
    (root / "sample.csv").write_text(sample_text([2, 3]))
    parts = [str(path) for path in (root / "parts").iterdir()]
    done = subprocess.run(
        [sys.executable, "-c", program, str(root / "sample.csv"), str(root / "out.csv"), *parts],
        capture_output=True,
        text=True,
    )
    assert f"{root}: File too large; make room for twice the submission's size" in done.stdout, done.stderr
    assert sorted(os.listdir(root)) == ["parts", "sample.csv"]


def test_parts_sample_and_submission_may_be_in_a_bucket(s3_root: str) -> None:
    parts, storage = write_parts(s3_root, [1, 0]), Storage()
    storage.write_bytes(join(s3_root, "sample.csv"), sample_text([0, 1]).encode())
    write(parts, join(s3_root, "sample.csv"), join(s3_root, "out.csv"), storage)
    assert storage.read_bytes(join(s3_root, "out.csv")) == b"img,rle_mask\n000.x_00.jpg,\n001.x_01.jpg,1 1230\n"


def test_memory_does_not_grow_with_the_submission(tmp_path: Path) -> None:
    """The resident peak of a process that writes 100 MB from parts of 1 MB, 16 of which it may hold."""
    text = " ".join(map(str, range(100_000, 110_000)))[:50_000]
    names = [f"{number:05}_01" for number in range(2000)]
    for start in range(0, 2000, 20):
        part = Part([PredictedMask(name, 1280, 1918, text) for name in names[start : start + 20]])
        write_part(Storage(), str(tmp_path / f"{start:05}.part"), part)
    (tmp_path / "sample.csv").write_text("img,rle_mask\n" + "".join(f"{name}.jpg,\n" for name in reversed(names)))
    program = (
        "import pathlib, sys\n"
        "from segtrain.prediction.submission import write\n"
        "from segtrain.storage.files import Storage\n"
        "def peak():\n"  # that of getrusage would be handed on by this process
        "    return int(pathlib.Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
        "before = peak()\n"
        "write(sys.argv[3:], sys.argv[1], sys.argv[2], Storage())\n"
        "print(peak() - before)\n"
    )
    out = tmp_path / "out.csv"
    parts = sorted(map(str, tmp_path.glob("*.part")))
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "sample.csv"), str(out), *parts],
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stat().st_size > 100_000_000
    assert int(done.stdout) < 50 * 1024, done.stdout  # KiB

"""What the check of pictures keeps for a restart, and what it reports."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtrain.dataset.shards import unpack_mask
from segtrain.prepare import checks
from segtrain.prepare.checks import (
    Rejected,
    check_chunk,
    duplicates_across_groups,
    duplicates_csv,
    load_facts,
    rejected_csv,
    save_facts,
)
from segtrain.prepare.pairs import Checked
from segtrain.prepare.sources import Picture
from segtrain.storage.files import Storage

FACTS = Checked("a", 6, 8, 1, 0.25, 100, 1, "digest", 20, 2, 3)


def test_facts_come_back_and_those_of_another_version_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_facts(Storage(), str(tmp_path), [FACTS, replace(FACTS, id="b")])
    save_facts(Storage(), str(tmp_path), [replace(FACTS, id="c")])
    (tmp_path / f"{checks.FACTS_PREFIX}old.json").write_text('[{"id": "d", "height": 3}]')
    with monkeypatch.context() as older:
        older.setattr(checks, "FACTS_PREFIX", "checked-1-")
        save_facts(Storage(), str(tmp_path), [replace(FACTS, id="by other rules")])
    save_facts(Storage(), str(tmp_path), [replace(FACTS, id="of other types", packed_at="x")])  # type: ignore[arg-type]
    for number, text in enumerate(["[" * 100_000, "{}", "null", "[1]", "?"]):
        (tmp_path / f"{checks.FACTS_PREFIX}odd{number}.json").write_text(text)
    assert load_facts(Storage(), str(tmp_path)) == {name: replace(FACTS, id=name) for name in "abc"}
    assert load_facts(Storage(), str(tmp_path / "nowhere")) == {}


def test_a_missing_file_is_a_rejection_and_the_others_go_on(tmp_path: Path) -> None:
    pictures = [Picture(name, "g", str(tmp_path / f"{name}.png"), run_lengths="") for name in ("gone", "broken")]
    (tmp_path / "broken.png").write_bytes(b"?")
    found = check_chunk(Storage(), pictures, {}, str(tmp_path / "kept"))
    assert (found.good, found.bytes) == ([], 1)
    assert not (tmp_path / "kept").exists()
    assert [(one.picture.id, one.reason) for one in found.bad] == [
        ("gone", f"{tmp_path}/gone.png is not there any more"),
        ("broken", "image is none of JPEG, PNG, BMP, or is damaged"),
    ]


def test_the_packed_masks_of_good_pairs_are_kept_where_their_facts_say(tmp_path: Path) -> None:
    pictures = []
    for number in range(4):
        image, mask = tmp_path / f"{number}.png", tmp_path / f"{number}.gif"
        Image.new("RGB", (8, 6)).save(image)
        Image.fromarray(np.eye(6, 8, number, np.uint8) * 255).save(mask)
        pictures.append(Picture(str(number), "g", str(image), mask=str(mask)))
    kept = tmp_path / "kept"
    first = check_chunk(Storage(), pictures[:2], {}, str(kept))
    known = {checked.id: checked for checked in first.good}
    again = check_chunk(Storage(), pictures, known, str(kept))
    assert again.good[:2] == first.good
    assert len(list(kept.iterdir())) == 2
    assert again.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.*"))
    for number, checked in enumerate(again.good):
        packed = (kept / checked.packed_in).read_bytes()[checked.packed_at :][: checked.mask_bytes]
        np.testing.assert_array_equal(unpack_mask(packed, 6, 8), np.eye(6, 8, number))


def test_what_another_writer_has_removed_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_facts(Storage(), str(tmp_path), [FACTS])
    listed = Storage().list(str(tmp_path))
    monkeypatch.setattr(Storage, "list", lambda *_: [f"{checks.FACTS_PREFIX}gone.json", *listed])
    assert load_facts(Storage(), str(tmp_path)) == {"a": FACTS}


def test_duplicates_count_only_across_groups() -> None:
    pictures = [Picture(name, group, name) for name, group in (("a", "1"), ("b", "1"), ("c", "2"), ("d", "3"))]
    good = {name: replace(FACTS, id=name, image_digest=digest) for name, digest in zip("abc", "xxx", strict=True)}
    pairs = [(picture, good[picture.id]) for picture in pictures if picture.id in good]
    assert duplicates_across_groups(pairs[:2]) == []
    (same,) = duplicates_across_groups(pairs)
    assert [picture.id for picture in same] == ["a", "b", "c"]
    assert duplicates_csv([same]) == b"set,id,group\n0,a,1\n0,b,1\n0,c,2\n"


def test_what_was_found_good_and_is_too_large_now_is_judged_again(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    picture = Picture("a", "g", str(tmp_path / "a.png"), run_lengths="")
    (good,) = check_chunk(Storage(), [picture], {}, str(tmp_path / "kept")).good
    found = check_chunk(Storage(), [picture], {"a": good}, str(tmp_path / "kept"), 47)
    assert [one.reason for one in found.bad] == [
        "image is 8x6, more than 47 pixels; raise prepare.max_pixels, or make it smaller"
    ]


def test_no_cell_of_a_list_is_a_formula_and_names_that_are_no_text_are_escaped() -> None:
    bad = [
        Rejected(Picture("=1+1", "g", "@x.jpg", mask="+x.png"), "-", ""),
        Rejected(Picture("\udcff", "g", "\udcff.jpg"), "the id is not UTF-8", ""),
    ]
    assert rejected_csv(bad).decode().splitlines()[1:] == [
        "'=1+1,'@x.jpg,'+x.png,'-",
        "\\udcff,\\udcff.jpg,,the id is not UTF-8",
    ]
    assert duplicates_csv([[Picture("+a", "=g", "a")]]).decode().splitlines()[1:] == ["0,'+a,'=g"]


def test_the_list_of_rejected_pictures_is_sorted_and_quoted() -> None:
    bad = [
        Rejected(Picture("b", "g", "b.jpg", mask="b.png"), "mask has 3 values (0, 1, 2)", ""),
        Rejected(Picture("a", "g", "a.jpg"), "truncated", ""),
    ]
    assert (
        rejected_csv(bad) == b'id,image,mask,reason\na,a.jpg,,truncated\nb,b.jpg,b.png,"mask has 3 values (0, 1, 2)"\n'
    )

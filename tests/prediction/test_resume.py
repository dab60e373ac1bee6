"""What an earlier call has finished counts as long as its pictures are what they were, and no longer."""

import json
import logging
import os
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from PIL import Image

from segtrain.config import Recipe, override
from segtrain.errors import UserError
from segtrain.prediction import ledger
from segtrain.prediction.outputs import MASKS, Outputs, mask_png
from segtrain.prediction.part_files import Part, PredictedMask, Seen, read_part, write_part
from segtrain.prediction.resume import Finished, Finisher
from segtrain.prediction.tasks import Inventory, digest_of, take_inventory
from segtrain.prepare.prepare_set import prepare
from segtrain.storage.files import Storage

STORAGE = Storage()


class Prediction:
    """A folder of pictures and what was made of them; a mask's only pixel says nothing here."""

    def __init__(self, root: Path, *names: str) -> None:
        self.photos, self.dest = root / "photos", root / "masks"
        self.photos.mkdir()
        for name in names:
            (self.photos / name).write_bytes(name.encode())

    def inventory(self) -> Inventory:
        return take_inventory(STORAGE, str(self.photos), None)

    def make(self, *, unreadable: tuple[str, ...] = ()) -> None:
        """Do what is left, as workers do."""
        inventory = self.inventory()
        for task in inventory.tasks(self.tidy().parts):
            seen = {}
            for one in task.subjects:
                seen[one.id] = Seen(one.mark, digest_of(Path(one.url).read_bytes()), one.file)
                if one.id not in unreadable:
                    STORAGE.write_bytes(str(self.dest / MASKS / f"{one.file}.png"), mask_png(np.ones((1, 1))))
            masks = [PredictedMask(id, 1, 1, "1 1") for id in task.ids if id not in unreadable]
            lost = {id: "no picture" for id in task.ids if id in unreadable}
            write_part(STORAGE, ledger.part_url(str(self.dest), task.name), Part(masks, lost, seen))

    def tidy(self, *, skip_unreadable: bool = True) -> Finished:
        return Finisher(STORAGE, Outputs(str(self.dest)), skip_unreadable=skip_unreadable).tidy(self.inventory())

    def parts(self) -> dict[str, list[str]]:
        """Ids of each part file."""
        names = ledger.parts(STORAGE, str(self.dest))
        return {name: read_part(STORAGE, ledger.part_url(str(self.dest), name)).ids for name in names}


@pytest.fixture
def made(tmp_path: Path) -> Prediction:
    """Masks of a, b and c."""
    prediction = Prediction(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    prediction.make()
    assert list(prediction.tidy().parts) == ["a", "b", "c"]
    return prediction


def test_a_replaced_picture_is_done_again_and_named(made: Prediction, caplog: pytest.LogCaptureFixture) -> None:
    times = os.stat(made.photos / "b.jpg")
    (made.photos / "b.jpg").write_bytes(b"other")  # of the same size and with the same time of writing
    os.utime(made.photos / "b.jpg", ns=(times.st_atime_ns, times.st_mtime_ns))
    with caplog.at_level(logging.WARNING, "segtrain"):
        found = made.tidy()
    assert (sorted(found.parts), found.again) == (["a", "c"], ["b"])
    assert caplog.messages == ["1 picture: each changed since it was predicted, and is done again: b"]
    assert list(made.parts().values()) == [["a", "c"]], "no part speaks of a mask that is about to change"
    assert [task.ids for task in made.inventory().tasks(found.parts)] == [("b",)]
    made.make()
    assert sorted(made.tidy().parts) == ["a", "b", "c"]


def test_a_picture_that_was_changed_and_changed_back_is_done_again(made: Prediction) -> None:
    before = (made.photos / "b.jpg").read_bytes()
    (made.photos / "b.jpg").write_bytes(b"other")
    made.make()
    (made.photos / "b.jpg").write_bytes(before)
    assert made.tidy().again == ["b"], "the mask that is there is of the other one"


def test_a_picture_that_was_only_touched_or_copied_is_not_done_again(made: Prediction) -> None:
    for path in made.photos.iterdir():
        os.utime(path)
    read: list[str] = []
    found = made.tidy()
    assert (sorted(found.parts), found.again, read) == (["a", "b", "c"], [], [])
    (part,) = made.parts()
    marks = {id: one.mark for id, one in made.inventory().subjects.items()}
    seen = read_part(STORAGE, ledger.part_url(str(made.dest), part)).seen
    assert {id: one.mark for id, one in seen.items()} == marks, "so that the next call need not read it"


def test_new_pictures_are_done_and_those_that_went_keep_their_masks_and_are_named(
    made: Prediction, caplog: pytest.LogCaptureFixture
) -> None:
    (made.photos / "a.jpg").unlink()
    (made.photos / "d.jpg").write_bytes(b"d")
    with caplog.at_level(logging.WARNING, "segtrain"):
        found = made.tidy()
    assert (sorted(found.parts), found.gone, found.again) == (["b", "c"], ["a"], [])
    assert caplog.messages == [
        f"1 picture: each is no longer among the pictures; what was made of it stays in {made.dest}: a"
    ]
    assert [task.ids for task in made.inventory().tasks(found.parts)] == [("d",)]
    assert (made.dest / MASKS / "a.png").exists()


def test_masks_of_other_pictures_alone_are_refused(made: Prediction) -> None:
    before = made.parts()
    for path in made.photos.iterdir():
        path.rename(path.with_name(f"other-{path.name}"))
    with pytest.raises(UserError, match=r"masks holds masks of other pictures \(a, b, c\) and of none of these; give"):
        made.tidy()
    assert made.parts() == before


def test_a_mask_that_was_deleted_is_made_again(made: Prediction, caplog: pytest.LogCaptureFixture) -> None:
    (made.dest / MASKS / "c.png").unlink()
    with caplog.at_level(logging.WARNING, "segtrain"):
        assert sorted(made.tidy().parts) == ["a", "b"]
    assert caplog.messages == ["1 picture: each is not complete there, and is done again: c"]


def test_what_was_left_out_is_tried_again_once_it_may_not_be_left_out_any_more(tmp_path: Path) -> None:
    prediction = Prediction(tmp_path, "a.jpg", "b.jpg")
    prediction.make(unreadable=("b",))
    assert prediction.tidy().unreadable == {"b": "no picture"}
    found = prediction.tidy(skip_unreadable=False)
    assert (list(found.parts), found.incomplete, found.unreadable) == (["a"], ["b"], {})


def test_a_damaged_part_is_named_and_its_pictures_are_done_again(
    made: Prediction, caplog: pytest.LogCaptureFixture
) -> None:
    (part,) = (made.dest / "parts").glob("*.part")
    part.write_bytes(part.read_bytes()[:-2])
    with caplog.at_level(logging.WARNING, "segtrain"):
        assert made.tidy().parts == {}
    assert caplog.messages == [f"{part} is damaged; its pictures are predicted again"]
    assert made.parts() == {}
    part.write_bytes(b"segtrain part, version 7, crc32c 00000000\n")
    with pytest.raises(UserError, match=r"is of format version 7; this segtrain reads versions 1 to 2; use the segtr"):
        made.tidy()


def test_a_picture_in_two_parts_counts_once(made: Prediction) -> None:
    (name,) = made.parts()
    url = ledger.part_url(str(made.dest), "zz")
    write_part(STORAGE, url, read_part(STORAGE, ledger.part_url(str(made.dest), name)).without({"a"}))
    assert set(made.tidy().parts.values()) == {name}
    assert list(made.parts()) == [name]


def test_a_new_picture_may_take_the_name_of_an_older_ones_files(tmp_path: Path) -> None:
    prediction = Prediction(tmp_path, "car.jpg")
    prediction.make()
    (prediction.photos / "CAR.jpg").write_bytes(b"CAR")  # sorted before the other, so this one is `CAR.png`
    found = prediction.tidy()
    files = {id: one.file for id, one in prediction.inventory().subjects.items()}
    assert files["CAR"] == "CAR"
    assert files["car"] != "car"
    assert (found.parts, found.again) == ({}, ["car"])


class TestOlderPredictions:
    """Of format 1, whose parts do not say what the pictures were."""

    @pytest.fixture
    def data_root(self, tmp_path: Path) -> str:
        for kind in ("images", "masks"):
            (tmp_path / "raw" / kind).mkdir(parents=True)
            for number in range(4):
                picture = Image.fromarray(np.full((8, 8), 255 * (number % 2), np.uint8))
                picture.save(tmp_path / "raw" / kind / f"{number}.png")
        settings = [f"source.path={tmp_path / 'raw'}", "prepare.folds=2", "prepare.min_row_groups=4"]
        prepare(override(Recipe(), settings), str(tmp_path / "set"), parallel=False)
        return str(tmp_path / "set")

    def begin(self, dest: Path, name: str, *ids: str) -> tuple[Finisher, bytes]:
        """One part of the older format, with its masks, and its bytes."""
        for id in ids:
            STORAGE.write_bytes(str(dest / MASKS / f"{id}.png"), mask_png(np.ones((8, 8))))
        body = json.dumps({"masks": [[id, 8, 8, 4] for id in ids], "unreadable": {}}).encode() + b"\n1 64" * len(ids)
        body += b"\n"
        data = b"segtrain part, version 1, crc32c %08x\n" % google_crc32c.value(body) + body
        STORAGE.write_bytes(ledger.part_url(str(dest), name), data)
        return Finisher(STORAGE, Outputs(str(dest)), skip_unreadable=False), data

    def test_of_the_same_data_set_they_go_on_as_they_are(self, data_root: str, tmp_path: Path) -> None:
        inventory = take_inventory(STORAGE, data_root, None)
        assert inventory.manifest is not None
        (first, *_) = inventory.tasks()
        name = "shard-00000-row-group-00000"
        finisher, data = self.begin(tmp_path / "out", name, *first.ids)
        found = finisher.tidy(inventory, inventory.manifest.fingerprint)
        assert found.parts == dict.fromkeys(first.ids, name)
        assert len(inventory.tasks(found.parts)) == len(inventory.tasks()) - 1
        assert STORAGE.read_bytes(ledger.part_url(str(tmp_path / "out"), name)) == data
        assert finisher.tidy(inventory, "0123").unknown == list(first.ids), "the set has become another one"

    def test_elsewhere_all_is_done_again_and_they_say_so(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        prediction = Prediction(tmp_path, "a.jpg", "b.jpg")
        self.begin(prediction.dest, "pictures-0000000", "a")
        with caplog.at_level(logging.WARNING, "segtrain"):
            found = prediction.tidy()
        assert (found.parts, found.unknown) == ({}, ["a"])
        assert caplog.messages == [
            "1 picture: each was predicted by an older segtrain, which did not note its content, and is done again: a"
        ]
        assert prediction.parts() == {}

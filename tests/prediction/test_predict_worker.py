"""What one process of a prediction makes of its tasks: a real network, no Ray."""

import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtrain import rle
from segtrain.config import Recipe, UNetConfig, override
from segtrain.errors import NoSpaceError, UserError
from segtrain.inference.predictor import Predictor
from segtrain.inference.stored_networks import read_networks
from segtrain.models import build_model
from segtrain.prediction import ledger
from segtrain.prediction.part_files import Part, read_part
from segtrain.prediction.predict_worker import PredictionWorker
from segtrain.prediction.tasks import Task, take_inventory
from segtrain.prepare.prepare_set import prepare
from segtrain.storage.files import Storage, join
from segtrain.storage.ids import file_names
from tests.support.networks import load_members, probability_of

HEIGHT, WIDTH = 20, 28
IDS = [f"{number:02d}" for number in range(17)]


def write_pictures(folder: Path, names: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network that has learnt nothing, whose threshold is the middle of what it says, so that masks are mixed."""
    path = tmp_path_factory.mktemp("model") / "model.keras"
    build_model(UNetConfig(filters=2, depth=1, convolutions=1), seed=1).save(path)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """17 pictures: one more than a task has."""
    return write_pictures(tmp_path / "photos", [f"{id}.png" for id in IDS])


class Run:
    """Workers and what they leave in `dest`."""

    def __init__(self, model: str, target: str, dest: str, *settings: str) -> None:
        self.recipe = override(Recipe(), ["inference.batch_size=3", *settings])
        self.storage = Storage()
        inventory = take_inventory(self.storage, target, self.recipe.inference.folds)
        networks, token = read_networks(model, self.storage), ledger.own(self.storage, dest)
        self.dest = dest
        self.assignment = (self.recipe, networks, target, inventory.manifest, dest, token)
        self.tasks = inventory.tasks()

    def work(self, *tasks: Task) -> dict[str, str]:
        """All tasks, or these, side by side as in an actor; the pictures that were left out."""
        worker = PredictionWorker(*self.assignment)
        try:
            with ThreadPoolExecutor(3) as threads:
                done = list(threads.map(worker, tasks or self.tasks))
        finally:
            worker.close()
        return {id: reason for each in done for id, reason in each.unreadable.items()}

    def parts(self) -> dict[str, Part]:
        names = ledger.parts(self.storage, self.dest)
        return {name: read_part(self.storage, ledger.part_url(self.dest, name)) for name in names}

    def png(self, *path: str) -> np.ndarray:
        import io

        return np.asarray(Image.open(io.BytesIO(self.storage.read_bytes(join(self.dest, *path)))))


def test_masks_run_lengths_and_probabilities_are_the_predictors_own(folder: Path, tmp_path: Path, model: str) -> None:
    run = Run(model, str(folder), str(tmp_path / "out"), "inference.probabilities=true", "inference.overlays=true")
    assert run.work() == {}
    predictor = Predictor(load_members(model, Storage()), run.recipe.inference)
    parts = run.parts()
    assert sorted(parts) == sorted(task.name for task in run.tasks)
    masks = [mask for task in run.tasks for mask in parts[task.name].masks]
    assert {id: seen.file for part in parts.values() for id, seen in part.seen.items()} == {id: id for id in IDS}
    assert [mask.id for mask in masks] == [f"{number:02d}" for number in range(17)]
    for mask in masks:
        expected = probability_of(predictor, np.asarray(Image.open(folder / f"{mask.id}.png")))
        found = run.png("masks", f"{mask.id}.png")
        clear = np.abs(expected - predictor.threshold) > 1e-5  # elsewhere rounding in another batch may decide
        np.testing.assert_array_equal(found[clear], (expected >= predictor.threshold)[clear])
        np.testing.assert_array_equal(rle.decode(mask.rle, HEIGHT, WIDTH), found)
        levels = run.png("probabilities", f"{mask.id}.png")
        np.testing.assert_allclose(levels / 255.0, expected, rtol=0, atol=0.51 / 255)
        assert run.png("overlays", f"{mask.id}.jpg").shape == (HEIGHT, WIDTH, 3)
    assert any(0 < run.png("masks", f"{mask.id}.png").mean() < 1 for mask in masks)


def test_pictures_and_results_may_both_be_in_object_storage(tmp_path: Path, model: str, s3_root: str) -> None:
    folder = write_pictures(tmp_path / "photos", ["a.png", "b.png"])
    local = Run(model, str(folder), str(tmp_path / "out"))
    local.work()
    for path in folder.iterdir():
        Storage().write_file(join(s3_root, "photos", path.name), path)
    Storage().write_file(join(s3_root, "model.keras"), Path(model))
    remote = Run(join(s3_root, "model.keras"), join(s3_root, "photos"), join(s3_root, "out"))
    remote.work()
    (there,), (here,) = remote.parts().values(), local.parts().values()
    assert there.masks == here.masks
    assert [seen.digest for seen in there.seen.values()] == [seen.digest for seen in here.seen.values()]
    np.testing.assert_array_equal(remote.png("masks", "b.png"), local.png("masks", "b.png"))


def test_a_worker_writes_no_more_where_another_call_has_taken_over(folder: Path, tmp_path: Path, model: str) -> None:
    first = Run(model, str(folder), str(tmp_path / "out"))
    second = Run(model, str(folder), str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"out was taken over by another process, which began later"):
        first.work(first.tasks[0])
    assert second.parts() == {}
    assert not (tmp_path / "out" / "masks").exists()
    second.work()
    assert len(second.parts()) == 2


def test_what_an_earlier_content_gave_goes_where_the_picture_is_unreadable_now(
    folder: Path, tmp_path: Path, model: str
) -> None:
    Run(model, str(folder), str(tmp_path / "out")).work()
    (folder / "02.png").write_bytes(b"no picture")
    run = Run(model, str(folder), str(tmp_path / "out"), "inference.skip_unreadable=true")
    assert set(run.work()) == {"02"}
    assert not (tmp_path / "out" / "masks" / "02.png").exists()
    assert (tmp_path / "out" / "masks" / "03.png").exists()


def test_ids_from_a_foreign_set_lead_nowhere_and_those_that_differ_in_case_get_a_file_each(
    folder: Path, tmp_path: Path, model: str
) -> None:
    (tmp_path / "x").mkdir()
    run = Run(model, str(folder), str(tmp_path / "deep" / "er" / "out"))
    ids = ["../../../x/pwn", "/x/pwn", "a\0b", "a\nb", "..", "n" * 300, "Car", "car", "\u00e9", "e\u0301"]
    names = file_names(ids)
    sources = [subject for task in run.tasks for subject in task.subjects][: len(ids)]
    run.work(Task("t", tuple(replace(one, id=id, file=names[id]) for one, id in zip(sources, ids, strict=True))))
    written = [path.relative_to(tmp_path).parts for path in tmp_path.rglob("*.png") if folder not in path.parents]
    assert {parts[:-1] for parts in written} == {("deep", "er", "out", "masks")}
    assert len({parts[-1].casefold() for parts in written}) == len(ids)
    assert list((tmp_path / "x").iterdir()) == []
    assert [mask.id for mask in run.parts()["t"].masks] == ids


def damage(folder: Path) -> None:
    """One file that is no picture, one that ends too early, and one of 16 bits."""
    (folder / "02.png").write_bytes(b"no picture")
    whole = (folder / "05.png").read_bytes()
    (folder / "05.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "07.png")


def test_a_picture_that_cannot_be_read_ends_it_with_its_name(folder: Path, tmp_path: Path, model: str) -> None:
    damage(folder)
    run = Run(model, str(folder), str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"^picture 02 cannot be read: .*02\.png: .*inference.skip_unreadable=true$"):
        run.work(run.tasks[0])
    assert run.parts() == {}


def test_unreadable_pictures_are_left_out_and_told_if_asked(folder: Path, tmp_path: Path, model: str) -> None:
    damage(folder)
    run = Run(model, str(folder), str(tmp_path / "out"), "inference.skip_unreadable=true")
    unreadable = run.work()
    assert sorted(unreadable) == ["02", "05", "07"]
    assert "none of JPEG, PNG, BMP" in unreadable["02"]
    assert "cannot be decoded" in unreadable["05"]
    assert "only 8-bit RGB and grey" in unreadable["07"]
    parts = run.parts()
    assert parts[run.tasks[0].name].unreadable == unreadable
    assert sum(len(part.masks) for part in parts.values()) == 14
    assert not (tmp_path / "out" / "masks" / "02.png").exists()


def test_a_data_sets_damaged_bytes_are_an_unreadable_picture(folder: Path, tmp_path: Path, model: str) -> None:
    raw = tmp_path / "raw"
    write_pictures(raw / "images", [f"{number}.png" for number in range(4)])
    (raw / "masks").mkdir()
    for number in range(4):
        Image.fromarray(np.full((HEIGHT, WIDTH), 255, np.uint8)).save(raw / "masks" / f"{number}.png")
    root = tmp_path / "set"
    prepare(override(Recipe(), [f"source.path={raw}", "prepare.folds=2"]), str(root), parallel=False)
    image = (raw / "images" / "1.png").read_bytes()
    (shard,) = [path for path in root.rglob("*.parquet") if image in path.read_bytes()]
    stored = bytearray(shard.read_bytes())
    stored[stored.index(image) + 60] ^= 1
    shard.write_bytes(stored)
    run = Run(model, str(root), str(tmp_path / "out"), "inference.skip_unreadable=true")
    assert len(run.tasks) == 4
    assert run.work() == {"1": "its bytes in storage are damaged"}
    assert sum(len(part.masks) for part in run.parts().values()) == 3
    assert len(Run(model, str(root), str(tmp_path / "out"), "inference.folds=[1]").tasks) == 2


@pytest.fixture
def small_files() -> Iterator[Any]:
    """A call after which the kernel lets no file of this process grow over so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_part_file_is_not_there_where_there_was_no_room_for_a_mask(
    folder: Path, tmp_path: Path, model: str, small_files: Any
) -> None:
    run = Run(model, str(folder), str(tmp_path / "out"))
    worker = PredictionWorker(*run.assignment)
    try:
        small_files(20)
        with pytest.raises(NoSpaceError, match=r"masks/\d\d\.png: File too large; make room"):
            worker(run.tasks[0])
    finally:
        worker.close()  # first: its threads would find room again
        small_files(resource.RLIM_INFINITY)
    assert run.parts() == {}
    assert list((tmp_path / "out" / "masks").iterdir()) == [], "no half files"

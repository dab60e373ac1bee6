"""Predictions over the cluster: a killed worker's tasks come again, finished ones do not, mistakes show at once."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtrain.cluster import nodes
from segtrain.cluster.capacity import Node, Offer
from segtrain.config import Recipe, UNetConfig, override
from segtrain.errors import UserError
from segtrain.inference.stored_networks import read_networks
from segtrain.models import build_model
from segtrain.prediction import ledger, predict_masks
from segtrain.prediction.predict_masks import predict, prediction_lines
from segtrain.prediction.predict_worker import PredictionWorker
from segtrain.prediction.resume import Finished
from segtrain.prediction.tasks import take_inventory
from segtrain.storage.files import Storage
from tests.support.kaggle_server import serve_kaggle
from tests.support.small_sources import write_boxes

PICTURES = 8


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """8 pictures in 2 folds, each in a row group of its own."""
    return write_boxes(tmp_path_factory.mktemp("eight"), pictures=PICTURES, folds=2, height=48, width=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "model.keras"
    build_model(UNetConfig(filters=2, depth=1, convolutions=1), seed=1).save(path)
    return str(path)


def actors() -> list[int]:
    """Processes of this session's Ray that are actors of a fleet: descendants of this process by that name."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            names[int(folder.name)] = (folder / "cmdline").read_bytes()
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = []
    for process, name in names.items():
        ancestor = process
        while ancestor in parents and ancestor != os.getpid():
            ancestor = parents[ancestor]
        if ancestor == os.getpid() and name.startswith(b"ray::_Actor"):
            found.append(process)
    return found


def kill_when_more_than(folder: Path, files: int, killed: list[int]) -> None:
    """Kill one worker of the fleet once `folder` has so many files and one more."""
    while len(list(folder.iterdir())) <= files:
        time.sleep(0.002)
    killed += actors()[:1]
    os.kill(killed[0], signal.SIGKILL)


def finish_some(recipe: Recipe, model: str, target: str, dest: Path, count: int | None = None) -> Finished:
    """Do the first tasks of those that are left, or all, in this process; what was there before."""
    storage, networks = Storage(), read_networks(model, Storage())
    inventory = take_inventory(storage, target, recipe.inference.folds)
    finished = predict_masks._take_up(
        recipe, storage, str(dest), inventory, predict_masks._facts(recipe, networks, inventory)
    )
    token = ledger.own(storage, str(dest))
    worker = PredictionWorker(recipe, networks, target, inventory.manifest, str(dest), token)
    for task in inventory.tasks(finished.parts)[:count]:
        worker(task)
    worker.close()
    return finished


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_killed_workers_row_groups_are_done_again_and_finished_ones_are_not(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Pictures that take much longer than to find the worker, one after the other.
    root = write_boxes(tmp_path / "large", pictures=PICTURES, folds=2, height=1280, width=1920)
    recipe = override(Recipe(), ["inference.workers=1", "inference.batch_size=1", "run.progress_every_s=0.01"])
    dest = tmp_path / "out"
    finish_some(recipe, model, root, dest, 5)
    before = {path: path.stat().st_mtime_ns for path in (dest / "parts").glob("*.part")}
    killed: list[int] = []
    killer = threading.Thread(target=kill_when_more_than, args=(dest / "masks", 5, killed), daemon=True)
    killer.start()
    caplog.set_level("INFO", "segtrain")
    made = predict(recipe, model, root, str(dest))
    killer.join()
    assert f"worker process {killed[0]} died; its unfinished tasks" in caplog.text
    assert "5 of 8 pictures were predicted before" in caplog.text
    assert (made.pictures, made.tasks_done, made.unreadable) == (PICTURES, 3, {})
    assert sorted(path.name for path in (dest / "masks").iterdir()) == [f"{n:02d}.png" for n in range(PICTURES)]
    assert {path: path.stat().st_mtime_ns for path in before} == before, "finished tasks are not done again"
    assert "predicted 3 pictures" in caplog.text
    assert f"masks       8 in {dest}/masks" in prediction_lines(made)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, seed in (("a", 1), ("b", 2)):
        write_photo(folder / f"{name}.png", seed)
    return folder


def write_photo(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 24, 3), np.uint8)).save(path)


def test_a_picture_that_was_replaced_gets_a_new_mask(photos: Path, model: str, tmp_path: Path) -> None:
    recipe = override(Recipe(), ["inference.threshold=0.5"])
    finish_some(recipe, model, str(photos), tmp_path / "out")
    first = (tmp_path / "out" / "masks" / "a.png").read_bytes()
    write_photo(photos / "a.png", 3)
    finished = finish_some(recipe, model, str(photos), tmp_path / "out")
    assert (list(finished.parts), finished.again) == (["b"], ["a"])
    finish_some(recipe, model, str(photos), tmp_path / "fresh")
    masks = [(tmp_path / place / "masks" / "a.png").read_bytes() for place in ("out", "fresh")]
    assert masks[0] == masks[1] != first


def test_another_network_of_the_same_name_is_refused(photos: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.keras"
    build_model(UNetConfig(filters=2, depth=1, convolutions=1), seed=1).save(own)
    finish_some(Recipe(), str(own), str(photos), tmp_path / "out")
    build_model(UNetConfig(filters=2, depth=1, convolutions=1), seed=2).save(own)
    with pytest.raises(UserError, match=r"out holds another prediction \(model: \w{16} there, \w{16} now\)"):
        predict(Recipe(), str(own), str(photos), str(tmp_path / "out"))


def test_where_nothing_is_left_to_do_nothing_starts(
    photos: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_some(Recipe(), model, str(photos), tmp_path / "out")
    sample = tmp_path / "sample.csv"
    sample.write_text("img,rle_mask\nb.png,\na.png,\n")
    (tmp_path / "out" / "unreadable.csv").write_text("id,reason\na,of an earlier call\n")
    monkeypatch.setattr(nodes, "connection", None)  # calling it would fail
    made = predict(Recipe(), model, str(photos), str(tmp_path / "out"), sample=str(sample))
    assert (made.pictures, made.tasks_done) == (2, 0)
    lines = (tmp_path / "out" / "submission.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["img", "b.png", "a.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "masks", "parts", "prediction.json", "prediction.owner", "submission.csv"
    ]  # fmt: skip


class TestMistakes:
    """All of them show before a worker starts."""

    def refused(self, target: str, dest: Path, *settings: str, model: str = "m.keras") -> str:
        with pytest.raises(UserError) as error:
            predict(override(Recipe(), settings), model, target, str(dest))
        return str(error.value)

    def test_a_target_that_is_not_there_or_holds_no_pictures(self, tmp_path: Path, model: str) -> None:
        assert "photos is not there or empty; give a data set or a folder of pictures" in self.refused(
            str(tmp_path / "photos"), tmp_path / "out", model=model
        )

    def test_a_file_instead_of_a_folder(self, photos: Path, tmp_path: Path, model: str) -> None:
        told = self.refused(str(photos / "a.png"), tmp_path / "out", model=model)
        assert told == f"{photos}/a.png is a file; give the folder of pictures that it lies in, or a data set"

    def test_masks_among_the_pictures(self, photos: Path, root: str, tmp_path: Path, model: str) -> None:
        for dest in (photos, photos / "masks", photos / ".." / "photos"):
            told = self.refused(str(photos), dest, model=model)
            assert told.startswith(f"DEST: {dest} ")
            assert told.endswith("give a folder elsewhere, or the masks would be taken for pictures")
        (tmp_path / "link").symlink_to(photos)
        assert "is the folder of the pictures" in self.refused(str(photos), tmp_path / "link", model=model)
        assert "lies in" in self.refused(root, Path(root) / "out", model=model)
        finish_some(Recipe(), model, str(photos), tmp_path / "out")
        told = self.refused(str(tmp_path / "out" / "masks"), tmp_path / "out", model=model)
        assert told.endswith("is where the masks in DEST go; give the folder of the pictures, or another DEST")
        assert sorted(path.name for path in photos.iterdir()) == ["a.png", "b.png"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("image,mask\na.png,\n", "has the columns image, mask; a sample_submission"),
            ("img,rle_mask\na.png,\nc.png,\n", r"names 1 picture of 2 that are not among those to predict \(c\.png\)"),
        ],
    )
    def test_a_sample_that_does_not_fit(
        self, photos: Path, tmp_path: Path, model: str, text: str, message: str
    ) -> None:
        (tmp_path / "sample.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            predict(Recipe(), model, str(photos), str(tmp_path / "out"), sample=str(tmp_path / "sample.csv"))
        assert not (tmp_path / "out").exists()

    def test_no_key_for_kaggle(self, photos: Path, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "sample.csv").write_text("img,rle_mask\na.png,\n")
        with serve_kaggle() as kaggle:
            for name, value in kaggle.environment(tmp_path).items():
                monkeypatch.setenv(name, value)
            monkeypatch.delenv("KAGGLE_API_TOKEN", raising=False)
            with pytest.raises(UserError, match="there is no key for Kaggle; make one at"):
                predict(
                    Recipe(), model, str(photos), str(tmp_path / "out"), sample=str(tmp_path / "sample.csv"),
                    to_kaggle=True,
                )  # fmt: skip
        assert not (tmp_path / "out").exists()

    def test_a_saved_model_that_the_user_does_not_vouch_for(self, photos: Path, tmp_path: Path) -> None:
        saved = tmp_path / "saved"
        saved.mkdir()
        (saved / "saved_model.pb").write_bytes(b"program")
        assert "type inference.trust_saved_model=true with the command" in self.refused(
            str(photos), tmp_path / "out", model=str(saved)
        )

    def test_a_fold_that_does_not_exist(self, tmp_path: Path, root: str, model: str) -> None:
        told = self.refused(root, tmp_path / "out", "inference.folds=[1,7]", model=model)
        assert told == "inference.folds: fold 7 is not in the data set, which has 0, 1"
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "a.png").write_bytes(b"x")
        assert "it has no manifest.json" in self.refused(
            str(tmp_path / "photos"), tmp_path / "out", "inference.folds=[0]", model=model
        )

    def test_a_network_that_is_not_there(self, tmp_path: Path, root: str) -> None:
        assert "m.keras" in self.refused(root, tmp_path / "out")

    def test_results_made_with_other_settings_or_of_other_pictures(self, tmp_path: Path, root: str, model: str) -> None:
        facts = {"folds": [0, 1], "flip": False, "threshold": 0.5}
        ledger.claim(Storage(), str(tmp_path), facts)
        told = self.refused(root, tmp_path, "inference.flip=true", "inference.threshold=0.4", model=model)
        assert "flip: False there, True now" in told
        assert "threshold: 0.5 there, 0.4 now" in told

    def test_a_sample_that_is_not_there_and_submitting_without_one(self, tmp_path: Path, root: str, model: str) -> None:
        with pytest.raises(UserError, match=r"sample\.csv is not there"):
            predict(Recipe(), model, root, str(tmp_path / "out"), sample=str(tmp_path / "sample.csv"))
        with pytest.raises(UserError, match=r"--submission SAMPLE\.csv"):
            predict(Recipe(), model, root, str(tmp_path / "out"), to_kaggle=True)

    @pytest.mark.ray
    @pytest.mark.usefixtures("ray_session")
    def test_local_paths_on_several_machines(
        self, tmp_path: Path, root: str, model: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        offer = Offer([Node("one", 4.0, 0.0), Node("two", 4.0, 0.0)])  # a second machine is not to be had here
        monkeypatch.setattr(nodes, "offer", lambda: offer)
        assert "is a local path, but the cluster has 2 machines" in self.refused(root, tmp_path / "out", model=model)

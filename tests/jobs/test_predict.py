"""jobs/predict.py as a user runs it, with a disk that fills up and with Kaggle's answer at the end."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import predict
from segtrain import rle
from segtrain.config import Recipe, UNetConfig, override
from segtrain.models import build_model
from tests.support.kaggle_server import serve_kaggle
from tests.support.kaggle_state import Competition

HEIGHT, WIDTH = 160, 240
PICTURES = 40


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves that predicting needs."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    (folder / "best").mkdir(parents=True)
    build_model(UNetConfig(filters=2, depth=1, convolutions=1), seed=1).save(folder / "best" / "model.keras")
    (folder / "recipe.yaml").write_text(override(Recipe(), ["run.name=tiny", "inference.batch_size=4"]).to_yaml())
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of noise, whose masks compress badly."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(PICTURES):
        pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.jpg")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A file system with room for some of the masks, and a call that makes it large."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        yield folder, lambda: subprocess.check_call(["mount", "-o", "remount,size=16m", str(folder)])
    finally:
        with contextlib.suppress(OSError):
            os.sync()
        subprocess.check_call(["umount", "-l", str(folder)])


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_full_disk_ends_it_with_one_message_and_with_room_it_goes_on_up_to_the_score(
    run_folder: Path,
    photos: Path,
    small_disk: tuple[Path, Callable[[], None]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk, grow = small_disk
    sample = tmp_path / "sample_submission.csv"
    names = [f"{number:02d}.jpg" for number in reversed(range(PICTURES))]
    sample.write_text("".join(f"{line}\n" for line in ["img,rle_mask", *(f"{name},1 1" for name in names)]))
    command = [str(run_folder), str(photos), str(disk / "out"), "inference.workers=1", "--submission", str(sample)]
    assert predict.main(command) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "No space left on device; make room or use another path; what is finished stays" in told
    assert str(disk / "out") in told

    grow()
    with serve_kaggle() as kaggle:
        for name, value in (kaggle.environment(tmp_path) | {"KAGGLE_API_TOKEN": kaggle.token}).items():
            monkeypatch.setenv(name, value)
        kaggle.competitions["carvana-image-masking-challenge"] = Competition(score="0.99712")
        assert predict.main([*command, "--submit"]) == 0
        (submission,) = kaggle.submissions
    shown = capsys.readouterr().out
    assert f"masks       {PICTURES} in {disk}/out/masks" in shown
    assert "score       0.997120 (public)" in shown
    assert kaggle.token not in shown
    lines = submission.content.decode().splitlines()
    assert lines[0] == "img,rle_mask"
    assert [line.split(",")[0] for line in lines[1:]] == names
    for line in lines[1:]:
        name, _, runs = line.partition(",")
        png = np.asarray(Image.open(disk / "out" / "masks" / name.replace("jpg", "png")))
        np.testing.assert_array_equal(rle.decode(runs, HEIGHT, WIDTH), png)


def test_a_mistake_ends_with_code_2_and_one_sentence(
    run_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict.main([str(run_folder), str(photos), str(tmp_path), "inference.flop=true"]) == 2
    assert "inference.flop" in capsys.readouterr().err
    assert predict.main([str(run_folder), str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert "none is not there or empty" in capsys.readouterr().err
    assert predict.main([str(tmp_path / "nothing"), str(photos), str(tmp_path / "out")]) == 2
    assert "nothing" in capsys.readouterr().err

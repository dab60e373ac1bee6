"""`jobs/prepare.py` through its command line."""

import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtrain.prepare import write_shards
from tests.support.held_jobs import running
from tests.support.places import JOBS

JOB = JOBS / "prepare.py"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for folder in ("images", "masks"):
        (tmp_path / "source" / folder).mkdir(parents=True)
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"source/images/p{number}.jpg")
        Image.fromarray((pixels[..., 0] > 128).astype(np.uint8) * 255).save(tmp_path / f"source/masks/p{number}.gif")
    return tmp_path / "source"


def test_a_folder_becomes_a_data_set(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(JOB), "folder", "set", f"source.path={source}", "prepare.folds=3"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(r"^checked 6 pictures, \d+/s, \d+\.\d MiB/s$", result.stdout, re.MULTILINE)
    for part in ("wrote 6 pictures, ", "6 pictures in 6 groups", "python jobs/data.py preview set"):
        assert part in result.stdout
    assert (tmp_path / "set/manifest.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["folder", "set", "source.kind=carvana"], 2, "SOURCE is folder, and source.kind=carvana says otherwise"),
        (["synthetic", "set", f"source.path=drawn/{'x' * 300}"], 1, "source.path: drawn/xxxx"),
    ],
)
def test_a_mistake_with_the_source_is_one_message(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert runpy.run_path(str(JOB))["main"](arguments) == code
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_the_next_command_can_be_pasted_into_a_shell(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = str(tmp_path / "a set; ls")
    assert runpy.run_path(str(JOB))["main"](["folder", dest, f"source.path={source}", "prepare.folds=3"]) == 0
    last = capsys.readouterr().out.splitlines()[-1].removeprefix("look at it: ")
    assert shlex.split(last) == ["python", "jobs/data.py", "preview", dest]


def test_a_recipe_names_the_source(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "pictures.yaml"
    recipe.write_text(f"source: {{path: {source}, group_run: 2}}\nprepare: {{folds: 3}}\n")
    assert runpy.run_path(str(JOB))["main"]([str(recipe), str(tmp_path / "set"), "prepare.seed=4"]) == 0
    assert "6 pictures in 3 groups" in capsys.readouterr().out


def test_a_bad_pair_is_one_message_and_code_2(source: Path, tmp_path: Path) -> None:
    broken = source / "images/p3.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    command = [sys.executable, str(JOB), "folder", "set", f"source.path={source}", "prepare.folds=3"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: 1 bad pair (all in set/rejected.csv): ")
    assert "p3.jpg: image" in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["rejected.csv"]


def test_a_place_that_another_writer_took_meanwhile_is_one_message_and_code_2(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["folder", str(tmp_path / "set"), f"source.path={source}", "prepare.folds=3"]
    main = runpy.run_path(str(JOB))["main"]
    plan_shards = write_shards.plan_shards

    def meanwhile(*args: Any) -> Any:
        monkeypatch.undo()
        assert main(command) == 0
        return plan_shards(*args)

    monkeypatch.setattr(write_shards, "plan_shards", meanwhile)
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: another jobs/prepare.py wrote {tmp_path}/set meanwhile; ")
    assert error.count("\n") == 1
    assert main(command) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kaggel", "{set}"], "SOURCE 'kaggel' is none of carvana, folder, kaggle, synthetic and no recipe file"),
        (["folder", "{set}"], "source.path is not set"),
        (["folder", "{set}", "source.path={set}"], "images is not there"),
        (["folder", "{set}", "source.pth=x"], "did you mean 'source.path'"),
        (["folder", "{set}", "prepare.folds=1"], "prepare.folds: "),
        (["folder", "{set}", "source.path={source}", "source.masks=images", "prepare.folds=3"], "6 bad pairs"),
        (["folder", "{set}", "source.path={source}", "prepare.folds=7"], "there are only 6 groups"),
        (["missing.yaml", "{set}"], "there is no such recipe"),
        (["synthetic", "{set}", "source.views=100"], "source.views: "),
    ],
)
def test_a_mistake_is_one_message_and_code_2(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    names = {"set": tmp_path / "set", "source": source}
    assert runpy.run_path(str(JOB))["main"]([text.format(**names) for text in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("set/*manifest*"))
    assert not list(tmp_path.glob("set/fold*"))


def prepared(source: Path, *more: str) -> list[object]:
    return ["prepare", "folder", "set", f"source.path={source}", "prepare.folds=3", *more]


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_small_job_that_is_asked_to_end_says_so_and_leaves_no_temporary_folder(
    source: Path, tmp_path: Path, name: str, code: int
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    folder = tmp_path / "job"
    with running(*prepared(source), folder=folder, hold="write_file fold=", TMPDIR=str(temporary)) as job:
        assert job.wait_until_held()
        assert list(temporary.iterdir()) != []
        job.process.send_signal(getattr(signal, name))
        job.let_go()
        assert job.wait() == code
        assert job.output.endswith("\ninterrupted; the same command goes on from here\n")
    assert list(temporary.iterdir()) == []
    command = [sys.executable, str(JOB), *map(str, prepared(source)[1:])]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    assert not [path for path in (folder / "set").rglob("*") if "_prepare-" in str(path) or path.name.startswith(".")]


def test_a_full_temporary_folder_is_one_message_and_code_1(source: Path, tmp_path: Path) -> None:
    program = (
        "import resource, sys\nfrom jobs.prepare import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-c", program, *map(str, prepared(source, "prepare.min_row_groups=1")[1:])]
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(JOB.parents[1])}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {temporary}, the folder for temporary files: File too large; make room")
    assert result.stderr.count("\n") == 1
    assert list(temporary.iterdir()) == []

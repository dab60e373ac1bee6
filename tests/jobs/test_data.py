"""`jobs/data.py` through its command line."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from segtrain.config import Recipe, override
from segtrain.dataset.manifest import read_manifest
from segtrain.prepare.prepare_set import prepare
from segtrain.storage.files import Storage
from tests.support.places import JOBS

JOB = JOBS / "data.py"


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("cars")
    settings = ["source.kind=synthetic", "source.cars=2", "source.views=2", "source.height=48", "source.width=72"]
    prepare(override(Recipe(), [*settings, "prepare.folds=2"]), str(root / "set"))
    return str(root / "set")


def test_inspect_and_stats_describe_the_set(data_set: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(JOB))["main"]
    assert main(["inspect", data_set]) == 0
    assert "4 pictures in 2 groups" in capsys.readouterr().out
    assert main(["stats", data_set]) == 0
    assert "72x48 (4)" in capsys.readouterr().out


def copy(data_set: str, folder: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(data_set, folder / "copy")
    return folder / "copy"


def test_inspect_and_stats_read_no_shard(data_set: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoilt = copy(data_set, tmp_path)
    for shard in spoilt.rglob("part-*"):
        shard.unlink()
    main = runpy.run_path(str(JOB))["main"]
    for what in ("inspect", "stats"):
        assert main([what, str(spoilt)]) == 0
        said = capsys.readouterr().out.replace(str(spoilt), data_set)
        assert main([what, data_set]) == 0
        assert capsys.readouterr().out == said


def test_verify_says_how_much_is_all_right(data_set: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert runpy.run_path(str(JOB))["main"](["verify", data_set]) == 0
    captured = capsys.readouterr()
    progress, result = captured.out.splitlines()
    assert progress.startswith("verified 4 pictures, ")
    assert progress.endswith(" MiB/s")
    assert (result, captured.err) == ("4 pictures in 2 shards: all right", "")


def test_verify_lists_what_is_wrong_and_ends_with_code_1(data_set: str, tmp_path: Path) -> None:
    spoilt = copy(data_set, tmp_path)
    flipped, missing = sorted(spoilt.rglob("part-*"))
    flipped.write_bytes(flipped.read_bytes().replace(b"JFIF", b"JFIX"))
    missing.unlink()
    command = [sys.executable, str(JOB), "verify", str(spoilt)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    *lines, last = [line for line in result.stdout.splitlines() if not line.startswith("verified ")]
    assert last == f"{missing.relative_to(spoilt)}: is named in the manifest but is not there"
    name = flipped.relative_to(spoilt)
    damage = re.compile(rf"{name}, row group \d, id \w+: the image differs from its own checksum")
    assert sum(damage.fullmatch(line) is not None for line in lines) == 2
    expected = f"error: {spoilt} is damaged (lines above: {len(lines) + 1}); make it again with jobs/prepare.py\n"
    assert result.stderr == expected


def test_preview_draws_a_contact_sheet(data_set: str, tmp_path: Path) -> None:
    command = [sys.executable, str(JOB), "preview", data_set, "--pictures", "3"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "drew preview.png\n", "")
    assert Image.open(tmp_path / "preview.png").format == "PNG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "{empty}"], "there is no manifest.json in"),
        (["stats", "{strange}"], "has format_version 9, this segtrain reads 1"),
        (["preview", "{set}", "--pictures", "0"], "--pictures is 0"),
        (["inspect", "{set}", "storage.endpoint=x"], "did you mean 'storage.endpoint_url'"),
        (["inspect", "gs://bucket/set"], "gs:// is not supported"),
        (["inspect", "s3://"], "DATASET: s3:// names no bucket"),
        (["preview", "{set}", "--out", "s3:///b/x"], "--out: s3:///b/x names no bucket"),
    ],
)
def test_a_mistake_is_one_message_and_code_2(
    data_set: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange/manifest.json").write_text('{"format_version": 9}')
    names = {"set": data_set, "empty": tmp_path, "strange": tmp_path / "strange"}
    assert runpy.run_path(str(JOB))["main"]([text.format(**names) for text in arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_damage_is_one_message_and_code_1(data_set: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in Path(data_set).rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(data_set)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    for shard in tmp_path.rglob("part-*"):
        shard.write_bytes(shard.read_bytes().replace(b"JFIF", b"JFIX"))
    assert runpy.run_path(str(JOB))["main"](["preview", str(tmp_path), "--out", str(tmp_path / "sheet.png")]) == 1
    assert "part-00000" in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize("text", ["{", '{"format_version": 1, "pictures": -1}'])
def test_a_damaged_manifest_is_damage_too(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert runpy.run_path(str(JOB))["main"](["verify", str(tmp_path)]) == 1
    assert "manifest.json is " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["data.py", "prepare.py"])
def test_help_answers_within_a_second_of_the_processor(name: str) -> None:
    best_s = 9.0
    for _ in range(3):
        start_s = used_by_children_s()
        command = [sys.executable, str(JOB.with_name(name)), "--help"]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        best_s = min(best_s, used_by_children_s() - start_s)
        assert "python jobs/" in result.stdout
    assert best_s < 1.0


def used_by_children_s() -> float:
    """Seconds of the processor that all processes have taken which this one started and waited for."""
    times = os.times()
    return times.children_user + times.children_system


def test_versions_are_listed_looked_at_and_pruned(
    tmp_path: Path, data_set: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy(data_set, tmp_path)
    first = read_manifest(Storage(), str(root))
    pictures = tmp_path / "more"
    for kind in ("images", "masks"):
        (pictures / kind).mkdir(parents=True)
        Image.new("L", (24, 16)).save(pictures / kind / "new_picture.png")
    recipe = override(Recipe(), ["source.kind=folder", f"source.path={pictures}", "prepare.mix=true"])
    second = prepare(override(recipe, [f"prepare.folds={len(first.folds)}"]), str(root), parallel=False)
    main = runpy.run_path(str(JOB))["main"]

    def lines(*arguments: str) -> list[str]:
        assert main(list(arguments)) == 0
        return capsys.readouterr().out.splitlines()

    assert f"earlier version {first.fingerprint} of {first.created}, {first.pictures} pictures" in lines(
        "inspect", str(root)
    )
    assert f"fingerprint {first.fingerprint}, " in lines("inspect", str(root), f"data.version={first.fingerprint}")[0]
    assert lines("prune", str(root))[0].startswith(f"removed version {first.fingerprint} of ")
    assert lines("prune", str(root)) == [f"{root} has no other version than {second.fingerprint}"]

"""Twenty jobs as real processes, side by side: exit code, one message on stderr, nothing outside the folders named."""

import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.places import EARLIER_VERSION, REPOSITORY, STORAGE_HOOK


@dataclass(frozen=True)
class Case:
    """A command line in a folder of its own, and how it must end."""

    name: str
    arguments: Sequence[str]
    code: int
    says: str = ""
    """Part of the message on stderr, or of stdout where the code is 0."""
    signal: int | None = None
    """Sent while it is held at its first write to a shard."""
    environment: dict[str, str] = field(default_factory=dict)


CASES = (
    Case("sound folder", ["prepare", "folder", "out/set", "source.path=raw"], 0, "20 pictures"),
    Case("synthetic", ["prepare", "synthetic", "out/set", "source.cars=2", "source.views=1", "prepare.folds=2"], 0,
         "2 pictures"),
    Case("inspect", ["data", "inspect", "set"], 0, "20 pictures"),
    Case("verify", ["data", "verify", "set"], 0, "all right"),
    Case("stats", ["data", "stats", "set"], 0, "foreground"),
    Case("preview", ["data", "preview", "set", "--out", "out/preview.png"], 0, "drew"),
    Case("report of a killed run", ["report", "run", "--out", "out/report.html"], 0, "out/report.html"),
    Case("no such folder", ["prepare", "folder", "out/set", "source.path=nowhere"], 2, "nowhere"),
    Case("no such key", ["prepare", "folder", "out/set", "source.pth=raw"], 2, "source.path"),
    Case("a bad number", ["prepare", "folder", "out/set", "source.path=raw", "prepare.folds=1"], 2, "prepare.folds"),
    Case("a bad pair", ["prepare", "folder", "out/set", "source.path=odd"], 2, "cut"),
    Case("no data set", ["data", "verify", "raw"], 2, "manifest.json"),
    Case("no run", ["report", "raw"], 2, "raw"),
    Case("no recipe", ["train", "nowhere.yaml"], 2, "nowhere.yaml"),
    Case("a recipe that is no YAML", ["tune", "broken.yaml"], 2, "broken.yaml"),
    Case("no such bucket scheme", ["data", "inspect", "gs://bucket/set"], 2, "gs://"),
    Case("a damaged shard", ["data", "verify", "damaged"], 1, "damaged"),
    Case("storage that is away", ["data", "inspect", "s3://b/set", "storage.deadline_s=1", "storage.timeout_s=0.5"], 1,
         "s3://b/set", environment={"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a",
                                  "AWS_SECRET_ACCESS_KEY": "b"}),
    Case("Ctrl-C", ["prepare", "folder", "out/set", "source.path=raw"], 130, "same command", signal=signal.SIGINT),
    Case("SIGTERM", ["prepare", "folder", "out/set", "source.path=raw"], 143, "same command", signal=signal.SIGTERM),
)  # fmt: skip


def lay_out(folder: Path) -> None:
    """What the cases read: pictures, a data set, a damaged one, a run, and a recipe that is none."""
    with tarfile.open(EARLIER_VERSION) as archive:
        archive.extractall(folder, filter="data")
    made = folder / "segtrain-e885e46"
    (made / "raw").rename(folder / "raw")
    (made / "set").rename(folder / "set")
    (made / "runs" / "killed").rename(folder / "run")
    for kind, shape in (("images", (9, 9, 3)), ("masks", (9, 9))):
        (folder / "odd" / kind).mkdir(parents=True)
        for name in "ab":
            Image.fromarray(np.zeros(shape, np.uint8)).save(folder / "odd" / kind / f"{name}.png")
        path = folder / "odd" / kind / "cut.png"
        path.write_bytes((folder / "odd" / kind / "a.png").read_bytes()[:-20])
    subprocess.check_call(["cp", "-r", str(folder / "set"), str(folder / "damaged")])
    shard = next((folder / "damaged").rglob("part-*.parquet"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (folder / "broken.yaml").write_text("model: [\n")
    for name in ("out", "tmp"):
        (folder / name).mkdir()


def start(case: Case, folder: Path) -> subprocess.Popen[str]:
    job, *rest = case.arguments
    environment = {**os.environ, **case.environment, "TMPDIR": str(folder / "tmp")}
    if case.signal is not None:
        hook = folder / "hook"
        hook.mkdir()
        hold = {"when": "before", "pattern": "write_file .*/part-", "number": 1}
        (hook / "hold").write_text(json.dumps(hold))
        environment |= {"HOOK_FOLDER": str(hook)}
    environment["PYTHONPATH"] = os.pathsep.join([str(STORAGE_HOOK), str(REPOSITORY)])
    command = [sys.executable, str(REPOSITORY / "jobs" / f"{job}.py"), *rest]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def listing(folder: Path) -> dict[str, int]:
    """Every file with its time of change, but for what may be written."""
    mine = ("out", "tmp", "hook")
    paths = (path for path in folder.rglob("*") if path.relative_to(folder).parts[0] not in mine)
    return {str(path): path.stat().st_mtime_ns for path in paths if path.is_file()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_job_ends_with_its_code_and_one_message(case: Case, tmp_path: Path) -> None:
    lay_out(tmp_path)
    before = listing(tmp_path)
    with start(case, tmp_path) as process:
        if case.signal is not None:
            hook = tmp_path / "hook"
            while not (hook / "reached").exists():
                assert process.poll() is None, process.communicate()
            process.send_signal(case.signal)
            (hook / "go").touch()
        out, err = process.communicate(timeout=600)
    assert process.returncode == case.code, (out, err)
    assert case.says in (out if case.code == 0 else err)
    assert "Traceback" not in err
    assert err.count("\n") == (0 if case.code == 0 else 1), err
    assert listing(tmp_path) == before, "it wrote where it was not told to"
    assert list((tmp_path / "tmp").iterdir()) == [], "something was left in the temporary folder"

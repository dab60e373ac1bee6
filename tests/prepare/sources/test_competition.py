"""Downloads with the real `kaggle` client from a local server that speaks Kaggle's calls, with no way out to others."""

import dataclasses
import fcntl
import logging
import os
import random
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from segtrain.config import CarvanaSource, KaggleSource, StorageConfig, SyntheticSource
from segtrain.dataset.manifest import read_manifest
from segtrain.errors import StorageError, UserError
from segtrain.prepare.sources.competition import fetch
from segtrain.prepare.sources.synthetic import draw_cars
from segtrain.storage.files import Storage
from tests.support.kaggle_server import STORAGE_HOST, KaggleServer, serve_kaggle
from tests.support.kaggle_state import Competition, Fault, zipped
from tests.support.places import JOBS

JOB = JOBS / "prepare.py"
CARVANA = "carvana-image-masking-challenge"
LIMITS = StorageConfig(timeout_s=6.0, deadline_s=120.0)
CUT = 2 * 2**20 + 12345
"""Bytes of a half-sent archive: over two of the client's 1 MiB pieces."""


@pytest.fixture(scope="session")
def cars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 cars with 2 views each, in Kaggle's folders."""
    root = tmp_path_factory.mktemp("cars")
    draw_cars(SyntheticSource(cars=3, views=2, height=64, width=96), root)
    return root


@pytest.fixture(scope="session")
def archives(cars: Path) -> dict[str, bytes]:
    """What Kaggle offers of the cars, with macOS's litter, 4 MiB of it, which make a download take several pieces."""
    litter = {"__MACOSX/._train_hq": np.random.default_rng(0).bytes(4 * 2**20)}
    pictures = {f"train_hq/{path.name}": path.read_bytes() for path in sorted((cars / "train").iterdir())}
    masks = {f"train_masks/{path.name}": path.read_bytes() for path in sorted((cars / "train_masks").iterdir())}
    return {
        "train_hq.zip": zipped(litter | pictures),
        "train_masks.zip": zipped(masks),
        "train_masks.csv.zip": zipped({"train_masks.csv": (cars / "train_masks.csv").read_bytes()}),
    }


@pytest.fixture
def server(
    archives: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[KaggleServer]:
    """The cars as a competition, with 20 GiB that nobody wants; this process knows the server and its key."""
    for name in [name for name in os.environ if name.startswith("KAGGLE_")]:
        monkeypatch.delenv(name)
    with serve_kaggle() as server:
        server.competitions[CARVANA] = Competition(dict(archives), {"test_hq.zip": 20 * 2**30, "metadata.zip": 1})
        for name, value in server.environment(tmp_path_factory.mktemp("home")).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("KAGGLE_API_TOKEN", server.token)
        yield server


def source(root: Path, **fields: object) -> KaggleSource:
    return KaggleSource.model_validate({"path": str(root), **fields})


def prepare(root: Path, dest: Path, *overrides: str) -> int:
    arguments = ["kaggle", str(dest), f"source.path={root}", "prepare.folds=3", *overrides]
    return int(runpy.run_path(str(JOB))["main"](arguments))


def test_a_competition_becomes_a_data_set(
    server: KaggleServer, cars: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepare(tmp_path / "raw", tmp_path / "set") == 0
    printed = capfd.readouterr().out
    for part in ("downloaded train_hq.zip, 4.", "unpacked train_masks.zip, 6 files", "6 pictures in 3 groups"):
        assert part in printed

    assert [request.body["fileName"] for request in server.asked("/DownloadDataFile")] == [
        "train_hq.zip",
        "train_masks.zip",
    ]
    assert not server.asked("test_hq.zip")
    assert all(request.authorization is None for request in server.requests if request.host == STORAGE_HOST)
    assert {path.name for path in (tmp_path / "raw").iterdir() if not path.name.startswith(".")} == {
        "train_hq",
        "train_hq.zip",
        "train_masks",
        "train_masks.zip",
    }

    arguments = ["carvana", str(tmp_path / "same"), f"source.path={cars}", "prepare.folds=3"]
    assert runpy.run_path(str(JOB))["main"](arguments) == 0
    manifests = [read_manifest(Storage(), str(tmp_path / name)) for name in ("set", "same")]
    assert manifests[0].fingerprint == manifests[1].fingerprint
    assert [one.source for one in manifests] == ["kaggle", "carvana"]

    # What is there needs neither key nor network.
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    server.requests.clear()
    assert prepare(tmp_path / "raw", tmp_path / "again") == 0
    assert server.requests == []


def test_killed_in_a_download_it_goes_on_where_it_was(
    server: KaggleServer, archives: dict[str, bytes], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.faults.append(Fault(stall_after=CUT))
    command = [sys.executable, str(JOB), "kaggle", str(tmp_path / "set"), f"source.path={tmp_path / 'raw'}"]
    with subprocess.Popen(
        [*command, "prepare.folds=3", "run.progress_every_s=0.1"],
        env={**os.environ, "VERBOSE": "1"},  # else a wish of the client's to print keys and bodies
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as job:
        assert job.stdout is not None
        lines = [next(line for line in job.stdout if "train_hq.zip: 2.0 MiB of 4." in line)]
        job.kill()
        lines += job.stdout
    assert server.token not in "".join(lines)

    assert prepare(tmp_path / "raw", tmp_path / "set") == 0
    assert "train_hq.zip: going on after 2.0 MiB" in capfd.readouterr().out
    assert [request.range for request in server.asked("/train_hq.zip")] == [None, None, f"bytes={2 * 2**20}-"]
    assert (tmp_path / "raw/train_hq.zip").read_bytes() == archives["train_hq.zip"]


@pytest.mark.parametrize(
    ("faults", "ranges"),
    [
        ([Fault(cut_after=CUT)], [None, None, "bytes=2097152-"]),
        ([Fault(stall_after=CUT)], [None, None, "bytes=2097152-"]),
        ([Fault(status=503)], [None, None]),
        # The client takes the error page, asked for twice, for the file; it is not built upon.
        (
            [Fault(cut_after=CUT), Fault(), Fault(status=503), Fault(status=503)],
            [None, None, "bytes=2097152-", None, None],
        ),
    ],
    ids=["cut", "silent", "unavailable", "unavailable-when-going-on"],
)
def test_a_download_that_breaks_off_is_gone_on_with(
    server: KaggleServer,
    archives: dict[str, bytes],
    tmp_path: Path,
    faults: list[Fault],
    ranges: list[str | None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.faults.extend(faults)
    with caplog.at_level(logging.INFO, "segtrain"):
        fetch(source(tmp_path, files=["train_hq.zip"]), LIMITS, 5.0)
    assert [request.range for request in server.asked("/train_hq.zip")] == ranges
    assert (tmp_path / "train_hq.zip").read_bytes() == archives["train_hq.zip"]
    assert not list(tmp_path.glob("*.part*"))
    assert f"http://{STORAGE_HOST}" in caplog.text
    assert "Signature" not in caplog.text


def test_a_part_of_an_older_file_is_not_gone_on_with(server: KaggleServer, tmp_path: Path) -> None:
    server.faults.extend([Fault(cut_after=CUT), *[Fault(status=503)] * 20])
    with pytest.raises(StorageError, match=f"http://{STORAGE_HOST} answered 503|http://{STORAGE_HOST} .* broke off"):
        fetch(source(tmp_path, files=["train_hq.zip"]), StorageConfig(deadline_s=0.1), 5.0)
    server.faults.clear()
    assert (tmp_path / "train_hq.zip.part").stat().st_size == 2 * 2**20
    newer = zipped({"train_hq/a_1.jpg": random.Random(1).randbytes(3 * 2**20)})
    server.competitions[CARVANA].files["train_hq.zip"] = newer
    fetch(source(tmp_path, files=["train_hq.zip"]), LIMITS, 5.0)
    assert (tmp_path / "train_hq.zip").read_bytes() == newer


def test_masks_may_come_as_run_lengths(server: KaggleServer, tmp_path: Path) -> None:
    config = source(tmp_path, files=["train_hq.zip", "train_masks.csv.zip"], masks="csv")
    assert fetch(config, LIMITS, 5.0) == CarvanaSource(path=str(tmp_path), images="train_hq", masks="csv")
    assert (tmp_path / "train_masks.csv").read_text().startswith("img,rle_mask\n")
    assert fetch(source(tmp_path, files=["train_masks.csv.zip"]), LIMITS, 5.0).images == "train"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {},
            "there is no key for Kaggle; make one at https://www.kaggle.com/settings/api and put it into KAGGLE_API",
        ),
        ({"KAGGLE_API_TOKEN": "wr0ng"}, "Kaggle does not know the key in KAGGLE_API_TOKEN; make one at"),
        ({"KAGGLE_USERNAME": "tester", "KAGGLE_KEY": "wr0ng"}, "Kaggle refuses the key: Unauthenticated; make one at"),
    ],
    ids=["missing", "wrong-token", "wrong-key"],
)
def test_a_key_that_is_missing_or_wrong_is_one_message(
    server: KaggleServer,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    message: str,
) -> None:
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with (tmp_path / "in").open("w+") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert prepare(tmp_path / "raw", tmp_path / "set") == 2
        assert sys.stdin is stdin
        assert not stdin.closed
    out, error = capfd.readouterr()
    assert out == ""
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert "wr0ng" not in error


def test_a_users_key_of_the_older_kind_serves(
    server: KaggleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    monkeypatch.setenv("KAGGLE_USERNAME", server.user)
    monkeypatch.setenv("KAGGLE_KEY", server.key)
    fetch(source(tmp_path, files=["train_masks.zip"]), LIMITS, 5.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"competition": "carvana"},
            r"Kaggle has no competition 'carvana', .*: Competition not found; set source\.comp",
        ),
        (
            {"files": ["train.zip"]},
            r"the competition '.*' has no 'train\.zip'; it has metadata\.zip, test_hq\.zip, train_hq\.zip, train_mas",
        ),
        ({"files": ["train_masks.csv"]}, r"source\.files: 'train_masks\.csv' is no \.zip archive"),
        ({"files": ["a/train.zip", "b/train.zip"]}, "two archives of one name"),
        ({"files": ["test_hq.zip"]}, r"test_hq\.zip and what is in them need 40\.0 GiB in .*, where .* GiB are free"),
        ({"files": ["metadata.zip"]}, "Kaggle has no competition '.*', or not what was asked of it: File not found"),
        ({"path": None}, r"source\.path is not set"),
        ({"path": "s3://bucket/raw"}, "give a local path"),
        ({"path": __file__}, "is not a folder"),
    ],
)
def test_each_mistake_is_named(
    server: KaggleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, object], message: str
) -> None:
    usage = dataclasses.make_dataclass("Usage", ["free"])
    monkeypatch.setattr("segtrain.prepare.sources.competition.shutil.disk_usage", lambda _: usage(39 * 2**30))
    with pytest.raises(UserError, match=message):
        fetch(source(tmp_path, **fields), LIMITS, 5.0)


def test_rules_must_be_accepted(server: KaggleServer, tmp_path: Path) -> None:
    server.competitions[CARVANA].rules_accepted = False
    with pytest.raises(UserError, match=f"You must accept .*https://www.kaggle.com/competitions/{CARVANA}/rules"):
        fetch(source(tmp_path), LIMITS, 5.0)


def test_space_is_looked_at_again_when_the_size_is_known(server: KaggleServer, tmp_path: Path) -> None:
    server.faults.append(Fault(announce=2**60))
    with pytest.raises(UserError, match=r"train_hq\.zip need 1073741824\.0 GiB in"):
        fetch(source(tmp_path), LIMITS, 5.0)
    assert not list(tmp_path.glob("train*"))


def test_without_a_network_it_gives_up_at_the_deadline(
    server: KaggleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(
        StorageError, match=r"http://localhost could not be reached .*attempts.* the same command again"
    ):
        fetch(source(tmp_path), StorageConfig(timeout_s=1.0, deadline_s=1.0), 5.0)


def test_a_folder_is_for_one_competition_and_one_download_at_a_time(server: KaggleServer, tmp_path: Path) -> None:
    config = source(tmp_path, files=["train_masks.zip"])
    fetch(config, LIMITS, 5.0)
    with pytest.raises(UserError, match=f"holds files of the competition '{CARVANA}'"):
        fetch(config.model_copy(update={"competition": "other"}), LIMITS, 5.0)
    with (tmp_path / ".kaggle-lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is downloading into"):
            fetch(config, LIMITS, 5.0)


def test_a_damaged_archive_is_removed_and_downloaded_again(
    server: KaggleServer, archives: dict[str, bytes], cars: Path, tmp_path: Path
) -> None:
    config = source(tmp_path, files=["train_masks.zip"])
    whole = archives["train_masks.zip"]
    server.competitions[CARVANA].files["train_masks.zip"] = whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]
    with pytest.raises(StorageError, match=r"train_masks\.zip is damaged \(.*\) and was removed; run the same command"):
        fetch(config, LIMITS, 5.0)
    assert not (tmp_path / "train_masks.zip").exists()
    server.competitions[CARVANA].files["train_masks.zip"] = whole
    fetch(config, LIMITS, 5.0)
    assert masks_of(tmp_path) == masks_of(cars)


def masks_of(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.glob("train_masks/*") if not path.name.startswith(".")}


def test_the_server_takes_the_submissions_of_the_real_client(server: KaggleServer, tmp_path: Path) -> None:
    (tmp_path / "masks.csv").write_text("img,rle_mask\na_1.jpg,1 1\n")
    command = [str(Path(sys.executable).with_name("kaggle")), "competitions"]
    for arguments, answer in (
        (["submit", CARVANA, "-f", "masks.csv", "-m", "first"], "Successfully submitted"),
        (["submissions", CARVANA], "first"),
    ):
        done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, answer in done.stdout) == (0, True), done
    assert [(one.description, one.content[:3]) for one in server.submissions] == [("first", b"img")]

"""Submissions with the real `kaggle` client to a local server that speaks Kaggle's calls, with no way out to others."""

import logging
import os
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from segtrain.config import StorageConfig
from segtrain.errors import StorageError, UserError
from segtrain.kaggle.submit import submit
from segtrain.storage.files import Storage, join
from tests.support.kaggle_server import STORAGE_HOST, KaggleServer, serve_kaggle
from tests.support.kaggle_state import Competition, Fault

CARVANA = "carvana-image-masking-challenge"
STORAGE = Storage(StorageConfig(timeout_s=10.0, deadline_s=120.0))
IMPATIENT = Storage(StorageConfig(timeout_s=1.0, deadline_s=0.5))
CONTENT = b"img,rle_mask\n" + b"".join(b"%012d_01.jpg,%d 1\n" % (number, number) for number in range(1, 100_000))
SIZE = len(CONTENT)
CUT = 2**20
"""Bytes of a half-sent file: more than sockets hold."""


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[KaggleServer]:
    """The competition; this process knows the server and its key."""
    for name in [name for name in os.environ if name.startswith("KAGGLE_")]:
        monkeypatch.delenv(name)
    with serve_kaggle() as server:
        server.competitions[CARVANA] = Competition(score="0.99714")
        for name, value in server.environment(tmp_path_factory.mktemp("home")).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("KAGGLE_API_TOKEN", server.token)
        yield server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "submission.csv"
    path.write_bytes(CONTENT)
    return path


def send(file: Path, storage: Storage = STORAGE, competition: str = CARVANA) -> float:
    return submit(str(file), competition, "five folds", storage, poll_s=0.01)


def trace(error: BaseException) -> str:
    """All that `--debug` shows of an error."""
    return "".join(traceback.format_exception(error))


def ranges(server: KaggleServer) -> list[str | None]:
    return [request.range for request in server.requests if request.method == "PUT"]


def test_a_file_is_uploaded_scored_and_its_score_returned(
    server: KaggleServer, file: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    server.competitions[CARVANA].pending = 4
    with caplog.at_level(logging.INFO):
        assert send(file) == 0.99714
    (taken,) = server.submissions
    assert (taken.description, taken.file_name, taken.content) == ("five folds", "submission.csv", CONTENT)
    assert server.listed[1] == 5
    start = server.asked("/StartSubmissionUpload")[0].body
    assert start["contentLength"] == SIZE
    assert ranges(server) == [f"bytes 0-{SIZE - 1}/{SIZE}"]
    assert all(request.authorization is None for request in server.requests if request.host == STORAGE_HOST)
    assert "Kaggle has taken it as submission 1; waiting for its score" in caplog.text
    assert server.token not in caplog.text
    assert "blob-1" not in caplog.text  # what the upload's URL is secret by
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("faults", "sent"),
    [
        ([Fault(cut_after=CUT)], ["0-", "*", f"{CUT}-"]),
        ([Fault(stall_after=CUT)], ["0-", "*", f"{CUT}-"]),
        ([Fault(cut_after=CUT), Fault(), Fault(cut_after=CUT)], ["0-", "*", f"{CUT}-", "*", f"{2 * CUT}-"]),
        ([Fault(status=503)], ["0-", "*", "0-"]),
        ([Fault(cut_after=CUT), Fault(status=410)], ["0-", "*", "0-"]),
        ([Fault(cut_after=SIZE)], ["0-", "*"]),
    ],
    ids=["cut", "silent", "cut-twice", "unavailable", "expired", "answer-lost"],
)
def test_an_upload_that_breaks_off_goes_on_with_what_is_missing(
    server: KaggleServer, file: Path, faults: list[Fault], sent: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    server.faults.extend(faults)
    with caplog.at_level(logging.INFO, "segtrain"):
        assert send(file) == 0.99714
    assert [str(span).removeprefix("bytes ").partition("/")[0] for span in ranges(server)] == [
        f"{one}{SIZE - 1}" if one.endswith("-") else one for one in sent
    ]
    assert server.submissions[-1].content == CONTENT
    assert "trying again" in caplog.text
    assert "blob-" not in caplog.text


def test_a_submission_whose_answer_was_lost_is_not_made_twice(server: KaggleServer, file: Path) -> None:
    assert send(file) == 0.99714  # an earlier one with the same words
    server.competitions[CARVANA].lost_answers = 1
    server.competitions[CARVANA].score = "0.5"
    assert send(file) == 0.5
    assert len(server.submissions) == 2
    assert len(server.asked("/CreateSubmission")) == 2


def test_a_submission_may_lie_in_a_bucket(s3_root: str, server: KaggleServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    url = join(s3_root, "submission.csv")
    STORAGE.write_bytes(url, CONTENT)
    assert submit(url, CARVANA, "", STORAGE) == 0.99714
    assert server.submissions[0].content == CONTENT


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "there is no key for Kaggle; make one at https://www.kaggle.com/settings/api and put it into KAGGLE_API"),
        ({"KAGGLE_USERNAME": "tester", "KAGGLE_KEY": "wr0ng"}, "Kaggle refuses the key: Unauthenticated; make one at"),
    ],
    ids=["missing", "wrong"],
)
def test_a_key_that_is_missing_or_wrong_is_one_sentence(
    server: KaggleServer, file: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        send(file)
    assert str(caught.value).startswith(message)
    assert "wr0ng" not in trace(caught.value)
    assert not ranges(server)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            Competition(rules_accepted=False),
            f"Kaggle keeps '{CARVANA}' closed: You cannot submit until you accept the competition rules; see that "
            f"source.competition is right, and accept the rules at https://www.kaggle.com/competitions/{CARVANA}/rules",
        ),
        (
            Competition(refusal=(400, "Your team has used its daily Submission (5) allowance.")),
            f"Kaggle refuses the submission to '{CARVANA}': Your team has used its daily Submission (5) allowance; see",
        ),
        (
            Competition(refusal=(403, "Permission 'competitions.participate' was denied")),
            f"Kaggle keeps '{CARVANA}' closed: Permission 'competitions.participate' was denied; see that",
        ),
        (Competition(score=None), "Kaggle could not score submission 1: Submission must have 100064 rows; see https"),
    ],
    ids=["rules", "limit", "closed", "not-scored"],
)
def test_what_kaggle_refuses_is_one_sentence_in_its_own_words(
    server: KaggleServer, file: Path, state: Competition, message: str
) -> None:
    server.competitions[CARVANA] = state
    with pytest.raises(UserError) as caught:
        send(file)
    assert str(caught.value).startswith(message)
    assert server.token not in trace(caught.value)


def test_a_competition_that_is_not_there_is_named(server: KaggleServer, file: Path) -> None:
    with pytest.raises(UserError, match=r"Kaggle has no competition 'carvana', .*: Competition not found; set source"):
        send(file, competition="carvana")


def test_a_file_that_the_storage_refuses_is_named(server: KaggleServer, file: Path) -> None:
    server.faults.append(Fault(status=413))
    with pytest.raises(
        UserError, match=r"Kaggle's storage refuses submission\.csv \(2\.\d MiB\): one of the storage's"
    ):
        send(file)


def test_a_file_that_is_missing_or_empty_is_named_before_kaggle_is_asked(server: KaggleServer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        send(tmp_path / "none.csv")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(UserError, match=r"empty\.csv is empty; write the submission again"):
        send(tmp_path / "empty.csv")
    assert not server.requests


def test_an_upload_that_does_not_get_on_ends_at_the_deadline(server: KaggleServer, file: Path) -> None:
    server.faults.extend([Fault(status=503)] * 50)
    with pytest.raises(StorageError, match=f"http://{STORAGE_HOST} answered 503 .*attempts") as caught:
        send(file, IMPATIENT)
    assert "blob-" not in trace(caught.value)


def test_a_score_that_does_not_come_is_waited_for_so_long_and_no_longer(server: KaggleServer, file: Path) -> None:
    server.competitions[CARVANA].pending = 10**9
    with pytest.raises(StorageError, match=r"not scored submission 1 in 0 s; look for it at https://www\.kaggle\.com/"):
        submit(str(file), CARVANA, "", STORAGE, poll_s=0.05, patience_s=0.3)

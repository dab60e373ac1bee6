"""Exit codes and messages that every job shares."""

import logging
import subprocess
import sys

import pytest

from segtrain import cli
from segtrain.errors import DataError, StorageError, UserError


def fail_with(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("name the key"), 2, "error: name the key\n"),
        (StorageError("s3://b/k: timed out"), 1, "error: s3://b/k: timed out\n"),
        (DataError("shard 3 is damaged"), 1, "error: shard 3 is damaged\n"),
        (FileNotFoundError(2, "No such file", "s3://b/k"), 1, "error: s3://b/k is not there\n"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on from here\n"),
    ],
)
def test_known_failures_are_one_message_and_a_code(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(lambda: fail_with(error)) == code
    assert capsys.readouterr() == ("", message)


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(lambda: fail_with(UserError("name the key")), debug=True) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.main(lambda: fail_with(ZeroDivisionError()))


def test_log_lines_go_to_stdout_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert cli.main(lambda: logging.getLogger("segtrain.data.prepare").info("checked 3 pictures")) == 0
    assert capsys.readouterr() == ("checked 3 pictures\n" * 2, "")


def test_a_closed_pipe_is_no_traceback() -> None:
    program = "import sys; from segtrain import cli; sys.exit(cli.main(lambda: print('x' * 1_000_000)))"
    command = f'"{sys.executable}" -c "{program}" | head -c 10'
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout == "x" * 10
    assert result.stderr == ""


@pytest.fixture(autouse=True)
def _logging_as_before() -> object:
    logger = logging.getLogger("segtrain")
    before = (logger.level, logger.handlers, logger.propagate)
    yield
    logger.level, logger.handlers, logger.propagate = before

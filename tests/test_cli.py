"""Exit codes and messages that every job shares."""

import argparse
import logging
import signal
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
        assert cli.main(lambda: logging.getLogger("segtrain.prepare.prepare_set").info("checked 3 pictures")) == 0
    assert capsys.readouterr() == ("checked 3 pictures\n" * 2, "")


def test_a_closed_pipe_is_no_traceback() -> None:
    program = "import sys; from segtrain import cli; sys.exit(cli.main(lambda: print('x' * 1_000_000)))"
    command = f'"{sys.executable}" -c "{program}" | head -c 10'
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout == "x" * 10
    assert result.stderr == ""


def test_log_lines_that_nobody_reads_are_no_traceback_either() -> None:
    line = "logging.getLogger('segtrain').info('x' * 1000)"
    program = f"import logging, sys; from segtrain import cli; sys.exit(cli.main(lambda: [{line} for _ in range(999)]))"
    command = f'"{sys.executable}" -c "{program}" | head -c 10'
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("x" * 10, "")


@pytest.fixture(autouse=True)
def _logging_as_before() -> object:
    logger = logging.getLogger("segtrain")
    before = (logger.level, logger.handlers, logger.propagate)
    yield
    logger.level, logger.handlers, logger.propagate = before


STOPPED = """
import os, signal, sys, time
from segtrain import cli
def run():
    try:
        os.kill(os.getpid(), {signal})
        time.sleep(600)
    finally:
        print("tidied up")
sys.exit(cli.main(run))
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_a_job_with_one_message_and_its_own_code_after_tidying_up(name: str, code: int) -> None:
    program = STOPPED.format(signal=f"signal.{name}")
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout) == (code, "tidied up\n")
    assert result.stderr == "interrupted; the same command goes on from here\n"


def test_who_handles_a_signal_otherwise_changes_nothing_of_the_code() -> None:
    """As Ray does, and a run that saves before it ends."""
    program = STOPPED.format(signal="signal.SIGTERM").replace(
        "    try:", "    signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))\n    try:"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert result.returncode == 143


DEAF = """
import os, signal, sys, time
from segtrain import cli
class Deaf:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
def run():
    {handler}
    Deaf()
    time.sleep(600)
sys.exit(cli.main(run))
"""


@pytest.mark.parametrize("handler", ["pass", "signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))"])
def test_a_signal_is_not_lost_where_python_ignores_what_its_handler_raises(handler: str) -> None:
    program = DEAF.format(handler=handler)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stderr) == (143, "interrupted; the same command goes on from here\n")


def test_what_nohup_ignores_stays_ignored() -> None:
    program = STOPPED.format(signal="signal.SIGHUP").replace("time.sleep(600)", "print('goes on')")
    result = subprocess.run(["nohup", sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout) == (0, "goes on\ntidied up\n")


def test_signals_are_handled_as_before_once_a_job_has_ended() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(lambda: None) == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_job_takes_its_arguments_and_settings_in_any_order_and_debug(capsys: pytest.CaptureFixture[str]) -> None:
    def run(args: argparse.Namespace) -> None:
        raise UserError(f"{args.place} {args.overrides}")

    job = cli.job("A job.", lambda parser: parser.add_argument("place"), run)
    assert job(["here", "a=1", "--debug", "b=2"]) == 2
    told = capsys.readouterr().err
    assert told.endswith("error: here ['a=1', 'b=2']\n")
    assert "Traceback" in told
    with pytest.raises(SystemExit) as ended:
        job(["--help"])
    assert ended.value.code == 0
    assert "A job." in capsys.readouterr().out

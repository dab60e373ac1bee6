"""`jobs/report.py` through its command line."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import made_runs
from tests.support.places import JOBS

JOB = JOBS / "report.py"


def test_a_report_is_written_and_named(tmp_path: Path) -> None:
    made_runs.write_run(tmp_path / "cars", epochs=1, panels=1)
    command = [sys.executable, str(JOB), "cars", "--out", "page.html"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "wrote page.html\n", "")
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}"], "holds neither a run nor a sweep"),
        (["{folder}", "storage.endpoint=x"], "did you mean 'storage.endpoint_url'"),
        (["gs://bucket/run"], "gs:// is not supported"),
        (["s3:/x"], "RUN_OR_SWEEP: s3:/x is no S3 URL"),
        (["{folder}", "--out", "~nosuchuser/x"], "--out: ~nosuchuser/x: there is no user"),
        (["{folder}", "storage.endpoint_url=http://a:geheim@h"], "holds no user and password"),
    ],
)
def test_a_mistake_is_one_message_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert runpy.run_path(str(JOB))["main"]([text.format(folder=tmp_path) for text in arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""

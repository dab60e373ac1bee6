"""Local paths that leave the process which was given them."""

from pathlib import Path

import pytest

from segtrain.errors import UserError
from segtrain.storage.paths import absolute_output, absolute_path


def test_a_local_path_is_that_of_the_working_folder_or_of_home_and_a_url_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    paths = ["runs", "~/runs", "/runs", "s3://bucket/runs"]
    assert [absolute_path(path) for path in paths] == [f"{tmp_path}/runs", "/home/me/runs", "/runs", "s3://bucket/runs"]


def test_what_a_job_writes_outlives_its_copy_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "pkg"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert absolute_output("run.storage", str(tmp_path / "runs")) == str(tmp_path / "runs")
    assert absolute_output("run.storage", "s3://bucket/runs") == "s3://bucket/runs"
    with pytest.raises(UserError, match=r"^run\.storage: 'runs' would be deleted with this job's copy"):
        absolute_output("run.storage", "runs")

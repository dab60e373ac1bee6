"""What a process finds around it: folders, and the settings of Keras."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from segtrain import cli, process
from segtrain.process import before_tensorflow, environment
from tests.support.places import REPOSITORY

NO_HOME = "/dev/null"
"""Where nothing can be made, by root neither."""
KERAS = """
from segtrain.process import before_tensorflow
before_tensorflow()
import keras
print(keras.config.backend(), keras.config.image_data_format(), keras.config.floatx(), keras.config.epsilon())
"""


def run(code: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("place", [before_tensorflow, lambda: cli.main(lambda: None)], ids=["a worker", "a job"])
def test_keras_runs_on_tensorflow_and_reads_no_settings_of_the_users(
    place: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"KERAS_BACKEND": "jax", "KERAS_HOME": "/x", "KERAS_NNX_ENABLED": "1"}.items():
        monkeypatch.setenv(name, value)
    place()
    assert os.environ["KERAS_BACKEND"] == "tensorflow"
    assert "KERAS_NNX_ENABLED" not in os.environ
    assert not Path(os.environ["KERAS_HOME"]).exists()
    with pytest.raises(NotADirectoryError):
        Path(os.environ["KERAS_HOME"]).mkdir(parents=True)


@pytest.mark.slow
@pytest.mark.parametrize("home", ["written", NO_HOME])
def test_keras_json_changes_nothing(home: str, tmp_path: Path) -> None:
    settings = {"floatx": "float16", "epsilon": 0.1, "backend": "jax", "image_data_format": "channels_first"}
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras/keras.json").write_text(json.dumps(settings))
    folder = str(tmp_path) if home == "written" else home
    said = run(KERAS, HOME=folder, KERAS_HOME=f"{folder}/.keras", KERAS_BACKEND="jax")
    assert said.split() == ["tensorflow", "channels_last", "float32", "1e-07"]


def test_no_folder_for_temporary_files_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nonexistent"])
    assert cli.main(lambda: pytest.fail("the job ran")) == 1
    assert capsys.readouterr().err.startswith(
        "error: no temporary file can be written in TMPDIR, /tmp or /var/tmp; set "
    )


def test_a_full_folder_for_temporary_files_is_one_sentence_before_the_job_begins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process, "LEAST_TEMPORARY_BYTES", 2**62)
    assert cli.main(lambda: pytest.fail("the job ran")) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tempfile.gettempdir()}, the folder for temporary files, has ")
    assert said.endswith("make room or set TMPDIR to another folder\n")


def test_a_folder_for_temporary_files_that_is_not_there_gives_way_to_another(tmp_path: Path) -> None:
    code = "from segtrain import cli; import tempfile; print(cli.main(lambda: print(tempfile.gettempdir())))"
    assert run(code, TMPDIR=str(tmp_path / "missing"), HOME=NO_HOME).split() == ["/tmp", "0"]


@pytest.mark.parametrize(("replace", "inside"), [(False, "by the user"), (True, "ours")])
def test_the_environment_is_as_before_after_the_block(
    replace: bool, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGTRAIN_SET", "by the user")
    with environment(SEGTRAIN_SET="ours", SEGTRAIN_NEW="ours", replace=replace):
        assert os.environ["SEGTRAIN_SET"] == inside
        assert os.environ["SEGTRAIN_NEW"] == "ours"
    assert os.environ["SEGTRAIN_SET"] == "by the user"
    assert "SEGTRAIN_NEW" not in os.environ

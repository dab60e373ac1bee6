"""`jobs/export.py` through its command line."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from segtrain.config import InferenceConfig, UNetConfig
from segtrain.inference.predictor import Predictor
from segtrain.models import build_model
from segtrain.storage.files import Storage
from tests.support.networks import load_members, probability_of
from tests.support.places import JOBS

JOB = JOBS / "export.py"
CONFIG = UNetConfig(filters=2, depth=1, convolutions=1)


def export(*arguments: object) -> int:
    code: int = runpy.run_path(str(JOB))["main"]([str(argument) for argument in arguments])
    return code


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves of its best epoch."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "best").mkdir()
    build_model(CONFIG).save(folder / "best" / "model.keras")
    facts = {"input": {"fit": "resize", "height": 8, "width": 10, "channels": 3}, "best_threshold": 0.25}
    (folder / "best" / "metrics.json").write_text(json.dumps({**facts, "model": CONFIG.model_dump(mode="json")}))
    return folder


@pytest.fixture(scope="module")
def saved(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SavedModel of that run."""
    folder = tmp_path_factory.mktemp("exported") / "saved"
    assert export(run, folder) == 0
    return folder


@pytest.mark.parametrize("name", ["saved", "out/network.keras"])
def test_what_is_exported_predicts_as_the_run_does(run: Path, saved: Path, tmp_path: Path, name: str) -> None:
    exported = saved if name == "saved" else tmp_path / name
    if name != "saved":
        assert export(run, exported) == 0
    picture = np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8)
    own, other = (
        Predictor(load_members(str(path), Storage(), trust_saved_model=True), InferenceConfig())
        for path in (run, exported)
    )
    np.testing.assert_allclose(probability_of(other, picture), probability_of(own, picture), rtol=0, atol=1e-6)
    assert other.threshold == own.threshold == 0.25
    metrics = (exported if exported.is_dir() else exported.parent) / "metrics.json"
    assert metrics.read_bytes() == (run / "best" / "metrics.json").read_bytes()


def test_a_saved_model_needs_tensorflow_alone(run: Path, saved: Path) -> None:
    serve = tf.saved_model.load(str(saved)).signatures["serving_default"]
    pictures = np.random.default_rng(0).random((2, 9, 11, 3), np.float32)
    ((name, taken),) = serve.structured_input_signature[1].items()
    assert (taken.shape.as_list(), taken.dtype) == ([None, None, None, 3], tf.float32)
    (found,) = serve(**{name: tf.constant(pictures)}).values()
    (member,) = load_members(str(run), Storage())
    np.testing.assert_allclose(found, member.apply(tf.constant(pictures)), rtol=0, atol=1e-5)


def test_nothing_is_written_over(run: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.json").write_text("another model's")
    for destination, there in ((saved, saved), (tmp_path / "a.keras", tmp_path / "metrics.json")):
        assert export(run, destination) == 2
        assert f"error: {there} is there already; remove it or" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_what_is_not_one_network_of_keras_is_refused(
    run: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, message in (
        (f"{run},{run}", "is an ensemble; export its members one by one"),
        (saved, "is a SavedModel already"),
        (tmp_path / "nothing", "holds no trained network"),
    ):
        assert export(source, tmp_path / "out") == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # imports TensorFlow in a process of its own
def test_tensorflow_says_nothing_and_leaves_no_temporary_file(run: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, str(JOB), str(run), str(tmp_path / "out")],
        env=environment | {"TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(JOB.parents[1])},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"wrote {tmp_path}/out\n", "")
    assert list((tmp_path / "tmp").iterdir()) == []

"""Trained networks are found wherever they are, and what is none is told apart in one sentence."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from segtrain.config import InferenceConfig, UNetConfig
from segtrain.errors import UserError
from segtrain.inference.export import export
from segtrain.inference.load_networks import Member
from segtrain.inference.predictor import Predictor
from segtrain.inference.stored_networks import Facts, threshold_of
from segtrain.models import build_model
from segtrain.storage.files import Storage, join
from tests.support.networks import load_members, probability_of

CONFIG = UNetConfig(filters=2, depth=1, convolutions=1, norm="batch")
METRICS: dict[str, Any] = {
    "dice_hard_original": 0.9,
    "best_threshold": 0.375,
    "fold": 1,
    "input": {"fit": "resize", "height": 16, "width": 24, "channels": 3},
    "model": CONFIG.model_dump(mode="json"),
    "threshold_curve": {"thresholds": [0.25, 0.375, 0.5], "dice": [0.5, 0.9, 0.8], "pictures": 10},
}
PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def write_run(folder: Path, seed: int, **metrics: Any) -> Path:
    """What a run leaves of its best epoch."""
    (folder / "best").mkdir(parents=True)
    build_model(CONFIG, seed=seed).save(folder / "best" / "model.keras")
    (folder / "best" / "metrics.json").write_text(json.dumps({**METRICS, **metrics}))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two folds and their ensemble, and of what was exported from the first."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "fold-0", 0)
    curve = {"thresholds": [0.25, 0.375, 0.5], "dice": [0.5, 0.6, 0.9], "pictures": 30}
    write_run(folder / "fold-1", 1, best_threshold=0.5, threshold_curve=curve)
    entry = {"format_version": 1, "members": ["fold-0", "fold-1"], "best_threshold": 0.5}
    (folder / "ensemble.json").write_text(json.dumps(entry))
    export(str(folder / "fold-0"), str(folder / "saved"), Storage())
    export(str(folder / "fold-0"), str(folder / "kept" / "model.keras"), Storage())
    return folder


def load(source: str | Path) -> Member:
    """The one network of `source`."""
    (member,) = load_members(str(source), Storage(), trust_saved_model=True)
    return member


@functools.cache
def fold(number: int, runs: Path) -> Member:
    """The network of one of the two runs, loaded once for all tests."""
    return load(runs / f"fold-{number}")


def probability(*members: Member) -> np.ndarray:
    return probability_of(Predictor(members, InferenceConfig()), PICTURE)


def test_a_run_brings_the_size_grid_and_threshold_that_it_was_trained_with(runs: Path) -> None:
    member = fold(0, runs)
    assert member.size == (16, 24)
    assert member.multiple == 2
    assert member.facts is not None
    assert member.facts.model == CONFIG
    assert member.facts.fold == 1
    assert Predictor([member], InferenceConfig()).threshold == 0.375
    assert Predictor([member], InferenceConfig(threshold=0.6)).threshold == 0.6


@pytest.mark.parametrize("copy", ["saved", "kept/model.keras"])
def test_every_copy_of_a_network_gives_the_same_probabilities(runs: Path, copy: str) -> None:
    run, other = fold(0, runs), load(runs / copy)
    assert (other.size, other.multiple, other.facts) == (run.size, run.multiple, run.facts)
    np.testing.assert_allclose(probability(other), probability(run), rtol=0, atol=1e-6)


@pytest.mark.parametrize("source", ["{0}", "{0}/saved , {0}/fold-1/best/model.keras"])
def test_an_ensemble_is_the_mean_of_its_members(runs: Path, source: str) -> None:
    members = load_members(source.format(runs), Storage(), trust_saved_model=True)
    assert len(members) == 2
    wanted = (probability(fold(0, runs)) + probability(fold(1, runs))) / 2
    np.testing.assert_allclose(probability(*members), wanted, rtol=0, atol=1e-6)


def test_the_threshold_of_an_ensemble_is_the_best_over_all_their_pictures(runs: Path) -> None:
    members = [fold(0, runs), fold(1, runs)]
    # (10 * 0.8 + 30 * 0.9) / 40 against (10 * 0.9 + 30 * 0.6) / 40 at 0.375
    assert threshold_of([member.facts for member in members]) == 0.5
    without = Facts.model_validate({**METRICS, "threshold_curve": None})
    assert threshold_of([members[1].facts, without]) == 0.4375
    assert threshold_of([None]) == threshold_of([None, None]) == 0.5


def test_the_digest_names_the_networks_and_their_order(runs: Path, tmp_path: Path) -> None:
    digests = [
        Predictor(load_members(source.format(runs), Storage(), trust_saved_model=True), InferenceConfig()).digest
        for source in ("{0}/fold-0", "{0}", "{0}/fold-1,{0}/fold-0", "{0}/saved")
    ]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in digests)
    shutil.copytree(runs / "fold-0", tmp_path / "moved")
    assert Predictor([load(tmp_path / "moved")], InferenceConfig()).digest == digests[0]


def test_a_model_from_elsewhere_takes_pictures_at_their_own_size(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(1, 3)]).save(tmp_path / "valid.keras")
    build_model(CONFIG).save(tmp_path / "ours.keras")
    fixed = keras.Sequential([keras.Input((8, 10, 3)), keras.layers.Conv2D(1, 1)])
    fixed.export(tmp_path / "fixed", format="tf_saved_model", verbose=False)
    assert load(tmp_path / "valid.keras").size is None
    assert load(tmp_path / "valid.keras").multiple == 32
    assert load(tmp_path / "ours.keras").multiple == 2
    assert load(tmp_path / "fixed").size == (8, 10)
    for name in ("ours.keras", "fixed"):
        assert probability(load(tmp_path / name)).shape == PICTURE.shape[:2]


def test_a_run_that_trained_on_crops_takes_pictures_at_their_own_size(tmp_path: Path) -> None:
    member = load(write_run(tmp_path / "crops", 0, input={"fit": "crop", "height": 16, "width": 24, "channels": 3}))
    assert member.size is None


@pytest.mark.slow  # loads and exports again what the tests above do, through storage that has tests of its own
def test_models_are_read_from_and_exported_to_a_bucket(runs: Path, s3_root: str) -> None:
    storage = Storage()
    for path in sorted(runs.rglob("*")):
        if path.is_file():
            storage.write_file(join(s3_root, "runs", path.relative_to(runs).as_posix()), path)
    export(join(s3_root, "runs", "fold-1"), join(s3_root, "saved"), storage)
    wanted = probability(load(runs / "fold-1"))
    for source in ("runs/fold-1", "saved"):
        np.testing.assert_allclose(probability(load(join(s3_root, source))), wanted, rtol=0, atol=1e-6)
    assert len(load_members(join(s3_root, "runs"), storage)) == 2
    with pytest.raises(UserError, match="holds no trained network"):
        load(join(s3_root, "nothing"))


def save(path: Path, *layers: Any, channels: int = 3) -> None:
    keras.Sequential([keras.Input((None, None, channels)), *layers]).save(path)


def two_inputs(path: Path) -> None:
    a, b = keras.Input((None, None, 3)), keras.Input((None, None, 3))
    keras.Model([a, b], keras.layers.Conv2D(1, 1)(keras.layers.Add()([a, b]))).save(path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"no zip"), r"x\.keras is no \.keras file"),
        (lambda path: Path(shutil.make_archive(str(path), "zip", path.parent)).rename(path), "is no Keras model"),
        (lambda path: None, r"there is no .*x\.keras"),
        (lambda path: save(path, keras.layers.Conv2D(1, 1), channels=4), r"x\.keras takes pictures of 4 channels"),
        (lambda path: save(path, keras.layers.Conv2D(2, 1)), r"x\.keras gives 2 channels"),
        (lambda path: save(path, keras.layers.GlobalAveragePooling2D()), "a network from pictures to logits is needed"),
        (two_inputs, "it has several inputs or outputs"),
    ],
)
def test_a_file_that_is_no_network_is_named(tmp_path: Path, write: Callable[[Path], Any], message: str) -> None:
    write(tmp_path / "x.keras")
    with pytest.raises(UserError, match=message):
        load(tmp_path / "x.keras")


def no_signature(folder: Path) -> None:
    tf.saved_model.save(tf.Module(), str(folder))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: None, "holds no trained network"),
        (lambda folder: (folder / "saved_model.pb").write_bytes(b"nothing"), "is no SavedModel"),
        (no_signature, "is no SavedModel"),
        (lambda folder: (folder / "ensemble.json").write_text("{}"), r"ensemble\.json is not what folds=all writes"),
        (lambda folder: (folder / "ensemble.json").write_text("["), r"ensemble\.json is not what folds=all writes"),
        (
            lambda folder: (folder / "ensemble.json").write_text('{"format_version": 2, "members": ["a"]}'),
            "format version 2",
        ),
        (
            lambda folder: (folder / "ensemble.json").write_text('{"format_version": 1, "members": ["a"]}'),
            r"there is no .*/a/best/model\.keras",
        ),
        (
            lambda folder: (folder / "ensemble.json").write_text('{"format_version": 1, "members": []}'),
            "names no member",
        ),
    ],
)
def test_a_folder_that_holds_no_network_is_named(tmp_path: Path, write: Callable[[Path], Any], message: str) -> None:
    write(tmp_path)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_half_a_saved_model_is_named(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "saved", tmp_path / "half")
    data = tmp_path / "half" / "saved_model.pb"
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(UserError, match="half is no SavedModel"):
        load(tmp_path / "half")


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ("{", r"metrics\.json is no JSON"),
        ("{}", r"metrics\.json: input: Field required"),
        (json.dumps({**METRICS, "model": {"kind": "unet", "depth": "deep"}}), r"metrics\.json: model\.unet\.depth"),
        (json.dumps({**METRICS, "input": {"fit": "resize", "height": 16}}), r"metrics\.json: input\.width"),
        (json.dumps({**METRICS, "best_threshold": float("nan")}), r"metrics\.json: best_threshold: .* finite number"),
        (json.dumps({**METRICS, "best_threshold": 1.5}), r"metrics\.json: best_threshold: "),
        ("[" * 100_000, r"metrics\.json is no JSON"),
    ],
)
def test_facts_that_cannot_be_used_are_named(tmp_path: Path, stored: str, message: str) -> None:
    build_model(CONFIG).save(tmp_path / "model.keras")
    (tmp_path / "metrics.json").write_text(stored)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "model.keras")


def test_a_source_between_commas_must_not_be_empty(runs: Path) -> None:
    with pytest.raises(UserError, match="names an empty model"):
        load_members(f"{runs},", Storage())

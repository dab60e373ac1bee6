"""Networks as files: read whole, of one version, and programs only on the user's word."""

import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from segtrain.config import UNetConfig
from segtrain.errors import UserError
from segtrain.inference import stored_networks
from segtrain.inference.stored_networks import read_networks, threshold_of
from segtrain.runs.networks import recipe_to_score
from segtrain.storage.files import Storage

STORAGE = Storage()
FACTS: dict[str, Any] = {
    "input": {"fit": "resize", "height": 8, "width": 8},
    "model": UNetConfig(filters=2, depth=1).model_dump(mode="json"),
}


def write_best(run: Path, model: bytes, threshold: float) -> Path:
    """What training keeps of an epoch; nobody loads the network here."""
    write_model(run, model)
    write_metrics(run, model, threshold)
    return run


def write_model(run: Path, model: bytes) -> None:
    STORAGE.write_bytes(str(run / "best" / "model.keras"), model)


def write_metrics(run: Path, model: bytes, threshold: float) -> None:
    digest = hashlib.sha256(model).hexdigest()
    text = json.dumps({**FACTS, "best_threshold": threshold, "model_sha256": digest})
    STORAGE.write_bytes(str(run / "best" / "metrics.json"), text.encode())


def saved_model(folder: Path) -> Path:
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"program")
    (folder / "variables" / "v").write_bytes(b"numbers")
    return folder


class TestSavedModels:
    """A SavedModel is a program."""

    REFUSED = r"saved is a SavedModel, a program .* type inference\.trust_saved_model=true with the command"

    def test_it_is_not_read_unless_the_user_says_so(self, tmp_path: Path) -> None:
        saved = saved_model(tmp_path / "saved")
        run = write_best(tmp_path / "run", b"net", 0.5)
        for source in (f"{saved}", f"{run},{saved}", f"{saved} , {run}"):
            with pytest.raises(UserError, match=self.REFUSED):
                read_networks(source, STORAGE)
            assert "saved_model" in {one.kind for one in read_networks(source, STORAGE, trust_saved_model=True)}

    def test_no_recipe_vouches_for_it(self, tmp_path: Path) -> None:
        run = write_best(tmp_path / "run", b"net", 0.5)
        (run / "recipe.yaml").write_text("inference: {trust_saved_model: true, flip: true}\n")
        recipe = recipe_to_score(str(run), "set", [])
        assert (recipe.inference.flip, recipe.inference.trust_saved_model) == (True, False)
        assert recipe_to_score(str(run), "set", ["inference.trust_saved_model=true"]).inference.trust_saved_model

    def test_the_members_of_an_ensemble_are_runs_and_never_programs(self, tmp_path: Path) -> None:
        saved_model(tmp_path / "fold-0")
        (tmp_path / "ensemble.json").write_text('{"format_version": 1, "members": ["fold-0"]}')
        with pytest.raises(UserError, match=r"there is no .*fold-0/best/model\.keras"):
            read_networks(str(tmp_path), STORAGE, trust_saved_model=True)


class TestOneVersion:
    """While a run replaces its best network, the network and its facts are of one epoch."""

    def test_a_reader_waits_for_the_facts_of_a_new_network(self, tmp_path: Path) -> None:
        run = write_best(tmp_path, b"first", 0.25)
        write_model(run, b"second")

        def finish() -> None:
            time.sleep(0.5)
            write_metrics(run, b"second", 0.75)

        writer = threading.Thread(target=finish)
        writer.start()
        (network,) = read_networks(str(run), STORAGE)
        writer.join()
        assert (network.files["model.keras"], threshold_of([network.facts])) == (b"second", 0.75)

    def test_a_pair_that_stays_unlike_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stored_networks, "SETTLES_IN_S", 0.3)
        run = write_best(tmp_path, b"first", 0.25)
        write_model(run, b"second")
        with pytest.raises(
            UserError, match=r"model\.keras and metrics\.json beside it are not of one network.*train on"
        ):
            read_networks(str(run), STORAGE)

    def test_the_first_network_of_a_run_waits_for_its_facts_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stored_networks, "SETTLES_IN_S", 0.3)
        (tmp_path / "owner").write_text("a chief")
        write_model(tmp_path, b"first")
        with pytest.raises(UserError, match="are not of one network"):
            read_networks(str(tmp_path), STORAGE)

    def test_never_is_a_network_read_with_the_facts_of_another(self, tmp_path: Path) -> None:
        run = write_best(tmp_path, b"1", 0.01)
        done = threading.Event()

        def replace() -> None:
            for number in range(2, 60):
                write_best(run, b"%d" % number, number / 100)
            done.set()

        writer = threading.Thread(target=replace)
        writer.start()
        seen = set()
        while not done.is_set():
            (network,) = read_networks(str(run), STORAGE)
            assert threshold_of([network.facts]) == int(network.files["model.keras"]) / 100
            seen.add(network.digest)
        writer.join()
        assert seen


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ('{"best_threshold": NaN}', r"best_threshold: "),
        ('{"best_threshold": Infinity}', r"best_threshold: "),
        ('{"best_threshold": 1.5}', r"best_threshold: "),
        ("[" * 100_000, r"is no JSON"),
        ("\xff\xff", r"is no JSON"),
        ("[1]", r"Input should be a valid dictionary"),
    ],
    ids=["nan", "infinite", "beyond", "deep", "bytes", "list"],
)
def test_facts_that_say_nothing_are_named(tmp_path: Path, metrics: str, message: str) -> None:
    text = json.dumps(FACTS)[:-1] + "," + metrics[1:] if metrics.startswith("{") else metrics
    (tmp_path / "model.keras").write_bytes(b"net")
    (tmp_path / "metrics.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        read_networks(str(tmp_path / "model.keras"), STORAGE)

"""Two commands on one folder of predictions or scores, and a best network that is replaced meanwhile: real jobs."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.held_jobs import running
from tests.support.labelled import LabelledSet, write_run

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture
def run(labelled: LabelledSet, tmp_path: Path) -> Path:
    return Path(write_run(tmp_path / "runs" / "first", labelled.root, "data.fold=1", best_threshold=0.25))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def made(folder: Path) -> dict[str, bytes]:
    """What predicting or scoring leaves, but for who has made it last and when the pictures were looked at."""
    return {name: data for name, data in files(folder).items() if "owner" not in name and "parts" not in name}


@pytest.mark.parametrize("hold", [r"prediction\.json", r"masks/", r"\.part$", r"prediction\.owner"])
def test_of_two_predictions_one_goes_on_and_the_other_says_so(
    labelled: LabelledSet, run: Path, tmp_path: Path, hold: str
) -> None:
    command = ("predict", run, labelled.root, tmp_path / "out", "inference.workers=1")
    with running(*command, folder=tmp_path / "1", hold=hold) as first:
        assert first.wait_until_held()
        with running(*command, folder=tmp_path / "2") as second:
            code = second.wait()
            first.let_go()
            codes = {first.wait(): first.output, code: second.output}
    assert 0 in codes
    assert all("was taken over by another process" in text for code, text in codes.items() if code)
    with running("predict", run, labelled.root, tmp_path / "alone", folder=tmp_path / "3") as alone:
        assert alone.wait() == 0, alone.output
    assert made(tmp_path / "out") == made(tmp_path / "alone")


@pytest.mark.parametrize("job", ["predict", "evaluate"])
def test_a_network_that_is_replaced_meanwhile_is_not_mixed_with_the_one_before(
    labelled: LabelledSet, run: Path, tmp_path: Path, job: str
) -> None:
    places = {"predict": [tmp_path / "out"], "evaluate": ["--out", tmp_path / "out"]}
    other = Path(write_run(tmp_path / "runs" / "other", labelled.root, "train.seed=7", best_threshold=0.75))
    command = (job, run, labelled.root, *places[job], "data.fold=1", "inference.workers=2")
    with running(*command, folder=tmp_path / "1", hold="owner$") as held:
        assert held.wait_until_held()
        for name in ("model.keras", "metrics.json"):
            shutil.copyfile(other / "best" / name, run / "best" / name)
        held.let_go()
        assert held.wait() == 0, held.output
    name = {"predict": "prediction.json", "evaluate": "summary.json"}[job]
    assert json.loads((tmp_path / "out" / name).read_text())["threshold"] == 0.25
    before = Path(write_run(tmp_path / "again" / "first", labelled.root, "data.fold=1", best_threshold=0.25))
    other_place = {"predict": [tmp_path / "alone"], "evaluate": ["--out", tmp_path / "alone"]}[job]
    with running(job, before, labelled.root, *other_place, "data.fold=1", folder=tmp_path / "2") as alone:
        assert alone.wait() == 0, alone.output
    differing = {name for name, data in made(tmp_path / "out").items() if made(tmp_path / "alone").get(name) != data}
    assert differing <= {"summary.json", "prediction.json"}, "which name the network's place and its bytes"

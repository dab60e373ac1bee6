"""Every two jobs that may meet in one folder, and what must hold afterwards; for tests and for a benchmark.

One wins or both are right; the one that did not win says so in a sentence; nothing of the two is mixed.
"""

import json
import random
import shutil
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segtrain.config import Recipe, StorageConfig, override
from segtrain.dataset.manifest import Manifest, read_index, read_manifest
from segtrain.dataset.verify import verify
from segtrain.prepare.prepare_set import prepare
from segtrain.runs.best_files import why_unusable
from segtrain.runs.trials import read_trials
from segtrain.storage.files import Storage
from segtrain.training.checkpoint import Checkpoints
from tests.support.held_jobs import HeldJob, running
from tests.support.places import EARLIER_VERSION
from tests.support.small_sources import save_pair

storage = Storage(StorageConfig())

SMALL = (
    *("model.filters=2", "model.depth=1", "data.height=48", "data.width=64", "train.global_batch_size=8"),
    *("train.epochs=2", "evaluation.panels=1", "run.storage=runs", "train.deterministic=true"),
)
SWEEP = (
    *("tune", "empty.yaml", "data.root=halves", *SMALL, "run.name=sweep", "tune.space={model.filters: {grid: [2, 3]}}"),
    *("tune.search=grid", "tune.stop=none", "--resume=auto"),
)
FOLDS = ("train", "empty.yaml", "data.root=halves", *SMALL, "run.name=folds", "folds=all")
TRAIN = ("train", "empty.yaml", "data.root=set", *SMALL, "run.name=new")
ADD = ("prepare", "folder", "set", "source.path=more", "prepare.min_row_groups=1")
PREDICT = ("predict", "runs/finished", "set", "out", "inference.workers=1")
EVALUATE = ("evaluate", "runs/finished", "set", "--out", "out", "inference.workers=1")
EXTEND = ("train", "runs/finished/recipe.yaml", "train.epochs=4", "--extend")


@dataclass(frozen=True)
class Pair:
    """Two command lines; the second begins once `after` is there, at once where nothing is given."""

    first: Sequence[str]
    second: Sequence[str]
    check: Callable[[Path], None]
    after: str = ""
    says: str = "another"
    """Part of what the one that did not win says."""
    both: bool = field(default=False)
    """Whether both must end with 0."""


def lay_out(folder: Path) -> Path:
    """Pictures, two data sets, more pictures for one of them, and a finished run."""
    with tarfile.open(EARLIER_VERSION) as archive:
        archive.extractall(folder, filter="data")
    made = folder / "segtrain-e885e46"
    for name in ("raw", "set"):
        (made / name).rename(folder / name)
    (folder / "runs").mkdir()
    (made / "runs" / "finished").rename(folder / "runs" / "finished")
    shutil.rmtree(made)
    recipe = folder / "runs" / "finished" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("/tmp/segtrain-e885e46", str(folder)))
    for name, first, count in (("more", 20, 4), ("other", 40, 6)):
        for number in range(first, first + count):
            mask = np.zeros((48, 64), np.uint8)
            mask[8:24, number - 10 : number + 8] = 255
            save_pair(folder / name, f"p{number}", np.stack([mask // 2 + number] * 3, axis=-1), mask)
    (folder / "empty.yaml").write_text("{}\n")
    recipe_of_halves = override(
        Recipe(), [f"source.path={folder / 'raw'}", "prepare.folds=2", "prepare.min_row_groups=4"]
    )
    prepare(recipe_of_halves, str(folder / "halves"), parallel=False)
    return folder


def meet(pair: Pair, folder: Path, apart_s: float) -> None:
    """Run both, the second so much later, and check how they end and what they leave."""
    with running(*pair.first, folder=folder / "first", cwd=folder) as first:
        while pair.after and not (folder / pair.after).exists() and first.process.poll() is None:
            time.sleep(0.05)
        time.sleep(apart_s)
        with running(*pair.second, folder=folder / "second", cwd=folder) as second:
            jobs = [first, second]
            codes = [job.wait(600.0) for job in jobs]
            for job, code in zip(jobs, codes, strict=True):
                _ended_well(pair, job, code)
    assert 0 in codes, f"{codes}: {first.output}{second.output}"
    assert not pair.both or codes == [0, 0], f"{codes}: {first.output}{second.output}"
    pair.check(folder)
    left = [path.name for path in folder.rglob("*") if path.name.endswith(".segtrain-tmp")]
    assert left == []


def apart_s() -> float:
    """Seconds between the two, another number each time."""
    return random.uniform(0.0, 2.0)


def _ended_well(pair: Pair, job: HeldJob, code: int) -> None:
    assert "Traceback" not in job.output, job.output
    assert code in (0, 1, 2), job.output
    assert code == 0 or pair.says in job.output, f"it does not say why it ended: {job.output}"


def _sound_set(root: Path) -> Manifest:
    manifest = read_manifest(storage, str(root))
    assert verify(storage, str(root), manifest, 5.0, parallel=False) == []
    return manifest


def _ids(root: Path) -> set[str]:
    return set(read_index(storage, str(root), read_manifest(storage, str(root)))["id"].to_pylist())


def two_sources(folder: Path) -> None:
    _sound_set(folder / "new")
    raw, other = ({path.stem for path in (folder / name / "images").iterdir()} for name in ("raw", "other"))
    assert _ids(folder / "new") in (raw, other, raw | other)


def run_of(name: str, epochs: int = 2) -> Callable[[Path], None]:
    """A finished run all of whose parts are of one chief."""

    def check(folder: Path) -> None:
        run = folder / "runs" / name
        cursor = Checkpoints(str(run), storage, keep=2).cursor()
        assert cursor.epoch == epochs
        assert why_unusable(str(run), storage, cursor.best_step) is None
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [line["step"] for line in lines if line["kind"] == "step"]
        assert steps == list(range(1, cursor.step + 1)), "each step is there once"
        assert len([line for line in lines if line["kind"] == "epoch"]) == epochs

    return check


def grown_set_and(check: Callable[[Path], None]) -> Callable[[Path], None]:
    def both(folder: Path) -> None:
        assert _sound_set(folder / "set").pictures == 24
        check(folder)

    return both


def extended_and(check: Callable[[Path], None]) -> Callable[[Path], None]:
    def both(folder: Path) -> None:
        run_of("finished", 4)(folder)
        check(folder)

    return both


def folds(folder: Path) -> None:
    members = json.loads((folder / "runs" / "folds" / "ensemble.json").read_text())["members"]
    assert list(members) == ["fold-0", "fold-1"]
    for name in members:
        run_of(f"folds/{name}")(folder)


def first_fold(folder: Path) -> None:
    """Of the folds and a training of one of them either may win; the ensemble is there only where all folds are."""
    run_of("folds/fold-0")(folder)
    if (folder / "runs" / "folds" / "ensemble.json").exists():
        folds(folder)


def sweep(folder: Path) -> None:
    trials = read_trials(str(folder / "runs" / "sweep"), storage)
    assert [trial.status for trial in trials] == ["finished", "finished"]
    for number in range(2):
        run_of(f"sweep/trials/{number:04}")(folder)
    rows = (folder / "runs" / "sweep" / "leaderboard.csv").read_text().splitlines()
    assert len(rows) == 3


def masks(folder: Path) -> None:
    """Every picture of the set before or after it grew has a mask, and a part that names it."""
    stems = {path.stem for path in (folder / "out" / "masks").iterdir()}
    before = {f"p{number:02}" for number in range(20)}
    assert stems in (before, before | {f"p{number}" for number in range(20, 24)})


def scores(folder: Path) -> None:
    summary = json.loads((folder / "out" / "summary.json").read_text())
    rows = (folder / "out" / "pictures.csv").read_text().splitlines()
    assert len(rows) == 1 + summary["pictures"]


def page(folder: Path) -> None:
    assert (folder / "page.html").read_text().rstrip().endswith("</html>")


PAIRS = {
    "prepare+prepare": Pair(
        ("prepare", "folder", "new", "source.path=raw"), ("prepare", "folder", "new", "source.path=other"), two_sources
    ),
    "prepare+train": Pair(TRAIN, ADD, grown_set_and(run_of("new")), both=True),
    "prepare+predict": Pair(PREDICT, ADD, grown_set_and(masks), both=True),
    "prepare+evaluate": Pair(EVALUATE, ADD, grown_set_and(scores), both=True),
    "train+train": Pair(TRAIN, TRAIN, run_of("new")),
    "folds+folds": Pair(FOLDS, FOLDS, folds),
    "folds+train of one": Pair(
        FOLDS, (*FOLDS[:3], *SMALL, "run.storage=runs/folds", "run.name=fold-0", "data.fold=0"), first_fold
    ),
    "tune+tune": Pair(SWEEP, SWEEP, sweep),
    "tune+train of a trial": Pair(
        SWEEP, ("train", "runs/sweep/trials/0000/recipe.yaml"), sweep, after="runs/sweep/trials/0000/checkpoints"
    ),
    "predict+predict": Pair(PREDICT, PREDICT, masks),
    "evaluate+evaluate": Pair(EVALUATE, EVALUATE, scores),
    "evaluate+train": Pair(
        EXTEND, EVALUATE, lambda folder: (run_of("finished", 4)(folder), scores(folder))[0], both=True
    ),
    "predict+train": Pair(EXTEND, PREDICT, extended_and(masks), both=True),
    "export+train": Pair(EXTEND, ("export", "runs/finished", "out"), run_of("finished", 4), both=True),
    "report+train": Pair(
        TRAIN, ("report", "runs/new", "--out", "page.html"), page, after="runs/new/metrics.jsonl", both=True
    ),
    "report+tune": Pair(
        SWEEP,
        ("report", "runs/sweep", "--out", "page.html"),
        page,
        after="runs/sweep/trials/0000/trial.json",
        both=True,
    ),
}

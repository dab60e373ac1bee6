"""Whatever a stored file holds, jobs that read it end right or name it: data sets, runs, sweeps and predictions."""

import copy
import json
import shutil
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segtrain.config import Recipe, StorageConfig, override
from segtrain.dataset import describe
from segtrain.dataset.data_set import read_data_set
from segtrain.dataset.manifest import MANIFEST_NAME, read_index, read_manifest
from segtrain.dataset.verify import verify
from segtrain.launch.workload import workload_of
from segtrain.prediction import ledger
from segtrain.report.write import write_report
from segtrain.runs.run_folder import recipe_of
from segtrain.runs.trials import read_sweep, read_trials
from segtrain.storage.files import Storage
from tests.support.judging import FEW, MANY, bounded_memory, cases, ends_well, sandbox
from tests.support.places import EARLIER_VERSION

storage = Storage(StorageConfig())
DEEP = "[" * 100_000
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**62, 10**12, 1e308, float("inf"), float("nan"), 0.5, "", "x", "..",
    "../../x", "/etc/passwd", "a\nb", "x" * 10_000, [], {}, [None], {"a": 1}, [[]], ["a", "a"], "\ud800", "=1+1",
)  # fmt: skip


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[list[int], str, Any]]:
    """Where (by choices on the way down), what to do there, and with which value."""
    one = st.tuples(
        st.lists(st.integers(0, 40), min_size=1, max_size=6),
        st.sampled_from(["replace", "replace", "replace", "remove", "double", "add"]),
        st.sampled_from(ODD),
    )
    return draw(st.lists(one, min_size=1, max_size=3))


def changed(tree: Any, steps: list[tuple[list[int], str, Any]]) -> Any:
    """A copy of a JSON tree with changes at the places that the choices lead to."""
    tree = copy.deepcopy(tree)
    for way, what, drawn in steps:
        value = copy.deepcopy(drawn)
        node, parent, key = tree, None, None
        for choice in way:
            if not isinstance(node, dict | list) or not node:
                break
            parent = node
            key = sorted(node)[choice % len(node)] if isinstance(node, dict) else choice % len(node)
            node = parent[key]
        if parent is None:
            continue
        if what == "remove":
            del parent[key]
        elif what == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(node))
        elif what == "add" and isinstance(parent, dict):
            parent["surprise"] = value
        else:
            parent[key] = value
    return tree


damage = st.one_of(
    changes().map(lambda steps: lambda text: json.dumps(changed(json.loads(text), steps)).encode()),
    st.sampled_from([b"", b"null", b"[]", b"{}", b"1", DEEP.encode(), b"\xff\xfe", b'{"a": 1, "a": 2}', b"NaN"]).map(
        lambda data: lambda text: data
    ),
    st.floats(0, 1).map(lambda share: lambda text: text[: int(share * len(text))]),
)
Damage = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    with tarfile.open(EARLIER_VERSION) as archive:
        archive.extractall(folder, filter="data")
    return folder / "segtrain-e885e46"


def spoil(path: Path, harm: Damage) -> None:
    path.write_bytes(harm(path.read_bytes()))


def run_set_case(made: Path, harm: Damage) -> None:
    with sandbox() as box, bounded_memory():
        shutil.copytree(made / "set", box.raw / "set")
        root = str(box.raw / "set")
        spoil(box.raw / "set" / MANIFEST_NAME, harm)
        read: list[Any] = []
        ends_well(lambda: read.append(read_manifest(storage, root)), root)
        for manifest in read:
            problems: list[Any] = []
            ends_well(lambda m=manifest, p=problems: p.extend(verify(storage, root, m, 5.0, parallel=False)), root)
            ends_well(lambda m=manifest: describe.overview(m, root), root)
            ends_well(lambda m=manifest: describe.statistics(read_index(storage, root, m)), root, "index")
            ends_well(
                lambda m=manifest: describe.preview(storage, root, m, read_index(storage, root, m), 3), root, "part-"
            )
            recipe = override(Recipe(), [f"data.root={root}"])
            ends_well(lambda r=recipe: workload_of(r, read_data_set(storage, r.data)), root, "data.", "part-", "fold")


FACTS = {
    "sweep.json": lambda box: read_sweep(str(box.raw / "run"), storage),
    "trials/0001/trial.json": lambda box: read_trials(str(box.raw / "run"), storage),
    "best/metrics.json": lambda box: write_report(str(box.raw / "run"), storage, str(box.out / "report.html")),
    "goodput.json": lambda box: write_report(str(box.raw / "run"), storage, str(box.out / "report.html")),
    "metrics.jsonl": lambda box: write_report(str(box.raw / "run"), storage, str(box.out / "report.html")),
    "recipe.yaml": lambda box: recipe_of(str(box.raw / "run"), storage),
    "prediction.json": lambda box: ledger.check_prediction(storage, str(box.raw / "run"), {"pictures": "x"}),
}
FOLDERS = {"sweep.json": "runs/sweep", "trials/0001/trial.json": "runs/sweep", "prediction.json": "masks"}


def run_facts_case(made: Path, name: str, harm: Damage) -> None:
    with sandbox() as box, bounded_memory():
        run = box.raw / "run"
        shutil.copytree(made / FOLDERS.get(name, "runs/killed"), run)
        (run / name).chmod(0o644)
        try:
            spoil(run / name, harm)
        except ValueError:  # not one JSON text: a log or YAML takes the text as it is
            (run / name).write_bytes(b"{" + (run / name).read_bytes())
        ends_well(partial(FACTS[name], box), str(run), name.rpartition("/")[2])


@cases(40, FEW)
@given(harm=damage)
def test_a_manifest_of_any_content_is_read_or_named(made: Path, harm: Damage) -> None:
    run_set_case(made, harm)


@pytest.mark.slow
@cases(40, MANY)
@given(harm=damage)
def test_ten_times_as_many_manifests(made: Path, harm: Damage) -> None:
    run_set_case(made, harm)


@cases(30, FEW)
@given(name=st.sampled_from(sorted(FACTS)), harm=damage)
def test_a_fact_of_any_content_is_read_or_named(made: Path, name: str, harm: Damage) -> None:
    run_facts_case(made, name, harm)


@pytest.mark.slow
@cases(30, MANY)
@given(name=st.sampled_from(sorted(FACTS)), harm=damage)
def test_ten_times_as_many_facts(made: Path, name: str, harm: Damage) -> None:
    run_facts_case(made, name, harm)

"""The names in a run's folder stand in one place."""

import ast
import re
from pathlib import Path

import pytest

from segtrain.runs.run_folder import RunFolder
from tests.support.places import REPOSITORY

PACKAGE = REPOSITORY / "segtrain"
LABELS = {
    ("report/coordinates.py", "best"),
    ("report/run_page.py", "best"),
    ("report/charts.py", "checkpoints"),
    ("runs/goodput.py", "checkpoints"),
}
"""Words on pages that are no names of files."""


@pytest.mark.parametrize(
    "name",
    [
        "recipe.yaml",
        "metrics.json",
        "ensemble.json",
        "best",
        "checkpoints",
        "goodput.json",
        "owner",
        "metrics.jsonl",
        "stuck",
    ],
)
def test_a_name_in_a_runs_folder_is_a_literal_of_one_module(name: str) -> None:
    modules = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if name in _literals(path)}
    assert {module for module in modules if (module, name) not in LABELS} == {"runs/run_folder.py"}


def _literals(path: Path) -> set[str]:
    """Words of all texts of a module but docstrings, parts of f-strings included, that can be names of files.

    A word that is no path, such as `best`, counts where it is the whole text.
    """
    tree = ast.parse(path.read_text())
    prose = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            words = [word.rstrip(".") for word in re.split(r"[^\w./-]+", node.value)]
            paths = [word for word in words if len(words) == 1 or "/" in word or "." in word]
            found.update(part for path in paths for part in path.split("/"))
    return found


def test_a_bucket_has_the_same_names_as_a_disk() -> None:
    assert RunFolder("s3://bucket/runs/cars").best_model == "s3://bucket/runs/cars/best/model.keras"
    assert RunFolder("runs/cars").checkpoints == "runs/cars/checkpoints"

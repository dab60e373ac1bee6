"""What the pages of documentation promise: they are current, short where they must be, and name files that exist."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def test_the_page_of_settings_is_what_the_settings_say() -> None:
    spec = importlib.util.spec_from_file_location("write_settings", ROOT / "docs" / "write_settings.py")
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    assert (ROOT / "docs" / "settings.md").read_text() == writer.page(), "docs/settings.md is old: run `make docs`"


def test_the_readme_is_read_in_a_few_minutes() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    assert len(text.split()) <= 1300


def test_the_readme_has_a_small_picture() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert pictures
    assert all((ROOT / picture).stat().st_size < 200 * 1024 for picture in pictures)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("git is missing, or this is no checkout")
    files = tracked.stdout.split()
    named = set(re.findall(r"`((?:[a-z_0-9]+/)+[a-zA-Z_0-9]+\.(?:py|yaml|toml))\b", page.read_text()))
    assert [name for name in named if not any(f"/{file}".endswith(f"/{name}") for file in files)] == []

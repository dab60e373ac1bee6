"""One browser for the tests of pages, and the folders that they read."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from segtrain import report
from segtrain.storage import Storage
from tests.report import made


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium; tests are skipped where none is installed."""
    if made.CHROMIUM is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with made.chromium() as opened:
        yield opened


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four epochs, with its report."""
    folder = tmp_path_factory.mktemp("runs") / "cars"
    made.write_run(folder)
    report.write(str(folder), Storage())
    return folder


@pytest.fixture(scope="session")
def sweep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of twenty trials, two failed and two infeasible, with its report."""
    folder = tmp_path_factory.mktemp("sweeps") / "search"
    made.write_made_sweep(folder, made.make_trials(20))
    report.write(str(folder), Storage())
    return folder

"""One browser for the tests of pages, and the folders that they read."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from segtrain.report.write import write_report
from segtrain.storage.files import Storage
from tests.support import made_runs


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium; tests are skipped where none is installed."""
    if made_runs.CHROMIUM is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with made_runs.chromium() as opened:
        yield opened


@pytest.fixture(scope="session")
def sweep_page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> made_runs.Seen:
    """The page of `made_runs.SCORED` and other trials, opened once; a test leaves it as it was."""
    folder = tmp_path_factory.mktemp("sweeps") / "search"
    made_runs.write_made_sweep(folder, [*made_runs.make_trials(20), made_runs.HOSTILE])
    return made_runs.open_page(browser, Path(write_report(str(folder), Storage())))

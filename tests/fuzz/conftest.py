"""A quiet log, and one memory account a module."""

import pytest


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of lines about rejected pictures are of no use."""
    caplog.set_level("ERROR", logger="segtrain")

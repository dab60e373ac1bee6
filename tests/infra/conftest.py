"""A stand-in for AWS."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.aws import Moto, serve_moto


@pytest.fixture
def moto(tmp_path: Path) -> Iterator[Moto]:
    """A moto server of the test's own, which checks no keys."""
    with serve_moto(tmp_path) as server:
        yield server

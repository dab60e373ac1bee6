"""Lines of a process that no user watches."""

import logging
from collections.abc import Iterator

import pytest

from segtrain.cluster.log_forwarding import forward_warnings


@pytest.fixture(autouse=True)
def _handlers_as_before() -> Iterator[None]:
    logger = logging.getLogger("segtrain")
    before = list(logger.handlers)
    yield
    logger.handlers = before


def test_warnings_are_shown_and_lesser_lines_are_not() -> None:
    shown: list[str] = []
    forward_warnings(shown.append)
    logger = logging.getLogger("segtrain.dataset.reader")
    logger.info("read")
    logger.warning("picture %s is damaged", "a")
    assert shown == ["picture a is damaged"]


def test_a_line_that_cannot_be_shown_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)  # else it writes a traceback to stderr, and goes on too
    shown: list[str] = []

    def fail(line: str) -> None:
        shown.append(line)
        raise ConnectionError("the mailbox is gone")

    forward_warnings(fail)
    logging.getLogger("segtrain").warning("lost")
    assert shown == ["lost"]

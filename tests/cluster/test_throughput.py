"""The lines that say how far a long job is."""

import logging
import time

import pytest

from segtrain.cluster.throughput import MIB, Pace


def test_a_line_comes_every_few_seconds_and_one_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    with caplog.at_level(logging.INFO, logger="segtrain"), pytest.MonkeyPatch.context() as patched:
        patched.setattr(logging.getLogger("segtrain"), "propagate", True)
        patched.setattr(time, "monotonic", lambda: now_s)
        pace = Pace("checked", 40, 10.0)
        for now_s in (4.0, 11.0, 12.0, 20.0):  # noqa: B007 - the clock reads it
            pace.add(10, 22 * MIB)
    assert [record.message for record in caplog.records] == [
        "checked 20 of 40 pictures, 2/s, 4.0 MiB/s, 11 s left",
        "checked 40 pictures, 2/s, 4.4 MiB/s",
    ]

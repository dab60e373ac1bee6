"""A client of S3 that nobody uses any more is closed quietly, whichever thread happens to let go of it."""

import asyncio
import gc
import logging
import threading

import pytest

from segtrain.storage.files import Storage, join
from tests.support.waiting import WITHIN_S, wait_until


def test_a_client_let_go_of_in_another_event_loop_is_closed_in_its_own(
    s3_root: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As where the garbage collector runs in a thread of Ray, or of a server, that has a loop of its own."""
    caplog.set_level(logging.WARNING)
    held = [Storage()]
    held[0].write_bytes(join(s3_root, "object"), b"bytes")
    assert held[0]._remote is not None
    connector = held[0]._remote._objects.s3._endpoint.http_session._sessions[None]._connector
    assert not connector.closed

    async def let_go() -> None:
        held.clear()
        gc.collect()
        for _ in range(round(WITHIN_S / 0.05)):
            await asyncio.sleep(0.05)
            if connector.closed:
                break

    told: list[str] = []
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _, context: told.append(str(context)))
    thread = threading.Thread(target=loop.run_until_complete, args=(let_go(),))
    thread.start()
    thread.join()
    gc.collect()  # a task whose exception nobody has fetched tells of it when it goes
    loop.close()
    assert connector.closed
    assert (told, caplog.text) == ([], "")


def test_a_client_let_go_of_in_a_thread_without_a_loop_is_closed_too(
    s3_root: str, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage()
    storage.write_bytes(join(s3_root, "object"), b"bytes")
    assert storage._remote is not None
    connector = storage._remote._objects.s3._endpoint.http_session._sessions[None]._connector
    del storage
    gc.collect()
    wait_until(lambda: connector.closed, "the client is closed")  # s3fs waits a tenth of a second for it
    assert caplog.text == ""

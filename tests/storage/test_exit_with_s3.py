"""The interpreter ends well while an S3 client is open: pyarrow's has waited for ever at that place (arrow#50188)."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from segtrain.storage.files import Storage, join
from tests.support.fault_proxy import Fault, FaultProxy

ENDS_WITHIN_S = 300.0
DEADLINE_S = 10_000.0
"""Of a read: who ends within the seconds above has not waited for it."""
PROGRAM = """
import sys, threading, time
from segtrain.config import StorageConfig
from segtrain.storage.files import Storage

url, how, timeout_s, deadline_s = sys.argv[1:]
storage = Storage(StorageConfig(timeout_s=float(timeout_s), deadline_s=float(deadline_s)))
size = storage.size(url)

def read(times):
    for turn in range(times):
        assert len(storage.read_range(url, turn % 100, size - 100)) == size - 100

times, daemon = (10, False) if how == "done" else (10**9, True)
threads = [threading.Thread(target=read, args=(times,), daemon=daemon) for _ in range(4)]
for thread in threads:
    thread.start()
if how == "done":
    for thread in threads:
        thread.join()
time.sleep(0.2)
print("last line", flush=True)
if how == "error":
    raise RuntimeError("nobody catches this")
"""


@contextlib.contextmanager
def _running(url: str, how: str, timeout_s: float = 30.0) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM, url, how, str(timeout_s), str(DEADLINE_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        try:
            yield program
        finally:
            program.kill()


@pytest.mark.parametrize("how", ["done", "reading", "error"])
def test_a_program_ends_without_closing_anything(how: str, s3_root: str) -> None:
    url = join(s3_root, "shard")
    Storage().write_bytes(url, os.urandom(2**20))
    with _running(url, how) as first, _running(url, how) as second:
        for program in (first, second):
            out, errors = program.communicate(timeout=ENDS_WITHIN_S)
            assert program.returncode == (1 if how == "error" else 0), errors
            assert out == "last line\n"
            if how == "done":
                assert errors == ""  # threads that still read are told that the client has ended, and say so


def test_a_program_ends_by_the_timeout_while_a_read_stalls(s3_root: str, fault_proxy: FaultProxy) -> None:
    url = join(s3_root, "shard")
    Storage().write_bytes(url, os.urandom(2**20))
    fault_proxy.inject(Fault("stall", times=None, match="shard"))
    with _running(url, "reading", timeout_s=2.0) as program:
        _, errors = program.communicate(timeout=ENDS_WITHIN_S)
    assert program.returncode == 0, errors
    assert fault_proxy.injected["stall"] >= 1

"""Freed memory stays with the process, so that the next picture need not be faulted in again."""

import subprocess
import sys

MEASURE = """
import resource, sys
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from segtrain.process import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()

def touch(_):
    for _ in range(20):
        blocks = [bytearray(7_000_000) for _ in range(2)]
        del blocks

with ThreadPoolExecutor(2) as pool:
    list(pool.map(touch, range(2)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    list(pool.map(touch, range(2)))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, how], capture_output=True, text=True, check=True, timeout=300
    )
    return int(found.stdout)


def test_blocks_of_a_pictures_size_are_not_faulted_in_again_and_again() -> None:
    assert page_faults("keep") < page_faults("leave") / 4

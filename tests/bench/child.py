"""What has to be measured in a process of its own, because it cannot be undone or comes only once in a process.

    python -m tests.bench.child start ROOT CACHE       open a data set: seconds to the first batch
    python -m tests.bench.child article FILES PAIRS serial|parallel   the article's pipeline, with malloc as it comes
    python -m tests.bench.child rates ROOT             a line on stdin names a rate, a line on stdout is
    python -m tests.bench.child rates ROOT deterministic   `[pairs, seconds]`

`rates` lets two processes, one of them with deterministic ops, take turns; while one waits it takes no CPU.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import keras
import tensorflow as tf

from segtrain.config.batch_split import batch_split
from segtrain.dataset.data_set import read_data_set
from segtrain.pipeline.sample_order import sample_order
from segtrain.pipeline.worker_data import TrainingData
from segtrain.runs.status import World
from segtrain.storage.files import Storage
from tests.bench import other_readers
from tests.bench.feed import SMALL_BATCH, full_recipe, small_recipe, steady_epochs
from tests.bench.measuring import REPOSITORY, Measured, steady, touch

RECIPES = {"full": full_recipe, "small": small_recipe}


class Child:
    """A `rates` process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def measure(self, name: str) -> Measured:
        """The steady rate of one of `RECIPES`."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{name}\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise RuntimeError(f"the child that measures {name} ended with code {self._process.wait()}")
        return Measured(*json.loads(answer))


@contextmanager
def rates_in_child(root: str, *, deterministic: bool) -> Iterator[Child]:
    """A `rates` process for the block."""
    command = [sys.executable, "-m", "tests.bench.child", "rates", root]
    command += ["deterministic"] if deterministic else []
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Child(process)


def start(root: str, cache: str) -> float:
    """Seconds from opening the data set to the first batch of 16 at 96x128.

    What an S3 URL makes segtrain import is part of it; what every run imports is not.
    """
    started = time.perf_counter()
    recipe, storage = small_recipe(root, node_cache=cache), Storage()
    data_set = read_data_set(storage, recipe.data)
    split = batch_split(SMALL_BATCH, sample_order(recipe, data_set.manifest).lanes, 1, 1, None)
    with closing(TrainingData(recipe, data_set, storage, World(), split)) as data:
        batch = next(data.batches(0, 0))
        touch(batch.replicas[0][:2])
        return time.perf_counter() - started


def article(files: str, pairs: str, how: str) -> Measured:
    """The steady rate of the article's pipeline; `files` are two lists as JSON."""
    stream = other_readers.article(*json.loads(files), parallel=how == "parallel")
    return steady(stream, 2 * other_readers.ARTICLE_BATCH, int(pairs))


def rates(root: str, *, deterministic: bool) -> None:
    if deterministic:
        keras.utils.set_random_seed(0)
        tf.config.experimental.enable_op_determinism()
    for name in sys.stdin:
        measured = steady_epochs(RECIPES[name.strip()](root, cache="off"))
        print(json.dumps([measured.pairs, measured.seconds]), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "start":
        print(json.dumps(start(*sys.argv[2:])))
    elif sys.argv[1] == "article":
        print(json.dumps(article(*sys.argv[2:])[:2]))
    else:
        rates(sys.argv[2], deterministic="deterministic" in sys.argv[3:])

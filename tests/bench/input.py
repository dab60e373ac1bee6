"""How fast pictures come in, beside the decoder alone and beside other readers: one command, one table.

    make bench-input
    .venv/bin/python -m tests.bench.input [--rounds 5] [--pairs 192] [--only full,s3] [--json FILE] [--data FOLDER]

Every reader reads the same drawn pairs (1918x1280, about 100 KB a JPEG) on the same cores. Readers take turns, round
after round, since a shared machine drifts by a fifth within minutes: rates are medians over the rounds, and a ratio is
the median of the rounds' ratios. Nothing is left afterwards, except in FOLDER, which keeps the drawn pairs for another
time.
"""

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console

from tests.bench.measuring import Measured, cpu_s, run_module, take_turns
from tests.bench.report import ROWS, Starts, result_rows, results_table, server_sentence, start_sentence
from tests.support.seaweed import S3Server, serve_s3

ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}
USERS_OWN = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION")
START_PICTURES = 5000
CACHED_EPOCHS = 10
# A terminal's width where there is one; a file or a pipe gets lines that hold the whole table.
WIDTH_COLUMNS = 150

# In each round, so that what is compared comes one right after the other as far as that can be.
TURNS = (
    *("article", "article, parallel", "small, first epoch", "small, later epochs", "small, later epochs, every change"),
    *("limit", "full", "tfrecord", "crop", "full, opened", "cold", "warm"),
    *("full, normal", "full, deterministic", "small, normal", "small, deterministic", "ray"),
)

Readers = dict[str, Callable[[], Measured]]


def main() -> None:
    arguments = _arguments()
    for variable in USERS_OWN:
        os.environ.pop(variable, None)
    os.environ.update(ENVIRONMENT)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    console = Console(width=None if sys.stdout.isatty() else WIDTH_COLUMNS)
    progress = Console(stderr=True, highlight=False)
    rows = [row for row in ROWS if not arguments.only or row.group in arguments.only]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="segtrain-bench-")))
        bench = Bench(stack, arguments, folder)
        needed = {name for row in rows for name in (row.reader, row.against) if name}
        readers = {name: bench.readers[name] for name in TURNS if name in needed}
        measured = take_turns(
            readers, arguments.rounds, lambda number, name: progress.print(f"round {number + 1}: {name}")
        )
        results = result_rows(rows, measured)
        if results:
            console.print(results_table(results, arguments.pairs, arguments.rounds))
        if bench.has("s3"):
            console.print(server_sentence(measured["cold"], measured["warm"]))
        starts = bench.starts() if bench.has("start") else None
        if starts:
            console.print(start_sentence(starts))
    if arguments.json:
        raw = {name: [list(one) for one in each] for name, each in measured.items()}
        content = {"settings": vars(arguments), "rows": results, "measured": raw, "start": starts and starts._asdict()}
        Path(arguments.json).write_text(json.dumps(content, indent=1, default=str))


def _arguments() -> argparse.Namespace:
    groups = list(dict.fromkeys([*(row.group for row in ROWS), "start"]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=192, help="to train on, a multiple of 16 (views of a car)")
    parser.add_argument("--row-groups", type=int, default=24, help="at least so many in the local data set")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help=f"some of {','.join(groups)}")
    parser.add_argument("--json", help="file for every measurement")
    parser.add_argument("--data", type=Path, help="folder that keeps the drawn pairs")
    arguments = parser.parse_args()
    unknown = set(arguments.only) - set(groups)
    if unknown or arguments.pairs % 16:
        parser.error(f"no such rows: {', '.join(sorted(unknown))}" if unknown else "--pairs is no multiple of 16")
    return arguments


class Bench:
    """The pairs in every format, and every reader by name; only what the chosen rows need is made."""

    def __init__(self, stack: ExitStack, arguments: argparse.Namespace, folder: Path) -> None:
        # --help need not wait for what these import.
        from segtrain.process import keep_freed_memory
        from tests.bench.pairs import make_pairs

        keep_freed_memory()  # segtrain sets it for its process, so readers that share this one have it from the start
        self._stack, self._arguments, self._folder = stack, arguments, folder
        if arguments.data:
            arguments.data.mkdir(parents=True, exist_ok=True)
            (folder / "raw").symlink_to(arguments.data.resolve() / "raw")
            (arguments.data / "raw").mkdir(exist_ok=True)
        self._pairs = make_pairs(folder, arguments.pairs, arguments.row_groups)
        self._server: S3Server | None = None
        if self.has("s3", "start"):
            self._server = stack.enter_context(serve_s3())
            os.environ.update(self._server.environment())
        self.readers: Readers = {**self._beside(), **self._segtrain()}
        if self.has("s3"):
            self.readers |= self._from_s3()
        if self.has("determinism"):
            self.readers |= self._deterministic()

    def has(self, *groups: str) -> bool:
        """Whether one of these groups of rows was asked for."""
        return not self._arguments.only or not set(groups).isdisjoint(self._arguments.only)

    def _repeated(self) -> str:
        """A local set with every pair four times: a shorter epoch would say more of its start than of its rate."""
        from tests.bench.repeated import FOLDS, repeat

        root = self._folder / "repeated"
        if not root.exists():
            repeat(self._pairs.rows, str(root), FOLDS * self._arguments.pairs)
        return str(root)

    def _beside(self) -> Readers:
        """What segtrain is measured beside."""
        from tests.bench import other_readers, pairs
        from tests.bench.feed import FULL_BATCH
        from tests.bench.measuring import steady

        count, rows = self._arguments.pairs, self._pairs.rows
        files, record, parquet = self._pairs.files(), self._folder / "pairs.tfrecord", self._folder / "parquet"
        if self.has("tfrecord"):
            pairs.write_tfrecord(rows, record)
        if self.has("ray"):
            pairs.write_parquet(rows, parquet)
        ray_arguments = (parquet, pairs.HEIGHT, pairs.WIDTH, count * pairs.PARQUET_COPIES, FULL_BATCH)
        article = partial(run_module, "tests.bench.child", "article", json.dumps(files), count)
        return {
            "limit": lambda: steady(other_readers.limit(rows), count, count),
            "tfrecord": lambda: steady(other_readers.tfrecord(record, FULL_BATCH), count, count),
            "article": lambda: Measured(*article("serial")),
            "article, parallel": lambda: Measured(*article("parallel")),
            "ray": lambda: Measured(*run_module("tests.bench.ray_data", *ray_arguments)),
        }

    def _segtrain(self) -> Readers:
        from tests.bench import feed

        root, many = self._pairs.root, CACHED_EPOCHS * self._arguments.pairs
        return {
            "full": lambda: feed.steady_epochs(feed.full_recipe(root)),
            "crop": lambda: feed.steady_epochs(feed.crop_recipe(root)),
            "small, first epoch": lambda: feed.first_epoch(feed.small_recipe(self._repeated())),
            "small, later epochs": lambda: feed.later_epochs(feed.small_recipe(root), many),
            "small, later epochs, every change": lambda: feed.later_epochs(
                feed.small_recipe(root, feed.EVERY_CHANGE), many
            ),
        }

    def _from_s3(self) -> Readers:
        """The first epoch at full resolution, from local shards and from S3, each time opened anew."""
        from tests.bench import feed
        from tests.bench.repeated import FOLDS, repeat

        assert self._server is not None
        server, cache = self._server, self._folder / "node-cache"
        root = f"s3://{server.bucket}/repeated"
        repeat(self._pairs.rows, root, FOLDS * self._arguments.pairs)

        def cold() -> Measured:
            shutil.rmtree(cache, ignore_errors=True)
            return warm()

        def warm() -> Measured:
            before_s = cpu_s(server.process)
            measured = feed.first_epoch(feed.full_recipe(root, cache="disk", node_cache=str(cache)))
            return measured._replace(server_s=cpu_s(server.process) - before_s)

        return {
            "full, opened": lambda: feed.first_epoch(feed.full_recipe(self._repeated())),
            "cold": cold,
            "warm": warm,
        }

    def _deterministic(self) -> Readers:
        from tests.bench.child import rates_in_child

        readers: Readers = {}
        for kind in ("normal", "deterministic"):
            child = self._stack.enter_context(rates_in_child(self._pairs.root, deterministic=kind == "deterministic"))
            for name in ("full", "small"):
                readers[f"{name}, {kind}"] = partial(child.measure, name)
        return readers

    def starts(self) -> Starts:
        """Open a large set on S3 once a round, and once more with a proxy that counts requests."""
        from tests.bench.repeated import repeat

        assert self._server is not None
        root = f"s3://{self._server.bucket}/large"
        repeat(self._pairs.rows, root, START_PICTURES)
        seconds = [self._start(root, self._server.endpoint) for _ in range(self._arguments.rounds)]
        with _requests_of(self._server) as (endpoint, requests):
            self._start(root, endpoint)
        return Starts(START_PICTURES, seconds, requests)

    def _start(self, root: str, endpoint: str) -> float:
        """Seconds to the first batch, in a new process and with a new node cache."""
        cache = self._folder / "start-cache"
        try:
            return float(
                run_module("tests.bench.child", "start", root, cache, environment={"AWS_ENDPOINT_URL": endpoint})
            )
        finally:
            shutil.rmtree(cache, ignore_errors=True)


@contextmanager
def _requests_of(server: S3Server) -> Iterator[tuple[str, dict[str, int]]]:
    """An endpoint in front of the server, and what it was asked for by kind, filled in at the end."""
    from tests.support.fault_proxy import FaultProxy

    counts: dict[str, int] = {"GET": 0, "HEAD": 0, "LIST": 0}
    with FaultProxy(server.endpoint) as proxy:
        yield proxy.endpoint, counts
        for method, path, *_ in proxy.requests:
            key, _, query = path.partition("?")
            is_list = method == "GET" and (key.strip("/") in ("", server.bucket) or "list-type" in query)
            kind = "LIST" if is_list else method
            counts[kind] = counts.get(kind, 0) + 1


if __name__ == "__main__":
    main()

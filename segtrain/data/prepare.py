"""Source -> data set: pictures are checked, grouped into folds, and written as shards, in parallel and resumably.

What is known after a kill lies in `_prepare/` inside the data set: facts about checked pictures and finished shards.
The same command takes them up (files are read again and compared, not decoded again) and removes the folder at its
end. An earlier data set in the same place stays whole and readable until the new manifest takes its place.
"""

import contextlib
import datetime
import logging
import math
import os
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol, TypeVar

from segtrain.config import CarvanaSource, FolderSource, Recipe, SyntheticSource
from segtrain.data import checks, writing
from segtrain.data.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    IndexFile,
    Manifest,
    Shard,
    encode_index,
    read_index,
    read_manifest,
    write_manifest,
)
from segtrain.data.pairs import Checked, crc32c
from segtrain.data.shards import ROW_SCHEMA
from segtrain.data.sources import Picture, carvana, folder
from segtrain.data.splits import GroupSize, assign_folds
from segtrain.errors import DataError, UserError
from segtrain.storage import Storage, is_remote, join

logger = logging.getLogger(__name__)

UNFINISHED = "_prepare"
REJECTED_NAME = "rejected.csv"
DUPLICATES_NAME = "duplicates.csv"
CHUNK_PICTURES = 32
# Ray takes 10 to 20 s to start, in which two cores check over a thousand Carvana pairs; Pillow and zlib let threads
# run side by side. Fewer pictures than this are done by a pool of threads.
RAY_FROM_PICTURES = 2000
SHOWN_REJECTED = 5
FILE_NAMES = re.compile(r"part-\d+-[0-9a-f]{8}\.parquet|index-[0-9a-f]{16}\.parquet")

T = TypeVar("T")


class FanOut(Protocol):
    """Calls a function once for each tuple of arguments, side by side; yields what they return as they finish."""

    def __call__(self, function: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> Iterator[T]: ...


def prepare(recipe: Recipe, dest: str, *, parallel: bool = True) -> Manifest:
    """Make the data set that `recipe.source` and `recipe.prepare` describe in `dest`, and return its manifest.

    Sets of 2,000 pictures and more are spread over Ray, if `parallel`; smaller ones, and local files where the
    cluster has several nodes, over threads of this process. The same source and settings give the same fingerprint
    and the same bytes. Where `dest` holds a data set already, its groups keep their folds.

    Raises `UserError` for anything wrong with the source, and where more pairs than `prepare.allow_rejected` are bad;
    `rejected.csv` in `dest` then lists them, and nothing else is left behind.
    """
    storage = Storage(recipe.storage)
    earlier, kept = _earlier(storage, dest, recipe.prepare.folds)
    with _files_of(recipe.source) as source:
        pictures = _scan(source, storage)
        is_local = not (is_remote(dest) and is_remote(source.path or ""))
        try:
            with _fan_out(len(pictures), parallel=parallel, is_local=is_local) as fan_out:
                job = _Job(storage, dest, recipe, fan_out)
                good = job.check(pictures)
                folds = assign_folds(
                    _group_sizes(pictures, good), recipe.prepare.folds, seed=recipe.prepare.seed, kept=kept
                )
                pairs = writing.pair_up(pictures, good, folds)
                plans = writing.plan_shards(pairs, recipe.prepare)
                shards = job.write(plans, earlier)
        except UserError:
            _sweep(storage, dest, keep=earlier)
            raise
    manifest = _manifest(storage, dest, recipe, pairs, plans, shards)
    write_manifest(storage, dest, manifest)
    _sweep(storage, dest, keep=manifest)
    return manifest


class _Job:
    """The two parallel phases, which share where they read, write and report."""

    def __init__(self, storage: Storage, dest: str, recipe: Recipe, fan_out: FanOut) -> None:
        self._storage, self._dest, self._config, self._fan_out = storage, dest, recipe.prepare, fan_out
        self._unfinished = join(dest, UNFINISHED)
        self._every_s = recipe.run.progress_every_s

    def check(self, pictures: Sequence[Picture]) -> dict[str, Checked]:
        """Id -> facts of the good pairs. Bad pairs and duplicates across groups are written down and reported."""
        known = checks.load_facts(self._storage, self._unfinished)
        chunks = [pictures[start : start + CHUNK_PICTURES] for start in range(0, len(pictures), CHUNK_PICTURES)]
        calls = [
            (self._storage, chunk, {one.id: known[one.id] for one in chunk if one.id in known}) for chunk in chunks
        ]
        progress = _Progress("checked", len(pictures), self._every_s)
        good: dict[str, Checked] = {}
        bad: list[checks.Rejected] = []
        for found in self._fan_out(checks.check_chunk, calls):
            if any(checked != known.get(checked.id) for checked in found.good):
                checks.save_facts(self._storage, self._unfinished, found.good)
            good.update((checked.id, checked) for checked in found.good)
            bad += found.bad
            progress.add(len(found.good) + len(found.bad))
        self._report_rejected(bad)
        self._report_duplicates(pictures, good)
        return good

    def _report_rejected(self, bad: Sequence[checks.Rejected]) -> None:
        url = join(self._dest, REJECTED_NAME)
        if not bad:
            self._storage.delete(url)
            return
        self._storage.write_bytes(url, checks.rejected_csv(bad))
        shown = "; ".join(f"{one.image}: {one.reason}" for one in sorted(bad, key=lambda one: one.id)[:SHOWN_REJECTED])
        more = f"; and {len(bad) - SHOWN_REJECTED} more" if len(bad) > SHOWN_REJECTED else ""
        text = f"{len(bad)} bad pair{'s' * (len(bad) > 1)} (all in {url}): {shown}{more}"
        if len(bad) > self._config.allow_rejected:
            raise UserError(f"{text}. Mend or remove them, or set prepare.allow_rejected={len(bad)} to leave them out")
        logger.warning("left out %s", text)

    def _report_duplicates(self, pictures: Sequence[Picture], good: Mapping[str, Checked]) -> None:
        duplicates = checks.duplicates_across_groups(pictures, good)
        url = join(self._dest, DUPLICATES_NAME)
        if not duplicates:
            self._storage.delete(url)
            return
        self._storage.write_bytes(url, checks.duplicates_csv(duplicates))
        shown = "; ".join(" = ".join(f"{one.id} (group {one.group})" for one in same) for same in duplicates[:5])
        logger.warning(
            "warning: %d pictures stand in more than one group, byte for byte the same, and so may leak between folds "
            "(all in %s): %s",
            len(duplicates),
            url,
            shown,
        )

    def write(self, plans: Sequence[writing.ShardPlan], earlier: Manifest | None) -> list[Shard]:
        """Write the shards that are not there yet; their facts come in the order of `plans`."""
        finished = {shard.path: shard for shard in earlier.shards} if earlier else {}
        finished.update(writing.load_finished(self._storage, self._unfinished))
        calls = [(self._storage, self._dest, plan, finished.get(plan.path), self._unfinished) for plan in plans]
        progress = _Progress("wrote", sum(len(group) for plan in plans for group in plan.row_groups), self._every_s)
        shards: dict[str, Shard] = {}
        for shard in self._fan_out(writing.write_one, calls):
            shards[shard.path] = shard
            progress.add(shard.rows)
        return [shards[plan.path] for plan in plans]


class _Progress:
    """A plain line now and then, and one at the end."""

    def __init__(self, verb: str, total: int, every_s: float) -> None:
        self._verb, self._total, self._every_s = verb, total, every_s
        self._done = 0
        self._start_s = self._said_s = time.monotonic()

    def add(self, pictures: int) -> None:
        self._done += pictures
        now_s = time.monotonic()
        rate = self._done / max(now_s - self._start_s, 1e-3)
        if self._done == self._total:
            logger.info("%s %d pictures, %.0f/s", self._verb, self._total, rate)
        elif now_s - self._said_s >= self._every_s:
            self._said_s = now_s
            left_s = math.ceil((self._total - self._done) / max(rate, 1e-3))
            logger.info("%s %d of %d pictures, %.0f/s, %d s left", self._verb, self._done, self._total, rate, left_s)


@contextlib.contextmanager
def _files_of(source: CarvanaSource | FolderSource | SyntheticSource) -> Iterator[CarvanaSource | FolderSource]:
    """The source as files: synthetic pictures are drawn first, into a temporary folder where no path is set."""
    if not isinstance(source, SyntheticSource):
        yield source
        return
    if source.path is not None and is_remote(source.path):
        raise UserError("source.path: synthetic pictures are drawn into a local folder; give a local path or none")
    from segtrain.data.sources.synthetic import draw

    with contextlib.ExitStack() as stack:
        path = source.path or stack.enter_context(tempfile.TemporaryDirectory(prefix="segtrain-synthetic-"))
        logger.info("drawing %d pictures of %d cars", source.cars * source.views, source.cars)
        draw(source, Path(path), workers=os.cpu_count() or 1)
        yield CarvanaSource(path=path)


def _scan(source: CarvanaSource | FolderSource, storage: Storage) -> list[Picture]:
    return carvana.scan(source, storage) if isinstance(source, CarvanaSource) else folder.scan(source, storage)


def _earlier(storage: Storage, dest: str, folds: int) -> tuple[Manifest | None, dict[str, int]]:
    """The data set that is in `dest` already, and the fold of each of its groups."""
    if _is_file(storage, dest):
        raise UserError(f"{dest} is a file; name a folder for the data set")
    if not storage.exists(join(dest, MANIFEST_NAME)):
        return None, {}
    try:
        manifest = read_manifest(storage, dest)
        index = read_index(storage, dest, manifest)
    except (UserError, DataError) as error:
        raise UserError(f"{error}; here: delete {dest} first, or prepare into another folder") from None
    if len(manifest.folds) != folds:
        raise UserError(
            f"prepare.folds is {folds} but {dest} has {len(manifest.folds)} folds, which its groups keep; "
            f"set prepare.folds={len(manifest.folds)} or prepare into another folder"
        )
    return manifest, dict(zip(index["group"].to_pylist(), index["fold"].to_pylist(), strict=True))


def _is_file(storage: Storage, url: str) -> bool:
    try:
        storage.size(url)
    except FileNotFoundError:
        return False
    return True


def _group_sizes(pictures: Sequence[Picture], good: Mapping[str, Checked]) -> dict[str, GroupSize]:
    foreground: defaultdict[str, list[float]] = defaultdict(list)
    for one in pictures:
        if one.id in good:
            foreground[one.group].append(good[one.id].foreground)
    return {group: GroupSize(len(members), math.fsum(members)) for group, members in foreground.items()}


def _manifest(
    storage: Storage,
    dest: str,
    recipe: Recipe,
    pairs: Sequence[writing.Pair],
    plans: Sequence[writing.ShardPlan],
    shards: list[Shard],
) -> Manifest:
    """Write the index and describe the whole data set."""
    fingerprint = writing.fingerprint(plans)
    index = encode_index(writing.index_table(plans))
    index_file = IndexFile(path=f"index-{fingerprint}.parquet", bytes=len(index), crc32c=crc32c(index))
    storage.write_bytes(join(dest, index_file.path), index)
    heights, widths = zip(*((pair.checked.height, pair.checked.width) for pair in pairs), strict=True)
    return Manifest(
        format_version=FORMAT_VERSION,
        fingerprint=fingerprint,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        source=recipe.source.kind,
        pictures=len(pairs),
        groups=len({pair.picture.group for pair in pairs}),
        labelled=len(pairs),
        mean_foreground=math.fsum(pair.checked.foreground for pair in pairs) / len(pairs),
        min_height=min(heights),
        max_height=max(heights),
        min_width=min(widths),
        max_width=max(widths),
        row_schema=ROW_SCHEMA.to_string(),
        folds=writing.fold_facts(pairs, recipe.prepare.folds),
        shards=shards,
        index=index_file,
    )


def _sweep(storage: Storage, dest: str, keep: Manifest | None) -> None:
    """Remove what `prepare` has written into `dest` and `keep` does not name; other files are not touched."""
    named = {keep.index.path, *(shard.path for shard in keep.shards)} if keep else set()
    storage.delete(join(dest, UNFINISHED))
    names = storage.list(dest)
    folds = [name for name in names if name.startswith("fold=")]
    inside = [join(fold, name) for fold in folds for name in storage.list(join(dest, fold))]
    for path in [*names, *inside]:
        if FILE_NAMES.fullmatch(path.rpartition("/")[2]) and path not in named:
            storage.delete(join(dest, path))
    # Only local folders outlive their files.
    for path in [*folds, ""]:
        if not storage.list(join(dest, path)):
            storage.delete(join(dest, path))


@contextlib.contextmanager
def _fan_out(pictures: int, *, parallel: bool, is_local: bool) -> Iterator[FanOut]:
    """Ray tasks or threads, whichever is done first; a Ray that was started here is shut down again."""
    loaded = sys.modules.get("ray")
    is_up = loaded is not None and loaded.is_initialized()
    if not parallel or (pictures < RAY_FROM_PICTURES and not is_up):
        yield _on_threads
        return
    import ray

    if not is_up:
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
    try:
        nodes = sum(node["Alive"] for node in ray.nodes())
        if is_local and nodes > 1:
            logger.info("the cluster has %d nodes and not all of them see local files: working on this one", nodes)
        yield _on_threads if is_local and nodes > 1 else _on_ray
    finally:
        if not is_up:
            ray.shutdown()


def _on_threads(function: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> Iterator[T]:
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        yield from (future.result() for future in as_completed([pool.submit(function, *call) for call in calls]))
    finally:
        pool.shutdown(cancel_futures=True)


def _on_ray(function: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> Iterator[T]:
    import ray

    task = ray.remote(function)
    cpus = ray.cluster_resources().get("CPU", 1)
    at_once = 2 * max(1, int(cpus))
    waiting = list(reversed(calls))
    running: list[Any] = []
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(task.remote(*waiting.pop()))
        finished, running = ray.wait(running)
        try:
            yield from ray.get(finished)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # our own error, without the text of the remote traceback

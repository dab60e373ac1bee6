"""Source -> data set: pictures are checked, grouped into folds, and written as shards, in parallel and resumably.

A killed job leaves a folder `_prepare-<token>` inside the data set, with

- facts about checked pictures, and their packed masks,
- facts about finished shards.

The same command resumes from them: it reads files again and compares them, but does not decode them again. It removes
the folder at its end. An earlier data set in the same place stays whole and readable until the new manifest takes its
place; `segtrain.prepare.destination` says what happens when several writers meet.
"""

import contextlib
import datetime
import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from segtrain.cluster.fan_out import FanOut, fan_out
from segtrain.cluster.throughput import Pace
from segtrain.config import CarvanaSource, FolderSource, KaggleSource, Recipe, SyntheticSource
from segtrain.dataset.manifest import FORMAT_VERSION, IndexFile, Manifest, Shard, encode_index
from segtrain.dataset.mask_warnings import cautions
from segtrain.dataset.shards import ROW_SCHEMA
from segtrain.errors import DataError, StorageError, UserError, printable, shown, some_of
from segtrain.prepare import checks, write_shards
from segtrain.prepare.assign_folds import assign_folds
from segtrain.prepare.changes import CHANGES_NAME, Changes
from segtrain.prepare.destination import Destination
from segtrain.prepare.pairs import Checked
from segtrain.prepare.sources import Picture, carvana, competition, folder
from segtrain.prepare.stored_rows import Stored, know_shard, stored_pictures
from segtrain.prepare.union import Grouping, Pair, group_as_stored, kinds_of, merge
from segtrain.process import usable_cores
from segtrain.storage.checksums import crc32c
from segtrain.storage.files import Storage, is_remote, join, local_path
from segtrain.storage.scratch import remove_leftovers, scratch_folder

logger = logging.getLogger(__name__)

REJECTED_NAME = "rejected.csv"
DUPLICATES_NAME = "duplicates.csv"
CHUNK_PICTURES = 32
SHOWN_REJECTED = 5


def prepare(recipe: Recipe, dest: str, *, parallel: bool = True) -> Manifest:
    """Make the data set that `recipe.source` and `recipe.prepare` describe in `dest`, and return its manifest.

    - The same source and settings give the same fingerprint and the same bytes.
    - Where `dest` holds a data set already, the source's pictures are added to it. Pictures that are there keep their
      groups and folds. They stay where the source does not have them, unless `prepare.remove` is set.
    - Where nothing changes, nothing is written.
    - With `parallel`, sets of 2,000 pictures and more are spread over Ray. Smaller sets, and local files where the
      cluster has several nodes, are spread over threads of this process.

    Raises `UserError`

    - for anything wrong with the source;
    - where more pairs than `prepare.allow_rejected` are bad: `rejected.csv` in `dest` lists them, and nothing else is
      left behind;
    - for another kind of source than the data set's without `prepare.mix`;
    - where a picture changes meanwhile, and where another `prepare` has written `dest` since this one started.

    Raises `DataError` where a picture that has to stay is damaged.
    """
    remove_leftovers()
    storage = Storage(recipe.storage)
    target = Destination(storage, dest, recipe.prepare.folds, recipe.prepare.keep_versions)
    _check_kind(recipe, target)
    with _files_of(recipe) as source:
        pictures = carvana.scan(source, storage) if isinstance(source, CarvanaSource) else folder.scan(source, storage)
        is_local = not (is_remote(dest) and is_remote(source.path or ""))
        count = max(len(pictures), target.earlier.pictures if target.earlier else 0)
        with fan_out(count, parallel=parallel, is_local=is_local) as calls_side_by_side:
            job = _Job(target, recipe, calls_side_by_side)
            try:
                plans, changes = job.plan(pictures)
            except UserError:
                target.forget()
                raise
            _report_cautions(plans)
            shards = job.write(plans)
    manifest = target.land(_manifest(target, recipe, plans, shards))
    if manifest is target.earlier:
        logger.info("nothing changes in %s", dest)
    else:
        _keep_changes(target, changes)
    return manifest


class _Job:
    """The two parallel phases, which share where they read, write and report."""

    def __init__(self, target: Destination, recipe: Recipe, side_by_side: FanOut) -> None:
        self._target, self._storage, self._dest = target, target.storage, target.url
        self._config, self._side_by_side = recipe.prepare, side_by_side
        self._every_s = recipe.run.progress_every_s
        self._lost: dict[str, str] = {}

    def plan(self, source: Sequence[Picture]) -> tuple[list[write_shards.ShardPlan], Changes]:
        """The shards of the new data set, and the changes; logs changes and duplicates."""
        earlier, index = self._target.earlier, self._target.index
        stored = {} if earlier is None or index is None else stored_pictures(earlier, index)
        grouping = group_as_stored(source, stored)
        good = self._check(grouping.pictures)
        facts = good if self._is_the_same(stored, grouping, good) else self._know(stored)
        self._refuse_lost(stored, facts, grouping.pictures, good)
        pairs, changes = merge(stored, facts, grouping, good, remove=self._config.remove)
        if stored:
            for line in changes.lines(join(self._dest, CHANGES_NAME)):
                logger.info("%s", line)
        self._report_duplicates(pairs)
        return self._lay_out(pairs, grouping), changes

    def _lay_out(self, pairs: Sequence[Pair], grouping: Grouping) -> list[write_shards.ShardPlan]:
        config = self._config
        foreground: defaultdict[str, list[float]] = defaultdict(list)
        for pair in pairs:
            foreground[pair.picture.group].append(pair.checked.foreground)
        folds = assign_folds(foreground, config.folds, seed=config.seed, kept=grouping.folds)
        return write_shards.plan_shards(pairs, folds, config, self._target.token)

    def _is_the_same(self, stored: Mapping[str, Stored], grouping: Grouping, good: Mapping[str, Checked]) -> bool:
        """Whether the source alone makes the data set that is there, so that none of its shards need be read."""
        if self._target.earlier is None or stored.keys() != good.keys():
            return False
        pairs, _ = merge(stored, good, grouping, good, remove=False)
        return write_shards.fingerprint(self._lay_out(pairs, grouping)) == self._target.earlier.fingerprint

    def _know(self, stored: Mapping[str, Stored]) -> dict[str, Checked]:
        """Id -> facts of the pictures that are in the data set, from its shards; damaged ones are left out."""
        ids_of: defaultdict[Shard, list[str]] = defaultdict(list)
        for id, one in stored.items():
            ids_of[one.place.shard].append(id)
        calls = [(self._storage, self._dest, shard, ids, self._target.unfinished) for shard, ids in ids_of.items()]
        pace = Pace("read again", len(stored), self._every_s)
        facts: dict[str, Checked] = {}
        for known in self._side_by_side(know_shard, calls):
            facts |= known.facts
            self._lost |= known.lost
            pace.add(len(known.facts) + len(known.lost), known.bytes)
        return facts

    def _refuse_lost(
        self,
        stored: Mapping[str, Stored],
        facts: Mapping[str, Checked],
        source: Sequence[Picture],
        good: Mapping[str, Checked],
    ) -> None:
        """Raise `DataError` where a picture would have to stay whose bytes in the data set are damaged."""
        stays = stored.keys() - good.keys()
        if self._config.remove:
            stays &= {picture.id for picture in source}
        lost = sorted(stays - facts.keys())
        if lost:
            more = f" (and {len(lost) - 1} more like it)" if len(lost) > 1 else ""
            raise DataError(
                f"{lost[0]} in {self._dest} is damaged{more} and not in the source: {self._lost[lost[0]]}; "
                "put it into the source again, or drop what the source does not have by prepare.remove=true"
            )

    def _check(self, pictures: Sequence[Picture]) -> dict[str, Checked]:
        """Id -> facts of the good pairs. Bad pairs are written down and reported."""
        unfinished, most_pixels = self._target.unfinished, self._config.max_pixels
        known = checks.load_facts(self._storage, unfinished)
        chunks = [pictures[start : start + CHUNK_PICTURES] for start in range(0, len(pictures), CHUNK_PICTURES)]
        calls = [
            (self._storage, chunk, {one.id: known[one.id] for one in chunk if one.id in known}, unfinished, most_pixels)
            for chunk in chunks
        ]
        pace = Pace("checked", len(pictures), self._every_s)
        good: dict[str, Checked] = {}
        bad: list[checks.Rejected] = []
        for found in self._side_by_side(checks.check_chunk, calls):
            if any(checked != known.get(checked.id) for checked in found.good):
                checks.save_facts(self._storage, unfinished, found.good)
            good.update((checked.id, checked) for checked in found.good)
            bad += found.bad
            pace.add(len(found.good) + len(found.bad), found.bytes)
        self._report_rejected(bad, len(pictures))
        return good

    def _report_rejected(self, bad: Sequence[checks.Rejected], pictures: int) -> None:
        url = join(self._dest, REJECTED_NAME)
        if not bad:
            self._storage.delete(url)
            return
        self._storage.write_bytes(url, checks.rejected_csv(bad))
        first = "; ".join(
            f"{printable(one.file)}: {one.reason}"
            for one in sorted(bad, key=lambda one: one.picture.id)[:SHOWN_REJECTED]
        )
        more = f"; and {len(bad) - SHOWN_REJECTED} more" if len(bad) > SHOWN_REJECTED else ""
        text = f"{len(bad)} bad pair{'s' * (len(bad) > 1)} (all in {url}): {first}{more}"
        if len(bad) > self._config.allow_rejected:
            if len(bad) == pictures:
                raise UserError(f"{text}. No pair of the source is good: mend them")
            raise UserError(f"{text}. Mend or remove them, or set prepare.allow_rejected={len(bad)} to leave them out")
        logger.warning("left out %s", text)

    def _report_duplicates(self, pairs: Sequence[Pair]) -> None:
        duplicates = checks.duplicates_across_groups((pair.picture, pair.checked) for pair in pairs)
        url = join(self._dest, DUPLICATES_NAME)
        if not duplicates:
            self._storage.delete(url)
            return
        self._storage.write_bytes(url, checks.duplicates_csv(duplicates))
        first = "; ".join(" = ".join(f"{one.id} (group {one.group})" for one in same) for same in duplicates[:5])
        logger.warning(
            "warning: %d picture%s in more than one group, byte for byte the same, and so may leak between folds "
            "(all in %s): %s",
            len(duplicates),
            " stands" if len(duplicates) == 1 else "s stand",
            url,
            first,
        )

    def write(self, plans: Sequence[write_shards.ShardPlan]) -> list[Shard]:
        """Write the shards that are not there yet; the facts of all come in the order of `plans`."""
        target = self._target
        earlier = target.earlier.shards if target.earlier else []
        finished = {
            write_shards.without_token(shard.path): shard
            for shard in [*earlier, *write_shards.load_finished(self._storage, target.unfinished)]
        }
        names = [write_shards.without_token(plan.path) for plan in plans]
        calls = [
            (self._storage, self._dest, plan, finished.get(name), target.unfinished)
            for plan, name in zip(plans, names, strict=True)
        ]
        verb = "found" if all(name in finished for name in names) else "wrote"
        pace = Pace(verb, sum(len(group) for plan in plans for group in plan.row_groups), self._every_s)
        shards: dict[str, Shard] = {}
        for shard in self._side_by_side(write_shards.write_one, calls):
            shards[write_shards.without_token(shard.path)] = shard
            pace.add(shard.rows, shard.bytes)
        return [shards[name] for name in names]


@contextlib.contextmanager
def _files_of(recipe: Recipe) -> Iterator[CarvanaSource | FolderSource]:
    """The source as files: Kaggle's are downloaded, synthetic ones drawn first, into a temporary folder or `path`."""
    source = recipe.source
    if isinstance(source, KaggleSource):
        yield competition.fetch(source, recipe.storage, recipe.run.progress_every_s)
        return
    if not isinstance(source, SyntheticSource):
        yield source
        return
    if source.path is not None and is_remote(source.path):
        raise UserError("source.path: synthetic pictures are drawn into a local folder; give a local path or none")
    from segtrain.prepare.sources.synthetic import draw_cars

    with contextlib.ExitStack() as stack:
        path = source.path or str(stack.enter_context(scratch_folder("synthetic")))
        logger.info("drawing %d pictures of %d cars", source.cars * source.views, source.cars)
        try:
            draw_cars(source, local_path(path), workers=usable_cores())
        except OSError as error:
            raise StorageError(f"source.path: {shown(error.filename or path)}: {error.strerror}") from None
        yield CarvanaSource(path=path)


def _check_kind(recipe: Recipe, target: Destination) -> None:
    """Raise `UserError` where the data set was made from another kind of source and `prepare.mix` is not set."""
    earlier = target.earlier
    if earlier is not None and not recipe.prepare.mix and not kinds_of(recipe.source.kind) <= kinds_of(earlier.source):
        raise UserError(
            f"{target.url} was made from a source of kind {earlier.source}, this one is {recipe.source.kind}; "
            "prepare into another folder, or set prepare.mix=true to add its pictures all the same"
        )


def _keep_changes(target: Destination, changes: Changes) -> None:
    """Write down how the data set differs from the one before, where that is more than the log has said."""
    url = join(target.url, CHANGES_NAME)
    if target.earlier is not None and changes.is_long:
        target.storage.write_bytes(url, changes.to_csv())
    else:
        target.storage.delete(url)


def _source(target: Destination, recipe: Recipe, pairs: Sequence[Pair]) -> str:
    """The kinds of source that the pictures come from, joined by `+`."""
    earlier = target.earlier.source.split("+") if target.earlier and any(pair.place for pair in pairs) else []
    return "+".join(sorted({recipe.source.kind, *earlier}))


def _report_cautions(plans: Sequence[write_shards.ShardPlan]) -> None:
    """Say which masks make scores say little, and that EXIF turns images by half or mirrors them, if it does.

    Such an image is as large as before, so that nothing shows whether its mask was made of the upright picture.
    """
    ordered = sorted(
        (pair.picture.id, pair.checked.foreground, plan.fold, pair.checked.orientation)
        for plan in plans
        for pair in plan.pairs
    )
    ids, foreground, folds, orientations = zip(*ordered, strict=True)
    for line in cautions(foreground, folds, ids):
        logger.warning(line)
    turned = [id for id, orientation in zip(ids, orientations, strict=True) if orientation in (2, 3, 4)]
    if turned:
        logger.warning(
            "warning: EXIF mirrors %d images or turns them upside down (%s); their masks are taken as they are, "
            "for the picture as a viewer shows it",
            len(turned),
            some_of(turned),
        )


def _manifest(
    target: Destination,
    recipe: Recipe,
    plans: Sequence[write_shards.ShardPlan],
    shards: list[Shard],
) -> Manifest:
    """Write the index and describe the whole data set."""
    pairs = [pair for plan in plans for pair in plan.pairs]
    fingerprint = write_shards.fingerprint(plans)
    heights, widths = zip(*((pair.checked.height, pair.checked.width) for pair in pairs), strict=True)
    return Manifest(
        format_version=FORMAT_VERSION,
        fingerprint=fingerprint,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        source=_source(target, recipe, pairs),
        pictures=len(pairs),
        groups=len({pair.picture.group for pair in pairs}),
        labelled=len(pairs),
        mean_foreground=math.fsum(pair.checked.foreground for pair in pairs) / len(pairs),
        min_height=min(heights),
        max_height=max(heights),
        min_width=min(widths),
        max_width=max(widths),
        row_schema=ROW_SCHEMA.to_string(),
        folds=write_shards.fold_facts(plans, recipe.prepare.folds),
        shards=shards,
        index=_write_index(target, fingerprint, plans),
        replaces=target.version,
    )


def _write_index(target: Destination, fingerprint: str, plans: Sequence[write_shards.ShardPlan]) -> IndexFile:
    """Write the index, unless the earlier data set has the same."""
    data = encode_index(write_shards.index_table(plans))
    facts = IndexFile(path=f"index-{fingerprint}-{target.token}.parquet", bytes=len(data), crc32c=crc32c(data))
    if target.earlier is not None:
        same = facts.model_copy(update={"path": target.earlier.index.path})
        if same == target.earlier.index and target.earlier.fingerprint == fingerprint:
            return same
    target.storage.write_bytes(join(target.url, facts.path), data)
    return facts

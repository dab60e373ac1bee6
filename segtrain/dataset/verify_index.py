"""Does the index agree with the manifest in counts, places, and folds?"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from segtrain.dataset.manifest import INDEX_SCHEMA, FoldFacts, Manifest
from segtrain.errors import shown
from segtrain.storage.ids import check_id

# The manifest's means are over float64, the index holds float32.
FOREGROUND_TOLERANCE = 1e-5


def wrong_counts(manifest: Manifest, index: pa.Table) -> Iterator[tuple[str, str]]:
    """Id (empty where it is about more than one picture) and reason for each disagreement."""
    if not index.schema.equals(INDEX_SCHEMA):
        yield "", f"has the columns {', '.join(index.schema.names)}, not those of format {manifest.format_version}"
        return
    for wrong in (_wrong_totals, _wrong_folds, _wrong_places):
        yield from (("", reason) for reason in wrong(manifest, index))
    names = (index[name].to_pylist() for name in ("id", "group", "fold"))
    yield from wrong_names(zip(*names, strict=True))


def wrong_names(names: Iterable[tuple[str, str, int]]) -> Iterator[tuple[str, str]]:
    """Ids that are there twice or are no file names, and groups in two folds, of (id, group, fold)."""
    times: Counter[str] = Counter()
    folds_of: defaultdict[str, set[int]] = defaultdict(set)
    for name, group, fold in names:
        times[name] += 1
        folds_of[group].add(fold)
    yield from ((name, f"is there {count} times") for name, count in times.items() if count > 1)
    yield from ((name, f"its id {reason}") for name in times if (reason := check_id(name)) is not None)
    for group, folds in folds_of.items():
        if len(folds) > 1:
            yield "", f"group {shown(group)} is in the folds {', '.join(map(str, sorted(folds)))}"


def _wrong_totals(manifest: Manifest, index: pa.Table) -> Iterator[str]:
    counted = {
        "pictures": index.num_rows,
        "groups": len(set(index["group"].to_pylist())),
        "labelled": int(index["labelled"].to_numpy(zero_copy_only=False).sum()),
    }
    if index.num_rows:
        for name in ("height", "width"):
            values = index[name].to_numpy()
            counted |= {f"min_{name}": int(values.min()), f"max_{name}": int(values.max())}
    for name, value in counted.items():
        if value != getattr(manifest, name):
            yield f"{name} is {value}; the manifest says {getattr(manifest, name)}"
    mean = _mean_foreground(index)
    if not math.isclose(mean, manifest.mean_foreground, abs_tol=FOREGROUND_TOLERANCE):
        yield f"mean_foreground is {mean:.6f}; the manifest says {manifest.mean_foreground:.6f}"


def _wrong_folds(manifest: Manifest, index: pa.Table) -> Iterator[str]:
    fold_of = index["fold"].to_numpy()
    said = {facts.fold: facts for facts in manifest.folds}
    for fold in sorted({*said, *fold_of.tolist()}):
        part = index.filter(pa.array(fold_of == fold))
        groups = len(set(part["group"].to_pylist()))
        found = FoldFacts(fold=fold, pictures=part.num_rows, groups=groups, foreground=_mean_foreground(part))
        facts = said.get(fold)
        same = facts is not None and found == facts.model_copy(update={"foreground": found.foreground})
        if facts is None or not same or abs(found.foreground - facts.foreground) > FOREGROUND_TOLERANCE:
            yield f"fold {fold} has {_in_words(found)}; the manifest says {_in_words(facts) if facts else 'nothing'}"


def _in_words(facts: FoldFacts) -> str:
    return f"{facts.pictures} pictures in {facts.groups} groups with a foreground of {facts.foreground:.6f}"


def _wrong_places(manifest: Manifest, index: pa.Table) -> Iterator[str]:
    # One by one, since a manifest may claim any number of rows.
    places = (
        (shard.fold, number, row_group, row)
        for number, shard in enumerate(manifest.shards)
        for row_group, count in enumerate(shard.row_groups.rows)
        for row in range(count)
    )
    found = zip(*(index[name].to_pylist() for name in ("fold", "shard", "row_group", "row")), strict=True)
    for number, (place, wanted) in enumerate(zip(found, places, strict=False)):
        if place != wanted:
            yield f"row {number} is for (fold, shard, row group, row) {place}; the manifest has {wanted} there"
            return


def _mean_foreground(index: pa.Table) -> float:
    """Mean over the labelled pictures; 0 where there are none."""
    labelled = index["labelled"].to_numpy(zero_copy_only=False)
    foreground = index["foreground"].to_numpy()[labelled]
    return float(np.mean(foreground, dtype=np.float64)) if len(foreground) else 0.0

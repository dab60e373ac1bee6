"""The rows of the input benchmark: what is beside what, the aim, and the table."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from tests.bench.measuring import Measured, Spread


class Row(NamedTuple):
    """One line of the table."""

    group: str
    """What `--only` calls it."""
    what: str
    reader: str
    against: str | None = None
    at_least: float | None = None
    """Aim for the ratio of the two readers' rates."""
    without_server: bool = False
    """Take the S3 server's CPU time off the seconds."""


class Starts(NamedTuple):
    """How soon the first batch of a large set on S3 is there."""

    pictures: int
    seconds: list[float]
    """From opening the set, one a round, each in a process of its own that has imported TensorFlow."""
    requests: dict[str, int]
    """How many of each kind that took."""


START_WITHIN_S = 2.0
ROWS = (
    Row("full", "the limit: decode_jpeg and unpacking alone", "limit"),
    Row("full", "full resolution, local shards", "full", "limit", 0.85),
    Row("article", "the article's pipeline, 96x128, serial map", "article"),
    Row("article", "the same with a parallel map", "article, parallel", "article"),
    Row("small", "96x128, first epoch", "small, first epoch", "article", 10),
    Row("small", "96x128, first epoch", "small, first epoch", "article, parallel", 5),
    Row("cached", "96x128, later epochs, cache auto, flip", "small, later epochs", "article", 60),
    Row("cached", "the same, every change on", "small, later epochs, every change", "article", 60),
    Row("crop", "512x512 random crops", "crop", "full", 2.2),
    Row("s3", "full resolution, first epoch, local", "full, opened", "full"),
    Row("s3", "the same from S3, cold", "cold", "full, opened", 0.85),
    Row("s3", "  without the server's CPU time", "cold", "full, opened", 0.85, without_server=True),
    Row("s3", "the same from S3, warm node cache", "warm", "full, opened", 0.97),
    Row("tfrecord", "tf.data over TFRecord", "tfrecord"),
    Row("tfrecord", "segtrain beside it", "full", "tfrecord", 0.95),
    Row("ray", "Ray Data read_parquet and decode", "ray"),
    Row("ray", "segtrain beside it", "full", "ray", 3),
    Row("determinism", "full resolution, deterministic ops", "full, deterministic", "full, normal", 0.9),
    Row("determinism", "96x128, deterministic ops", "small, deterministic", "small, normal", 0.9),
)


def result_rows(rows: Sequence[Row], measured: Mapping[str, Sequence[Measured]]) -> list[dict[str, Any]]:
    """Each row with `rate` (pairs/s) and, where it is beside another reader, `ratio` and `holds`."""
    results = []
    for row in rows:
        rates = [one.rate_without_server if row.without_server else one.rate for one in measured[row.reader]]
        result: dict[str, Any] = {**row._asdict(), "rate": Spread.of(rates)._asdict()}
        result["server_cpu_s"] = [one.server_s for one in measured[row.reader]] if row.group == "s3" else None
        if row.against:
            beside = [one.rate for one in measured[row.against]]
            ratio = Spread.of([one / other for one, other in zip(rates, beside, strict=True)])
            result["ratio"] = ratio._asdict()
            result["holds"] = None if row.at_least is None else ratio.median >= row.at_least
        results.append(result)
    return results


def results_table(results: Sequence[Mapping[str, Any]], pairs: int, rounds: int) -> Table:
    """The rows, with medians and, in brackets, the lowest and the highest of the rounds."""
    table = Table(
        title=f"{pairs} pairs of 1918x1280, {rounds} rounds: median (lowest to highest)", title_justify="left"
    )
    for name in ("what", "pairs/s", "beside", "ratio", "aim"):
        table.add_column(name, justify="right" if name in ("pairs/s", "ratio", "aim") else "left")
    table.add_column("")
    last = None
    for result in results:
        if last not in (None, result["group"]):
            table.add_section()
        last = result["group"]
        aim = "" if result["at_least"] is None else f">= {result['at_least']:g}"
        verdict = {True: "[green]holds[/green]", False: "[red]missed[/red]", None: ""}[result.get("holds")]
        table.add_row(
            result["what"],
            _range(result["rate"], 1),
            result["against"] or "",
            _range(result["ratio"], 3 if result["ratio"]["median"] < 10 else 1) if "ratio" in result else "",
            aim,
            verdict,
        )
    return table


def server_sentence(cold: Sequence[Measured], warm: Sequence[Measured]) -> str:
    """What the S3 server took from the cores that segtrain decodes on."""
    parts = []
    for name, each in (("cold", cold), ("warm", warm)):
        cpu_s, seconds = sum(one.server_s for one in each), sum(one.seconds for one in each)
        share = cpu_s / seconds / (os.cpu_count() or 1)
        parts.append(f"{cpu_s / len(each):.2f} s of CPU in a {name} epoch of {seconds / len(each):.2f} s ({share:.1%})")
    return f"\nThe S3 server, on the same {os.cpu_count()} cores, took {' and '.join(parts)}."


def start_sentence(starts: Starts) -> str:
    seconds = Spread.of(starts.seconds)
    holds = seconds.median <= START_WITHIN_S and starts.requests["LIST"] == 0
    return (
        f"\nFirst batch of 16 at 96x128 from S3 after opening a set of {starts.pictures:,} pictures, "
        f"TensorFlow already imported: {seconds.median:.2f} s ({seconds.low:.2f} to {seconds.high:.2f}); "
        f"{', '.join(f'{count} {kind}' for kind, count in starts.requests.items())}. "
        f"At most {START_WITHIN_S:.0f} s and no LIST: " + ("[green]holds[/green]" if holds else "[red]missed[/red]")
    )


def _range(spread: Mapping[str, float], digits: int) -> str:
    median, low, high = (f"{spread[name]:.{digits}f}" for name in ("median", "low", "high"))
    return f"{median} ({low} to {high})"

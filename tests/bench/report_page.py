"""How large the report of a sweep of 200 trials is, how long it takes to write, and to open in Chromium.

    .venv/bin/python -m tests.bench.report_page [--trials N] [--rounds N]        about a minute

The sweep is made, not trained: six axes, up to 27 epochs a trial, a panel of 1,600 pixels for each. A page is open when
all charts are drawn and the browser has painted what follows; the time counts from the navigation, in a fresh browser
each round. The aims are those of the issue: 8 MB at most, open in under 3 s, no request and no message.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from rich.console import Console

from segtrain.report.write import write_report
from segtrain.storage.files import Storage
from tests.support import made_runs

MOST_MB, OPEN_WITHIN_S = 8.0, 3.0
PANEL = (266, 392)
"""Height and width of a cell, which makes a panel as wide as a run's: 1,600 pixels."""

PAINTED = """new Promise((done) =>
    requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))"""


class Opened(NamedTuple):
    """One opening of the page."""

    seconds: float
    cpu_s: float
    """Of the page's own thread, which another process on the same cores lengthens less than the seconds."""
    requests: int
    """Besides the page itself."""
    messages: list[str]


def write_sweep(folder: Path, trials: int) -> None:
    """A sweep whose panels are as large as real ones, and of so many kinds that none is small by luck."""
    panels = [made_runs.draw_panel(seed, off_by=3 + 4 * seed, size=PANEL) for seed in range(8)]
    made_runs.write_made_sweep(folder, made_runs.make_trials(trials, epochs=27), panels=1)
    for number, path in enumerate(sorted(folder.glob("trials/*/panels/*.png"))):
        path.write_bytes(panels[number % len(panels)])


def open_once(path: Path) -> Opened:
    """In a fresh browser."""
    with made_runs.chromium() as browser:
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        clock = page.context.new_cdp_session(page)
        clock.send("Performance.enable", {"timeDomain": "threadTicks"})
        seen = made_runs.watch(page, path)
        seconds = page.evaluate(PAINTED) / 1000
        told = {one["name"]: one["value"] for one in clock.send("Performance.getMetrics")["metrics"]}
        return Opened(seconds, told["TaskDuration"], len(seen.requests) - 1, seen.problems)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="segtrain-report-") as folder:
        sweep = Path(folder) / "sweep"
        write_sweep(sweep, args.trials)
        start_s = time.perf_counter()
        page = Path(write_report(str(sweep), Storage()))
        console.print(f"{args.trials} trials, written in {time.perf_counter() - start_s:.1f} s")
        megabytes = page.stat().st_size / 1e6
        console.print(f"{megabytes:.2f} MB, at most {MOST_MB:g}: {_verdict(megabytes <= MOST_MB)}")
        opened = [open_once(page) for _ in range(args.rounds)]
    seconds = sorted(one.seconds for one in opened)
    console.print(
        f"open in {median(seconds):.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f}), under {OPEN_WITHIN_S:g}: "
        f"{_verdict(median(seconds) < OPEN_WITHIN_S)}; {median(one.cpu_s for one in opened):.2f} s of CPU in the page"
    )
    quiet = not any(one.requests or one.messages for one in opened)
    console.print(f"no request, no message of the console: {_verdict(quiet)}")


def _verdict(holds: bool) -> str:
    return "[green]holds[/green]" if holds else "[red]missed[/red]"


if __name__ == "__main__":
    main()

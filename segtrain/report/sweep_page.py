"""The page of a sweep."""

import shlex
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from segtrain.locations import without_credentials
from segtrain.process import usable_cores
from segtrain.report import page
from segtrain.report.embedded import Thumbnail, bytes_each, thumbnail
from segtrain.report.folders import SweepContent
from segtrain.report.run_page import cautions_of, shown_panels
from segtrain.report.sweep_charts import cost_unit, standing, sweep_charts, words
from segtrain.runs.leaderboard import BEST_NAME, pareto, ranked
from segtrain.runs.run_folder import RECIPE_NAME
from segtrain.runs.trials import Trial, trial_folder
from segtrain.storage.files import is_remote, join


def render(sweep: SweepContent) -> str:
    """The whole page as HTML."""
    order = ranked(sweep.trials)
    space = [] if sweep.recipe is None else list(sweep.recipe.tune.space)
    return page.render(
        "sweep.html",
        sweep_charts(sweep),
        {trial.number: without_credentials(words(trial)) for trial in order},
        title=sweep.folder.rpartition("/")[2] if sweep.recipe is None else sweep.recipe.run.name,
        folder=without_credentials(sweep.folder),
        state=without_credentials(": ".join(filter(None, (sweep.sweep.state, sweep.sweep.reason)))),
        cards=_cards(sweep, order),
        cautions=cautions_of(sweep.best),
        best=order[0] if order else None,
        best_folder=without_credentials(trial_folder(sweep.folder, order[0].number)) if order else "",
        panels=shown_panels(sweep.best_panels),
        unit=cost_unit(sweep),
        ranked=order,
        thumbnails=_thumbnails(sweep),
        front={trial.number for trial in pareto(order)},
        axes=list(dict.fromkeys([*space, *(axis for trial in sweep.trials for axis in trial.point)])),
        unranked=[trial for trial in sweep.trials if _is_unranked(trial)],
        commands=_commands(sweep),
        remote=is_remote(sweep.folder),
        recipe=sweep.recipe_text,
    )


def _cards(sweep: SweepContent, order: Sequence[Trial]) -> list[tuple[str, str, str]]:
    """Figure, what it is, and a word on it; the first is the score."""
    score = [(f"{best.dice:.4f}", "best hard dice", f"trial {best.number}, original resolution") for best in order[:1]]
    told = ", ".join(f"{count} {name}" for name, count in Counter(map(standing, sweep.trials)).most_common())
    hours = sum(trial.gpu_s for trial in sweep.trials) / 3600
    epochs = sum(trial.epochs for trial in sweep.trials)
    full = len([trial for trial in sweep.trials if trial.history]) * (sweep.recipe.train.epochs if sweep.recipe else 0)
    return [
        *score,
        (f"{len(sweep.trials)}", "trials", told),
        (page.duration(sweep.sweep.seconds), "time", "of the sweep's driver"),
        (f"{hours:.2f}", f"{cost_unit(sweep)}-hours", "training and scoring, all trials"),
        (f"{epochs:,}", "epochs", f"{epochs / full:.0%} of full length" if full else "all trials"),
    ]


def _thumbnails(sweep: SweepContent) -> dict[int, Thumbnail | None]:
    """Number of a trial that has a panel -> its thumbnail; None where that cannot be small enough."""
    make = partial(thumbnail, at_most_bytes=bytes_each(len(sweep.pictures)))
    with ThreadPoolExecutor(usable_cores()) as pool:  # Pillow leaves Python's lock while it works
        return dict(zip(sweep.pictures, pool.map(make, sweep.pictures.values()), strict=True))


def _is_unranked(trial: Trial) -> bool:
    """Whether a trial failed, was never run, or ended without a score."""
    return trial.status != "running" and (trial.status in ("failed", "infeasible") or not trial.history)


def _commands(sweep: SweepContent) -> list[tuple[str, str]]:
    """What each command does, and the command."""

    def path(name: str) -> str:
        return name if is_remote(sweep.folder) else join(sweep.folder, name)

    commands: list[tuple[str, list[str]]] = []
    if sweep.has_best_recipe:
        commands.append(("train the best trial again", ["python", "jobs/train.py", path(BEST_NAME)]))
    if sweep.recipe is not None:
        again = ["python", "jobs/tune.py", path(RECIPE_NAME)]
        if sweep.sweep.state != "finished":
            commands.append(("go on with the sweep", [*again, "--resume"]))
        commands.append(("search again", [*again, f"run.name={sweep.recipe.run.name}-again"]))
    return [(what, shlex.join(parts)) for what, parts in commands]

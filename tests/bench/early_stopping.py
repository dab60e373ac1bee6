"""What stopping trials early saves: `sweep_quick` as it is, and the same space by random search to full length.

    python jobs/prepare.py jobs/recipes/quickstart.yaml DATA
    python -m tests.bench.early_stopping DATA STORAGE

About ten minutes and twenty on two cores. Sweeps that STORAGE holds already are read and not run again. The project
wants at most 0.45 of the epochs for a dice at most 0.01 lower.
"""

import argparse
import os

from segtrain.config import load_recipe
from segtrain.runs.leaderboard import ranked
from segtrain.runs.trials import read_sweep, read_trials
from segtrain.storage.files import Storage, join
from tests.bench.measuring import REPOSITORY

FULL = ("tune.search=random", "tune.stop=none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("storage")
    arguments = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    figures = {}
    for name, settings in (("sweep_quick", ()), ("full", FULL)):
        where = (f"data.root={arguments.data}", f"run.storage={arguments.storage}", f"run.name={name}")
        recipe = load_recipe(REPOSITORY / "jobs/recipes/sweep_quick.yaml", [*where, *settings])
        folder, storage = join(arguments.storage, name), Storage()
        facts = read_sweep(folder, storage)
        if facts is None or facts.state != "finished":
            from segtrain.tune.sweep import run_sweep

            run_sweep(recipe, resume=facts is not None)
            facts = read_sweep(folder, storage)
        assert facts is not None
        trials = read_trials(folder, storage)
        best, epochs = ranked(trials)[0], sum(trial.epochs for trial in trials)
        figures[name] = (best.dice or 0.0, epochs)
        statuses = sorted({trial.status for trial in trials})
        counts = ", ".join(f"{sum(trial.status == status for trial in trials)} {status}" for status in statuses)
        told = f"{len(trials)} trials ({counts}), {epochs} epochs, best dice {best.dice:.4f}"
        print(f"{name:12} {told}, {facts.seconds:.0f} s")
    (short, few), (long, all_of_them) = figures["sweep_quick"], figures["full"]
    print(f"{few / all_of_them:.2f} of the epochs; dice {short - long:+.4f}")


if __name__ == "__main__":
    main()

"""Which measure of an axis's importance is right, on made sweeps whose effects are known.

    .venv/bin/python -m tests.bench.importance [--rounds N]        about ten minutes

Compared are the library's own (`segtrain.runs.leaderboard.importance`), Optuna's PED-ANOVA for the best 10 %, 25 % and
50 % of the trials, and Optuna's fANOVA, which needs scikit-learn. All are told the ranks of the trials by dice. The
truth is what each axis explains of the ranks of 20,000 trials; `error` is the mean distance of shares from it, `top`
how often the axis that matters most is found, `100 %` how often one axis is given 95 % or more.
For the ranges of the library's own measure, `held` is how often the range of an axis that matters has the truth in it
(eight of ten are aimed at), `told` how often axes are told apart, and `wrong` how often wrongly.
"""

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import optuna
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from rich.console import Console
from rich.table import Table

from segtrain.config import Axis
from segtrain.runs.leaderboard import importance, tells_apart
from segtrain.runs.trials import ScoredEpoch, Trial
from segtrain.tune.space import distribution, encoded

SPACE = {
    "rate": Axis(loguniform=(1e-4, 1e-2)),
    "filters": Axis(choice=(8, 16, 32, 64)),
    "terms": Axis(choice=("bce", "dice", "both")),
    "smooth": Axis(uniform=(0.0, 2.0), when={"terms": ["dice", "both"]}),
    "depth": Axis(quniform=(2, 5, 1)),
    "seed": Axis(choice=(0, 1, 2)),
}
TERMS = {"bce": 0.0, "dice": 1.0, "both": 1.5}
SIZES = (14, 40, 200)
MATTERS = 0.1
"""Share of an axis that matters."""
Shares = dict[str, float]
Dice = Callable[[Mapping[str, Any], float], float]
"""The dice of a point with noise, which has a standard deviation of 1."""


def one(point: Mapping[str, Any], noise: float) -> float:
    return 0.9 + 0.06 * _rate(point) + 0.003 * _width(point) + 0.006 * noise


def several(point: Mapping[str, Any], noise: float) -> float:
    return 0.9 + 0.03 * _rate(point) + 0.012 * _width(point) + 0.02 * TERMS[point["terms"]] + 0.01 * noise


def conditional(point: Mapping[str, Any], noise: float) -> float:
    smooth = 0.03 * (point.get("smooth", 1.0) - 1.0)
    return 0.9 + 0.01 * _rate(point) + 0.02 * TERMS[point["terms"]] + smooth + 0.01 * noise


def diverging(point: Mapping[str, Any], noise: float) -> float:
    if point["rate"] > 4e-3:
        return 0.1 + 0.01 * noise
    return 0.9 + 0.01 * _width(point) + 0.01 * (point["depth"] - 3.5) + 0.008 * noise


def nothing(point: Mapping[str, Any], noise: float) -> float:
    return 0.9 + 0.01 * noise


def _rate(point: Mapping[str, Any]) -> float:
    """Best at 0.0016, worse by 1 for each factor of ten."""
    return -abs(math.log10(point["rate"]) + 2.8)


def _width(point: Mapping[str, Any]) -> float:
    return math.log2(point["filters"] / 8)


def make_sweep(dice: Dice, count: int, seed: int) -> list[Trial]:
    """Finished trials of random points."""
    random = np.random.default_rng([count, seed])
    trials = []
    for number in range(count):
        point = {
            "rate": float(10 ** random.uniform(-4, -2)),
            "filters": int(random.choice([8, 16, 32, 64])),
            "terms": str(random.choice(list(TERMS))),
            "depth": int(random.integers(2, 6)),
            "seed": int(random.integers(3)),
        }
        if point["terms"] != "bce":
            point["smooth"] = float(random.uniform(0, 2))
        scored = ScoredEpoch(1, dice(point, float(random.normal())), 1.0, 1.0)
        trials.append(Trial(number, point, "finished", history=(scored,)))
    return trials


def truth(dice: Dice) -> Shares:
    """What lies between the values of each axis, forty for a range; nothing where all of that is below 1 %."""
    trials = make_sweep(dice, 20_000, 0)
    ranks = _ranks(trials)
    explained = {}
    for name, axis in SPACE.items():
        applies = np.array([name in trial.point for trial in trials])
        values = [trial.point[name] for trial in trials if name in trial.point]
        if axis.values is None and name != "depth":
            groups = np.argsort(np.argsort(values)) * 40 // len(values)
        else:
            groups = np.unique([json.dumps(value) for value in values], return_inverse=True)[1]
        sizes, apart = np.bincount(groups), ranks[applies] - ranks[applies].mean()
        explained[name] = float((np.bincount(groups, apart) ** 2 / sizes).sum() - len(sizes) * apart.var())
    if sum(explained.values()) < 0.01 * len(trials) * ranks.var():
        return dict.fromkeys(SPACE, 0.0)
    return _normal({name: max(0.0, part) for name, part in explained.items()})


def own(trials: Sequence[Trial]) -> Shares:
    return {axis: found.share for axis, found in importance(trials, SPACE).items()}


def ped_anova(trials: Sequence[Trial], best: float) -> Shares:
    """For the question what it takes to be among the `best` share of the trials."""
    return _normal(PedAnovaImportanceEvaluator(target_quantile=best).evaluate(_study(trials)))


def fanova(trials: Sequence[Trial]) -> Shares:
    """A conditional axis is judged among the trials that have it, as Optuna's forest takes no gaps."""
    always = [name for name in SPACE if all(name in trial.point for trial in trials)]
    found = dict(FanovaImportanceEvaluator(seed=0).evaluate(_study(trials), params=always))
    for name in [name for name in SPACE if name not in always]:
        having = [trial for trial in trials if name in trial.point]
        shares = FanovaImportanceEvaluator(seed=0).evaluate(_study(having), params=[*always, name])
        found[name] = shares[name] * len(having) / len(trials)
    return _normal(found)


def _study(trials: Sequence[Trial]) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        optuna.trial.create_trial(
            value=float(rank),
            params={name: encoded(SPACE[name], value) for name, value in trial.point.items()},
            distributions={name: distribution(SPACE[name]) for name in trial.point},
        )
        for trial, rank in zip(trials, _ranks(trials), strict=True)
    )
    return study


def _ranks(trials: Sequence[Trial]) -> np.ndarray:
    return np.argsort(np.argsort([trial.dice for trial in trials])) / len(trials)


def _normal(found: Mapping[str, float]) -> Shares:
    total = sum(found.values())
    return {name: found.get(name, 0.0) / total for name in SPACE} if total else {}


MEASURES: dict[str, Callable[[Sequence[Trial]], Shares]] = {
    "own": own,
    "PED-ANOVA 10 %": partial(ped_anova, best=0.1),
    "PED-ANOVA 25 %": partial(ped_anova, best=0.25),
    "PED-ANOVA 50 %": partial(ped_anova, best=0.5),
    "fANOVA": fanova,
}


def judged(found: Sequence[Shares], true: Shares) -> list[str]:
    """`error`, `top` and `100 %` of a measure's shares of several sweeps."""
    errors = [fmean(abs(shares.get(name, 0.0) - true[name]) for name in SPACE) for shares in found]
    matters = max(true, key=lambda name: true[name])
    top = fmean(max(shares, key=lambda name: shares[name], default="") == matters for shares in found)
    whole = fmean(max(shares.values(), default=0.0) >= 0.95 for shares in found)
    return [f"{fmean(errors):.3f}", f"{top:.0%}", f"{whole:.0%}"]


def judged_ranges(sweeps: Sequence[Sequence[Trial]], true: Shares) -> list[str]:
    """`held`, `told` and `wrong` of the library's own ranges."""
    all_found = [found for sweep in sweeps if (found := importance(sweep, SPACE))]
    held = [
        found[name].low - 0.02 <= share <= found[name].high + 0.02
        for found in all_found
        for name, share in true.items()
        if share >= MATTERS
    ]
    told = [found for found in all_found if tells_apart(found)]
    wrong = [found for found in told if true[_surest(found)] <= min(true.values())]
    return [f"{fmean(held):.0%}" if held else "", f"{len(told) / len(sweeps):.0%}", f"{len(wrong) / len(sweeps):.0%}"]


def _surest(found: Mapping[str, Any]) -> str:
    return max(found, key=lambda name: found[name].low)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="sweeps of 14 trials; fewer of more (default 20)")
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    console = Console()
    for dice in (one, several, conditional, diverging, nothing):
        true = truth(dice)
        title = f"{dice.__name__}: " + ", ".join(f"{name} {share:.0%}" for name, share in true.items() if share)
        table = Table("trials", "measure", "error", "top", "100 %", "ms", "held", "told", "wrong", title=title)
        for count in SIZES:
            sweeps = [make_sweep(dice, count, seed) for seed in range(max(2, rounds * SIZES[0] // count))]
            for name, measure in MEASURES.items():
                start_s = time.perf_counter()
                found = [measure(sweep) for sweep in sweeps]
                ms = 1000 * (time.perf_counter() - start_s) / len(sweeps)
                ranges = judged_ranges(sweeps, true) if name == "own" else []
                table.add_row(str(count), name, *judged(found, true), f"{ms:.0f}", *ranges)
        console.print(table)


if __name__ == "__main__":
    main()

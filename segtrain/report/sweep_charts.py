"""The charts of a sweep, but for its parallel coordinates."""

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import plotly.graph_objects as go

from segtrain.report.charts import BLUE, GHOST, GREEN, INK, ORANGE, SKY, VERMILION, Charts, figure, safe
from segtrain.report.coordinates import parallel
from segtrain.report.folders import SweepContent
from segtrain.runs.leaderboard import Importance, importance, pareto, ranked, tells_apart
from segtrain.runs.trials import ScoredEpoch, Trial, point_label, short_name

COLOURS = {
    "stopped early": "#8f9aa3",
    "failed": ORANGE,
    "infeasible": ORANGE,
    "interrupted": SKY,
    "running": GREEN,
    "finished": BLUE,
}
"""Of trials by their `standing`; what comes later is drawn over what comes before."""
MOST_EPOCHS = 60
"""Points of a trial's curve."""
LOG_FROM = 30.0
"""Costs that differ by this factor are drawn on a logarithmic axis."""


def sweep_charts(sweep: SweepContent) -> Charts:
    """Every chart that there are figures for."""
    order = ranked(sweep.trials)
    if not order:
        return {}
    space = {} if sweep.recipe is None else sweep.recipe.tune.space
    # In the recipe's order, and what only trials know after it.
    axes = {**space, **{axis: None for trial in order for axis in trial.point if axis not in space}}
    found = importance(sweep.trials, space)
    charts = {
        "cost": _cost(order),
        "curves": _curves(order),
        "parallel": parallel(order, axes) if axes else None,
        "importance": _importance(found) if found else None,
    }
    return {name: chart for name, chart in charts.items() if chart is not None}


def cost_unit(sweep: SweepContent) -> str:
    """What `gpu_s` counts in this sweep."""
    on_cpu = sweep.recipe is not None and not sweep.recipe.cluster.gpus_per_worker
    return "CPU device" if on_cpu else "GPU"


def _cost(order: Sequence[Trial]) -> dict[str, Any]:
    rim = {"color": "white", "width": 1}
    traces = [
        *(
            _places(
                name, members, mode="markers", marker={"color": COLOURS[name], "size": 9, "opacity": 0.8, "line": rim}
            )
            for name, members in _by_standing(order)
        ),
        _places(
            "Pareto front",
            pareto(order),
            mode="lines+markers",
            line={"color": VERMILION, "width": 2, "shape": "hv"},
            marker={"color": VERMILION, "size": 11, "symbol": "diamond", "line": rim},
        ),
    ]
    costs = [trial.gpu_s for trial in order if trial.gpu_s > 0]
    wide = bool(costs) and max(costs) > LOG_FROM * min(costs)
    scale: dict[str, Any] = {"xaxis_type": "log"} if wide else {"xaxis_rangemode": "tozero"}
    return figure(traces, x="seconds x devices", y="best hard dice", hovermode="closest", **scale)


def _places(name: str, trials: Sequence[Trial], **look: Any) -> go.Scatter:
    """Dice over cost of several trials."""
    return go.Scatter(
        x=[trial.gpu_s for trial in trials],
        y=[trial.dice for trial in trials],
        customdata=[trial.number for trial in trials],
        name=name,
        hovertemplate="%{text}<extra></extra>",
        **look,
    )


def _curves(order: Sequence[Trial]) -> dict[str, Any]:
    """Dice over epochs: a trace for each status, so that the legend takes it away and 200 trials draw at once."""
    best, *others = order
    ends = [trial for trial in order if standing(trial) in ("stopped early", "failed")]
    crosses = go.Scatter(
        x=[trial.epochs for trial in ends],
        y=[trial.history[-1].dice for trial in ends],
        customdata=[trial.number for trial in ends],
        name="ended here",
        mode="markers",
        marker={"color": [COLOURS[standing(trial)] for trial in ends], "size": 7, "symbol": "x"},
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )
    traces = [
        *(_history(name, members, color=COLOURS[name], width=1.3) for name, members in _by_standing(others)),
        crosses,
        _history(f"best, trial {best.number}", [best], color=VERMILION, width=3),
    ]
    return figure(traces, x="epoch", y="hard dice, validation", hovermode="closest")


def _history(name: str, trials: Sequence[Trial], *, color: str, width: float) -> go.Scatter:
    """Curves of several trials in one trace, with gaps between them."""
    points = [
        (*point, trial.number)
        for trial in trials
        for point in (*((one.epoch, one.dice) for one in _thinned(trial.history)), (None, None))
    ]
    return go.Scatter(
        x=[epoch for epoch, _, _ in points],
        y=[dice for _, dice, _ in points],
        customdata=[number for _, _, number in points],
        name=name,
        mode="lines+markers",
        line={"color": color, "width": width},
        marker={"color": color, "size": 4},
        hovertemplate="epoch %{x}: dice %{y:.4f}<br>%{text}<extra></extra>",
    )


def _thinned(history: Sequence[ScoredEpoch]) -> Sequence[ScoredEpoch]:
    """At most `MOST_EPOCHS` of a trial's epochs, evenly spread, the last among them."""
    stride = -(-len(history) // MOST_EPOCHS)
    return history if stride <= 1 else list(reversed(history[::-stride]))


def _importance(found: Mapping[str, Importance]) -> dict[str, Any]:
    """A bar an axis, the largest on top, with a whisker from the low to the high end of its share."""
    told = tells_apart(found)
    parts = list(found.values())
    bars = go.Bar(
        x=[100 * part.share for part in parts],
        y=[safe(short_name(axis)) for axis in found],
        customdata=[f"{safe(axis)}: {part.label}" for axis, part in found.items()],
        error_x={
            "array": [100 * (part.high - part.share) for part in parts],
            "arrayminus": [100 * (part.share - part.low) for part in parts],
            "color": INK,
            "thickness": 1,
        },
        orientation="h",
        marker={"color": SKY if told else GHOST},
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
    )
    return figure(
        [bars],
        x="share of the explained variance, %",
        yaxis_ticks="",
        yaxis_autorange="reversed",
        xaxis_tickvals=[0, 25, 50, 75, 100],
        xaxis_range=[0, 160 * max(part.high for part in parts)],
        annotations=[
            {
                "text": part.label,
                "x": 100 * part.high,
                "y": row,
                "xanchor": "left",
                "xshift": 6,
                "showarrow": False,
                "font": {"size": 12},
            }
            for row, part in enumerate(parts)
        ],
        title=None if told else {"text": "too few trials to tell", "font": {"size": 13}, "y": 0.97},
    )


def standing(trial: Trial) -> str:
    """A trial's status for people: whether a stopped one lost or only waits for `--resume`."""
    if trial.status == "stopped":
        return "interrupted" if trial.resumable else "stopped early"
    return trial.status


def _by_standing(trials: Sequence[Trial]) -> list[tuple[str, list[Trial]]]:
    """Trials of one standing together, in the order of `COLOURS`."""
    members = {name: [trial for trial in trials if standing(trial) == name] for name in COLOURS}
    return [(name, these) for name, these in members.items() if these]


def words(trial: Trial) -> str:
    """A trial that has a dice as the charts show it under the pointer; the page puts it where they have its number."""
    point = "<br>".join(safe(point_label({axis: value})) for axis, value in trial.point.items())
    head = f"<b>trial {trial.number}</b>, {standing(trial)}, dice {trial.dice:.4f} in epoch {trial.best_epoch}"
    reason = [safe(line) for line in wrap(trial.reason, 60)[:4]]
    return "<br>".join([head, f"{trial.gpu_s:.0f} s x devices, {trial.parameters:,} parameters", point, *reason])

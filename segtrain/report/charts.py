"""The charts of a run, and what all charts have in common: plotly figures as JSON, in the colours of Okabe and Ito."""

import html
import json
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import floor, sqrt
from operator import mul
from statistics import fmean, median
from typing import Any

import plotly.graph_objects as go

from segtrain.report.folders import RunContent
from segtrain.runs.goodput import Goodput

BLUE, VERMILION, GREEN, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9"
INK, FAINT, RULE, GHOST = "#1a1a1a", "#5c5c5c", "#e4e4e4", "#d0d5da"
MOST_POINTS = 1500
"""A curve of more steps is drawn from the means of so many stretches: a page does not grow with a run's length."""
HISTOGRAM_BARS = 30
Charts = dict[str, Any]
"""Name of its place in the page -> figure, as plain dicts."""


def figure(traces: Sequence[Any], *, x: str = "", y: str = "", **layout: Any) -> dict[str, Any]:
    """A figure in the style of all charts, as plain dicts; `x` and `y` are the titles of its axes.

    `layout` holds further settings of plotly's layout, with the underscores of its keywords.
    """
    drawn = go.Figure(traces)
    drawn.update_layout(
        template="none",
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": INK},
        paper_bgcolor="white",
        plot_bgcolor="white",
        margin={"l": 58, "r": 16, "t": 34, "b": 46},
        hoverlabel={"bgcolor": "white", "bordercolor": FAINT, "font": {"color": INK, "size": 13}, "align": "left"},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
    )
    for update, title in ((drawn.update_xaxes, x), (drawn.update_yaxes, y)):
        update(
            title={"text": title, "standoff": 8, "font": {"size": 12, "color": FAINT}},
            gridcolor=RULE,
            zeroline=False,
            linecolor="#9a9a9a",
            tickfont={"size": 12},
            automargin=True,
        )
    drawn.update_layout(**layout)
    plain: dict[str, Any] = json.loads(drawn.to_json())
    plain["layout"].pop("template", None)
    return plain


def safe(text: str) -> str:
    """Text for a chart, in which plotly would take tags for its own."""
    return html.escape(text, quote=False)


def run_charts(run: RunContent) -> Charts:
    """Every chart that there are figures for."""
    charts = {
        "loss": _loss(run) if run.steps else None,
        "learning-rate": _learning_rate(run) if run.steps else None,
        "dice": _dice(run) if run.epochs else None,
        "time": _time(run.epochs) if run.epochs else None,
        "goodput": _goodput(run.goodput) if run.goodput.attempts else None,
        "histogram": histogram(run.best["validation_dice"]) if run.best.get("validation_dice") else None,
        "foreground": _by_foreground(run.best) if run.best.get("validation_foreground") else None,
        "threshold": _threshold(run.best) if run.best.get("threshold_curve") else None,
    }
    return {name: chart for name, chart in charts.items() if chart is not None}


def _goodput(goodput: Goodput) -> dict[str, Any]:
    """A bar an attempt, the first on top: its minutes by what they went into."""
    colours = {
        "steps": BLUE,
        "evaluation": SKY,
        "input": ORANGE,
        "checkpoints": GREEN,
        "waiting for resources": RULE,
        "starting": GHOST,
        "lost steps": VERMILION,
        "other": FAINT,
    }
    each = [Goodput((attempt,)).parts() for attempt in goodput.attempts]
    traces = [
        go.Bar(
            y=[f"attempt {number}" for number in range(1, len(each) + 1)],
            x=[parts[kind] / 60 for parts in each],
            name=kind,
            orientation="h",
            marker={"color": colour},
            hovertemplate=f"%{{y}}<br>{kind}: %{{x:.2f}} min<extra></extra>",
        )
        for kind, colour in colours.items()
        if any(parts[kind] >= 0.05 for parts in each)
    ]
    return figure(
        traces,
        x="minutes",
        barmode="stack",
        height=140 + 34 * min(len(each), 12),
        yaxis_autorange="reversed",
        legend_traceorder="normal",
    )


def thinned(x: Sequence[float], y: Sequence[float], most: int = MOST_POINTS) -> tuple[list[float], list[float]]:
    """Means of equal stretches of both, where there are more than `most` points."""
    if len(x) <= most:
        return list(x), list(y)
    cuts = [round(k * len(x) / most) for k in range(most + 1)]
    stretches = [slice(start, end) for start, end in pairwise(cuts)]
    return [fmean(x[part]) for part in stretches], [fmean(y[part]) for part in stretches]


def _over_steps(run: RunContent, name: str) -> tuple[list[float], list[float]]:
    """A column of the steps over epochs; over steps before the first epoch has ended."""
    steps, values = _column(run.steps, name, at="step")
    return thinned([step / (run.steps_per_epoch or 1.0) for step in steps], values)


def _epoch_axis(run: RunContent) -> str:
    return "epoch" if run.epochs else "step"


def _loss(run: RunContent) -> dict[str, Any]:
    x, y = _over_steps(run, "loss")
    traces = [go.Scatter(x=x, y=y, name="each step", mode="lines", line={"color": SKY, "width": 1})]
    if run.epochs:
        traces.append(_line(*_column(run.epochs, "loss"), "mean of the epoch", BLUE))
    return figure(traces, x=_epoch_axis(run), y="training loss")


def _dice(run: RunContent) -> dict[str, Any]:
    traces = [_line(*_column(run.epochs, "dice_training"), "training, soft", SKY)]
    at, scores = _column(run.epochs, "dice_hard_original")
    if at:
        traces.append(_line(at, scores, "validation, hard", BLUE))
    if "epoch" in run.best:
        epoch, dice = run.best["epoch"], run.best["dice_hard_original"]
        traces.append(_marker(epoch, dice, f"{dice:.4f} in epoch {epoch}"))
    return figure(traces, x="epoch", y="dice")


def _learning_rate(run: RunContent) -> dict[str, Any]:
    x, y = _over_steps(run, "learning_rate")
    return figure(
        [_plain_line(x, y)], x=_epoch_axis(run), y="learning rate", yaxis_rangemode="tozero", yaxis_exponentformat="e"
    )


def _time(epochs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    parts = (("compute_s", "compute", BLUE), ("input_wait_s", "waiting for input", ORANGE))
    traces = [_bars(*thinned(*_column(epochs, key), 300), name, colour) for key, name, colour in parts]
    return figure(traces, x="epoch", y="seconds an epoch", barmode="stack", bargap=0.15)


def histogram(dice: Sequence[float]) -> dict[str, Any]:
    """How many pictures have which dice, with a line at the mean and one at the median."""
    width, counts = bins(dice)
    starts = range(min(counts), max(counts) + 1)
    bars = go.Bar(
        x=[(start + 0.5) * width for start in starts],
        y=[counts[start] for start in starts],
        width=width,
        customdata=[f"{start * width:.4f} to {(start + 1) * width:.4f}" for start in starts],
        marker={"color": BLUE, "line": {"color": "white", "width": 1}},
        hovertemplate="dice %{customdata}<br>%{y} pictures<extra></extra>",
        showlegend=False,
    )
    marks = sorted([(fmean(dice), "mean", VERMILION), (median(dice), "median", INK)])
    return figure(
        [bars],
        x="hard dice of a picture",
        y="pictures",
        yaxis_dtick=1 if max(counts.values()) < 8 else None,  # else plotly puts a tick at half a picture
        shapes=[
            {
                "type": "line",
                "x0": at,
                "x1": at,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"color": colour, "width": 2, "dash": "dot"},
            }
            for at, _, colour in marks
        ],
        annotations=[
            {
                "text": f"{name} {at:.4f}",
                "x": at,
                "xanchor": side,
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "showarrow": False,
                "font": {"color": colour, "size": 12},
            }
            for (at, name, colour), side in zip(marks, ("right", "left"), strict=True)
        ],
    )


def bins(dice: Sequence[float]) -> tuple[float, Counter[int]]:
    """Width of a bar, and bar -> how many pictures it has; bar k is from k to k + 1 widths."""
    about = (max(dice) - min(dice)) / min(HISTOGRAM_BARS, 2 * sqrt(len(dice)))
    # The next 1, 2 or 5 times a power of ten that is no smaller, and at least 0.0001: values have six digits.
    width = next(width for width in accumulate((2, 2.5, 2) * 5, mul, initial=1e-4) if width >= about)
    return width, Counter(floor(value / width + 1e-9) for value in dice)


def _by_foreground(best: dict[str, Any]) -> dict[str, Any]:
    pictures = zip(best["validation_dice"], best["validation_foreground"], best["validation_ids"], strict=True)
    dice, shares, ids = zip(*_spread(sorted(pictures)), strict=True)
    points = go.Scatter(
        x=[100 * share for share in shares],
        y=dice,
        mode="markers",
        text=[safe(name) for name in ids],
        marker={"color": BLUE, "size": 7, "opacity": 0.6},
        hovertemplate="%{text}<br>dice %{y:.4f}<br>%{x:.2f} % foreground<extra></extra>",
        showlegend=False,
    )
    return figure([points], x="foreground of the picture, %", y="hard dice", hovermode="closest")


def _spread(ordered: Sequence[tuple[float, float, str]]) -> Sequence[tuple[float, float, str]]:
    """The first of many, which are the worst, and of the others so many that `MOST_POINTS` are drawn in all."""
    worst = MOST_POINTS // 3
    others, left = MOST_POINTS - worst, len(ordered) - worst
    if left <= others:
        return ordered
    return [*ordered[:worst], *(ordered[worst + k * left // others] for k in range(others))]


def _threshold(best: dict[str, Any]) -> dict[str, Any]:
    curve, at, dice = best["threshold_curve"], best["best_threshold"], best["dice_at_best_threshold"]
    line = _plain_line(curve["thresholds"], curve["dice"])
    return figure(
        [line, _marker(at, dice, f"best: {dice:.4f} at {at:.3f}")], x="threshold of the probability", y="mean hard dice"
    )


def _column(lines: Sequence[dict[str, Any]], name: str, at: str = "epoch") -> tuple[list[float], list[float]]:
    """Epochs or steps, and the values of a column in them, where it has one."""
    there = [line for line in lines if isinstance(line.get(name), int | float)]
    return [line[at] for line in there], [line[name] for line in there]


def _line(x: Sequence[float], y: Sequence[float], name: str, colour: str) -> go.Scatter:
    x, y = thinned(x, y)
    return go.Scatter(
        x=x,
        y=y,
        name=name,
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"color": colour, "size": 6 if len(x) <= 60 else 3},
    )


def _plain_line(x: Sequence[float], y: Sequence[float]) -> go.Scatter:
    """The only curve of a chart, which needs no name."""
    return go.Scatter(x=x, y=y, mode="lines", line={"color": BLUE, "width": 2}, showlegend=False)


def _bars(x: Sequence[float], y: Sequence[float], name: str, colour: str) -> go.Bar:
    return go.Bar(x=x, y=y, name=name, marker={"color": colour, "line": {"width": 0}})


def _marker(x: float, y: float, name: str) -> go.Scatter:
    """The best of a curve."""
    look = {"color": VERMILION, "size": 11, "symbol": "diamond", "line": {"color": "white", "width": 1}}
    return go.Scatter(x=[x], y=[y], name=name, mode="markers", marker=look)

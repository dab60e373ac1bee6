"""Parallel coordinates: an upright axis for every searched field and one for dice, a line for every trial.

These are lines and markers in SVG. Others were tried:

- Plotly's own Parcoords need WebGL, which a machine without a GPU may not have. They have neither gaps nor text under
  the pointer.
- Optuna's chart makes a trace for each trial, 201 for 200 trials where this one has ten. It puts all trials of a
  category on one point, sorts categories by the first trial that has them, cuts long names, writes JSON for values,
  and cannot be filtered by a box.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from segtrain.config import Axis
from segtrain.report.charts import BLUE, FAINT, GHOST, INK, VERMILION, figure, safe
from segtrain.runs.trials import Trial, short_name, short_value

SHADES = 8
"""Trials are coloured by rank in so many shades; the best has a colour of its own."""
PALE = (203, 213, 222)
LANE = 0.05
"""Trials of one category spread over so much of an axis to either side of it, the better the higher."""
NOT_SEARCHED = -0.14
"""Height of the trials that an axis does not apply to."""


@dataclass(frozen=True)
class Upright:
    """One axis: heights 0 to 1 of its values, and the ticks beside it."""

    title: str
    ticks: Sequence[tuple[float, str]]
    heights: Sequence[float | None]
    """A trial's, in the order of the trials; None where the axis does not apply to it."""


def parallel(ranked: Sequence[Trial], axes: Mapping[str, Axis | None]) -> dict[str, Any]:
    """The chart of trials that have a dice, best first. An axis that the recipe does not describe is None."""
    uprights = [
        *(_upright(name, axis, ranked) for name, axis in axes.items()),
        _range("dice", [trial.dice or 0.0 for trial in ranked], logarithmic=False),
    ]
    x = list(range(len(uprights)))
    heights = [[NOT_SEARCHED if at is None else at for at in upright.heights] for upright in uprights]
    lines = list(zip(*heights, strict=True))
    traces = [_lines("", x, lines, ranked, color=GHOST, width=1, context=True)]
    for shade in reversed(range(SHADES)):
        # Of those of one shade the better are drawn later.
        these = [k for k in range(len(ranked) - 1, 0, -1) if (k - 1) * SHADES // (len(ranked) - 1) == shade]
        if these:
            drawn, trials = [lines[k] for k in these], [ranked[k] for k in these]
            traces.append(_lines("", x, drawn, trials, color=_shade(shade), width=1.6))
    traces.append(_lines("best", x, lines[:1], ranked[:1], color=VERMILION, width=3.5))
    return figure(
        traces,
        height=430,
        hovermode="closest",
        dragmode="select",
        margin={"l": 30, "r": 86, "t": 54, "b": 16},
        showlegend=False,
        xaxis={"visible": False, "range": [-0.15, len(uprights) - 0.75], "fixedrange": True},
        yaxis={"visible": False, "range": [NOT_SEARCHED - 0.06, 1.09], "fixedrange": True},
        shapes=[
            {
                "type": "line",
                "x0": k,
                "x1": k,
                "y0": 0,
                "y1": 1,
                "line": {"color": "#8a8a8a", "width": 1},
                "layer": "below",
            }
            for k in x
        ],
        annotations=[note for k, upright in enumerate(uprights) for note in _notes(k, upright)],
        newselection={"line": {"color": INK, "width": 1, "dash": "dot"}},
        activeselection={"fillcolor": BLUE, "opacity": 0.12},
    )


def _lines(
    name: str,
    x: Sequence[int],
    lines: Sequence[Sequence[float]],
    trials: Sequence[Trial],
    *,
    color: str,
    width: float,
    context: bool = False,
) -> go.Scatter:
    """The lines of several trials in one trace, with gaps between them; `context` stays when others are filtered."""
    return go.Scatter(
        x=[value for _ in lines for value in (*x, None)],
        y=[value for line in lines for value in (*line, None)],
        name=name,
        mode="lines" if context else "lines+markers",
        line={"color": color, "width": width},
        marker={"color": color, "size": 5 if width < 3 else 8},
        customdata=None if context else [one.number for one in trials for _ in range(len(x) + 1)],
        hovertemplate=None if context else "%{text}<extra></extra>",
        hoverinfo="skip" if context else None,
    )


def _shade(shade: int) -> str:
    """From blue, the best, to pale."""
    share = shade / (SHADES - 1)
    blue = tuple(int(BLUE[k : k + 2], 16) for k in (1, 3, 5))
    red, green, other = (round(strong + (weak - strong) * share**0.6) for strong, weak in zip(blue, PALE, strict=True))
    return f"rgb({red},{green},{other})"


def _upright(name: str, axis: Axis | None, ranked: Sequence[Trial]) -> Upright:
    values = [trial.point.get(name) for trial in ranked]
    if axis is None or axis.values is not None:
        return _categories(name, [] if axis is None else list(axis.values or ()), values)
    return _range(short_name(name), values, logarithmic=axis.loguniform is not None)


def _categories(name: str, choices: Sequence[Any], values: Sequence[Any]) -> Upright:
    """The choices of the recipe from below, and above them what trials have besides, from starting points."""
    keys = list(dict.fromkeys(json.dumps(value) for value in [*choices, *values] if value is not None))
    places = {key: (k + 0.5) / len(keys) for k, key in enumerate(keys)}
    lane = min(LANE, 0.35 / max(1, len(keys)))
    lift = [lane * (1 - 2 * k / max(1, len(values) - 1)) for k in range(len(values))]
    heights = [
        None if value is None else places[json.dumps(value)] + up for value, up in zip(values, lift, strict=True)
    ]
    return Upright(short_name(name), [(place, short_value(json.loads(key))) for key, place in places.items()], heights)


def _range(title: str, values: Sequence[float | None], *, logarithmic: bool) -> Upright:
    """An axis from the lowest to the highest value that a trial has."""
    there = [value for value in values if value is not None]
    low, high = min(there, default=0.0), max(there, default=1.0)
    scaled, back = (math.log, math.exp) if logarithmic and low > 0 else (float, float)
    span = scaled(high) - scaled(low)
    heights = [None if value is None else (scaled(value) - scaled(low)) / span if span else 0.5 for value in values]
    if not span:
        return Upright(title, [(0.5, short_value(low))], heights)
    # Three digits are enough beside an axis.
    ticks = [(k / 4, f"{float(short_value(back(scaled(low) + span * k / 4))):.3g}") for k in range(5)]
    return Upright(title, ticks, heights)


def _notes(at: int, upright: Upright) -> list[dict[str, Any]]:
    """The title above an axis and the values beside it."""
    plain = {"x": at, "showarrow": False}
    title = "<br>".join(safe(part) for part in upright.title.split(","))
    below = [(NOT_SEARCHED, "not searched")] if None in upright.heights else []
    return [
        {**plain, "y": 1.07, "yanchor": "bottom", "text": f"<b>{title}</b>", "font": {"size": 12, "color": INK}},
        *(
            {
                **plain,
                "y": height,
                "xanchor": "left",
                "xshift": 7,
                "text": safe(text),
                "font": {"size": 11, "color": FAINT if text == "not searched" else INK},
                "bgcolor": "rgba(255,255,255,0.82)",
                "borderpad": 1,
            }
            for height, text in (*upright.ticks, *below)
        ),
    ]

"""A page as one file: templates, style, scripts, plotly and pictures in it, and nothing that a browser would fetch."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from segtrain.errors import gib
from segtrain.locations import without_credentials
from segtrain.report.charts import Charts
from segtrain.runs.trials import short_name, short_value


def render(template: str, charts: Charts, words: Mapping[int, str], **values: Any) -> str:
    """The page `template` with its `values`, which are escaped. `words` are the texts of trials by number."""
    templates = Environment(
        loader=PackageLoader("segtrain.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "count": lambda value: f"{value:,}",
        "short": short,
        "short_name": short_name,
        "short_value": short_value,
        "size": gib,
        "without_credentials": without_credentials,
    }
    templates.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return templates.get_template(template).render(
        plotly=Markup(plotly_script()),
        charts=charts,
        data={"charts": charts, "words": words},
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **values,
    )


def duration(seconds: float) -> str:
    """`42 s`, `12 min 5 s`, `3 h 20 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def short(count: int) -> str:
    """`31.5 M`, `132 k`, `840`."""
    if count >= 10**6:
        return f"{count / 10**6:.3g} M"
    return f"{count / 10**3:.3g} k" if count >= 10**3 else str(count)


def plotly_script() -> str:
    """plotly's script as its package has it, less the function around it that is for loaders of modules.

    The browser would parse the 4.8 MB inside that function once more, only to find its end: 0.4 s of 1.4.
    """
    script = get_plotlyjs()
    licence, _, _ = script.partition("*/")
    start, end = script.find('"use strict";var Plotly=('), script.rfind("window.Plotly = Plotly;")
    return f"{licence}*/\n{script[start:end]}" if 0 < start < end else script

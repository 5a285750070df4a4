"""Line charts by plotly, as fragments of a page: values under the pointer, zoom, lines switched on and off.

A chart has no colours of its own but those of its lines: text, grid and background follow the page, light or dark, by
`CHART_CSS`. The page must hold plotly's script once, before the first chart: `page.html_page` takes care of that.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeVar
from urllib.parse import quote

from plotly.graph_objects import Figure, Scatter
from plotly.io import to_html

MAX_POINTS = 1000  # a line; more are averaged in runs, which no screen would show apart
MAX_MARKED_POINTS = 40  # a line; so few get a dot each
MAX_LINES_IN_ONE_BOX = 8  # whose values are shown together; of more lines the nearest one's
PLOT_HEIGHT, LEGEND_ROW_HEIGHT, NAMES_A_ROW = 300, 20, 4  # pixels
EVENT_ROW_HEIGHT = 28
# These buttons alone: plotly's own choice has one that sends the chart to its maker.
CONFIG = {
    "displaylogo": False,
    "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    "responsive": True,
}

T = TypeVar("T")

COLOUR, MARKED_COLOUR = "hsl(210,70%,50%)", "hsl(20,70%,50%)"

CHART_CSS = """
figure { margin: 0; min-width: 0; }
figcaption { font-weight: 600; }
.js-plotly-plot text { fill: currentColor !important; }
.js-plotly-plot .gridlayer path, .js-plotly-plot .zerolinelayer path { stroke: var(--grid) !important; }
.js-plotly-plot .shapelayer path { stroke: currentColor !important; }
.js-plotly-plot .infolayer .legend .bg { fill: transparent !important; }
.js-plotly-plot .hoverlayer .hovertext > :is(path, rect), .js-plotly-plot .hoverlayer .bg { fill: Canvas !important; }
.js-plotly-plot .hoverlayer .hovertext > path, .js-plotly-plot .hoverlayer .bg { stroke: currentColor !important; }
.js-plotly-plot .modebar-group { background: transparent !important; }
.js-plotly-plot .modebar-btn path { fill: currentColor !important; }
@media (prefers-color-scheme: dark) { .js-plotly-plot :is(.scatterlayer, .legend) { filter: brightness(1.35); } }
"""


@dataclass(frozen=True)
class Line:
    """A line of a chart: points in order of x. Points whose y is not finite are left out.

    Attributes:
        colour: of CSS, to be seen on white and on black; `palette` has as many as needed.
        dash: `solid`, `dash`, `dot` or `dashdot`.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = COLOUR
    dash: str = "solid"


def palette(names: Sequence[T]) -> dict[T, str]:
    """A colour for each name, evenly spaced in hue; neighbours differ in lightness too."""
    hues = [round(210 + 360 * number / len(names)) % 360 for number in range(len(names))]
    return {
        name: f"hsl({hue},70%,{44 + 18 * (number % 2)}%)"
        for number, (name, hue) in enumerate(zip(names, hues, strict=True))
    }


def line_chart(
    title: str,
    lines: Iterable[Line],
    log: bool = False,
    from_zero: bool = False,
    x_name: str = "step",
    marks: Sequence[float] = (),
    stacked: bool = False,
) -> str:
    """An HTML element with one line per series; the empty text if there is nothing to show.

    Args:
        title: stands above the chart; it must be the only one of this title in its page.
        lines: the series, named in a legend where there are several.
        log: logarithmic y axis; points that are not positive are left out.
        from_zero: let the y axis begin at 0.
        x_name: what stands under the x axis.
        marks: values of x at which a dotted line stands upright.
        stacked: lay the lines, which have the same x, on top of each other as areas.
    """
    drawn = [kept for line in lines if (kept := _drawable(line, log)).x]
    if not drawn:
        return ""
    several = len(drawn) > 1
    height = PLOT_HEIGHT + (LEGEND_ROW_HEIGHT * math.ceil(len(drawn) / NAMES_A_ROW) if several else 0)
    layout = _layout(x_name, log, from_zero, len(drawn), marks)
    return _as_element(title, Figure([_scatter(line, stacked) for line in drawn], layout), height)


def event_chart(title: str, spans: Sequence[tuple[str, str, str]], moments: Sequence[tuple[str, str, str]]) -> str:
    """An HTML element with a row for each kind of event and the time, in UTC, from left to right.

    Args:
        title: stands above the chart; it must be the only one of this title in its page.
        spans: (kind, begin, end) of what lasts, drawn as bars.
        moments: (kind, time, text) of what happens, drawn as dots that show their text under the pointer.
    """
    kinds = list(dict.fromkeys(kind for kind, _, _ in [*spans, *moments]))
    bars = Scatter(
        name="spans",
        x=[time for _, begin, end in spans for time in (begin, end, None)],
        y=[row for kind, _, _ in spans for row in (kind, kind, None)],
        mode="lines",
        line={"color": COLOUR, "width": 9},
        hoverinfo="skip",
    )
    dots = Scatter(
        name="moments",
        x=[time for _, time, _ in moments],
        y=[kind for kind, _, _ in moments],
        text=[escape(text, quote=False) for _, _, text in moments],
        hovertemplate="%{x}<br>%{text}<extra></extra>",
        mode="markers",
        marker={"size": 8, "color": MARKED_COLOUR},
    )
    layout = _layout("UTC", False, False, 1, ())
    layout["xaxis"] = {"automargin": True, "type": "date", "title": {"text": "UTC"}}
    layout["yaxis"] = {"automargin": True, "categoryorder": "array", "categoryarray": kinds[::-1]}
    layout["hovermode"], layout["showlegend"] = "closest", False
    return _as_element(title, Figure([bars, dots], layout), EVENT_ROW_HEIGHT * (len(kinds) + 3))


def _as_element(title: str, figure: Figure, height: int) -> str:
    chart = to_html(
        figure,
        config=CONFIG,
        include_plotlyjs=False,
        full_html=False,
        default_height=f"{height}px",
        div_id=quote(title, safe=""),
    )
    return f"<figure><figcaption>{escape(title)}</figcaption>{chart}</figure>"


def _scatter(line: Line, stacked: bool) -> Scatter:
    return Scatter(
        name=escape(line.name, quote=False),  # plotly takes tags in a name for formatting
        x=list(line.x),
        y=list(line.y),
        mode="lines+markers" if len(line.x) <= MAX_MARKED_POINTS else "lines",
        line={"color": line.colour, "dash": line.dash, "width": 1.6},
        marker={"size": 5},
        stackgroup="all" if stacked else None,
    )


def _layout(x_name: str, log: bool, from_zero: bool, num_lines: int, marks: Sequence[float]) -> dict[str, Any]:
    axis = {"automargin": True, "exponentformat": "e", "minexponent": 5, "hoverformat": ".4g"}
    return {
        "template": {},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif"},
        "margin": {"l": 8, "r": 8, "t": 28, "b": 8},  # at the top is room for plotly's buttons
        "xaxis": {**axis, "title": {"text": x_name}, "tickformat": ",", "hoverformat": ","},
        "yaxis": {
            **axis,
            "type": "log" if log else "linear",
            "dtick": "D2" if log else None,
            "tickformat": "~g" if log else None,
            "rangemode": "tozero" if from_zero else "normal",
        },
        "hovermode": "x unified" if num_lines <= MAX_LINES_IN_ONE_BOX else "closest",
        "hoverlabel": {"namelength": -1},
        "showlegend": num_lines > 1,
        "shapes": [
            {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "line": {"width": 1, "dash": "dot"}}
            for x in marks
        ],
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
    }


def _drawable(line: Line, log: bool) -> Line:
    """The points that can be shown, averaged in runs where there are too many."""
    points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y) and (y > 0 or not log)]
    run = math.ceil(len(points) / MAX_POINTS) or 1
    means = []
    for start in range(0, len(points), run):
        x, y = zip(*points[start : start + run], strict=True)
        means.append((sum(x) / len(x), sum(y) / len(y)))
    return Line(line.name, [x for x, _ in means], [y for _, y in means], line.colour, line.dash)

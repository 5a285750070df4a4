"""Line charts as inline SVG: text stays text, colours follow the page's light or dark theme, no script.

The page defines the CSS of the classes used here; `CHART_CSS` has it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, MIN_PLOT_HEIGHT, MAX_PLOT_HEIGHT = 640, 190, 560
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 30, 38
LABEL_HEIGHT, CHARACTER_WIDTH = 13, 6.3  # of 11 px text
MAX_POINTS = 500  # a line; more are averaged in runs, which no screen would show apart

CHART_CSS = """
:root { --line-lightness: 40%; --grid: #8884; }
@media (prefers-color-scheme: dark) { :root { --line-lightness: 68%; } }
svg { width: 100%; height: auto; font: 11px system-ui, sans-serif; }
svg text { fill: currentColor; }
svg .title { font-size: 14px; font-weight: 600; }
svg .grid { stroke: var(--grid); stroke-width: 1; }
svg .line { fill: none; stroke: hsl(var(--hue) 75% var(--line-lightness)); stroke-width: 1.4; stroke-linejoin: round; }
svg .leader { stroke: hsl(var(--hue) 75% var(--line-lightness)); stroke-width: 0.5; }
svg .point, svg .label { fill: hsl(var(--hue) 75% var(--line-lightness)); }
svg g:hover > .line { stroke-width: 4; }
svg g:hover > .label { font-weight: 700; }
"""


@dataclass(frozen=True)
class Series:
    """A line: points in order of x. Points that are not finite are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(
    title: str, lines: Sequence[Series], log: bool = False, from_zero: bool = False, x_name: str = "step"
) -> str:
    """An SVG element with one line per series, each named at its end where there are several.

    Args:
        log: logarithmic y axis; points that are not positive are left out.
        from_zero: let the y axis begin at 0.
        x_name: what stands under the x axis.
    """
    lines = [kept for line in lines if (kept := _drawable(line, log)).x]
    if not lines:
        return ""
    lines.sort(key=lambda line: -line.y[-1])
    height = min(max(MIN_PLOT_HEIGHT, LABEL_HEIGHT * len(lines)), MAX_PLOT_HEIGHT)
    label_width = CHARACTER_WIDTH * max(len(line.name) for line in lines) if len(lines) > 1 else 0
    values = [y for line in lines for y in line.y] + ([0.0] if from_zero else [])
    x_axis = _Axis([x for line in lines for x in line.x], LEFT, WIDTH - RIGHT - label_width)
    y_axis = _Axis(values, TOP + height, TOP, log)
    labels = _label_positions([y_axis.place(line.y[-1]) for line in lines], TOP, TOP + height)
    parts = [f'<text class="title" x="{LEFT}" y="16">{escape(title)}</text>']
    parts += _grid(x_axis, y_axis, x_name)
    # hues in the order of the names, not of the values, so that a direction looks alike in every chart
    names = sorted({line.name for line in lines})
    hue_of = {name: round(number * 360 / len(names) + 210) % 360 for number, name in enumerate(names)}
    parts += [
        _draw(line, x_axis, y_axis, x_name, hue_of[line.name], label if len(lines) > 1 else None)
        for line, label in zip(lines, labels, strict=True)
    ]
    size = f'viewBox="0 0 {WIDTH} {TOP + height + BOTTOM}" role="img" aria-label="{escape(title)}"'
    return f"<svg {size}>{''.join(parts)}</svg>"


def standalone(chart: str) -> str:
    """The content of an SVG file with a chart of `line_chart`."""
    return chart.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
        ">", f"><style>{CHART_CSS}</style>", 1
    )


def _drawable(line: Series, log: bool) -> Series:
    """The points that can be shown, averaged in runs where there are too many."""
    points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y) and (y > 0 or not log)]
    run = -(-len(points) // MAX_POINTS) or 1
    means = [
        [sum(values) / len(values) for values in zip(*points[start : start + run], strict=True)]
        for start in range(0, len(points), run)
    ]
    return Series(line.name, [x for x, _ in means], [y for _, y in means])


class _Axis:
    """Maps values to pixels between two ends; either end may be the larger pixel."""

    def __init__(self, values: Sequence[float], first: float, last: float, log: bool = False) -> None:
        self.first, self.last, self.log = first, last, log
        low, high = self._scale(min(values)), self._scale(max(values))
        if low == high:
            margin = abs(low) / 2 or 0.5
            low, high = low - margin, high + margin
        step = _nice_step((high - low) / 5)
        self.low, self.high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        count = round((self.high - self.low) / step)
        ticks = [self.low + step * number for number in range(count + 1)]
        self.ticks = [10**tick if log else tick for tick in ticks]

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def place(self, value: float) -> float:
        """The pixel of a value."""
        share = (self._scale(value) - self.low) / (self.high - self.low)
        return self.first + share * (self.last - self.first)


def _nice_step(least: float) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _grid(x_axis: _Axis, y_axis: _Axis, x_name: str) -> list[str]:
    parts = []
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{x_axis.last:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in x_axis.ticks:
        x = x_axis.place(tick)
        parts.append(f'<text x="{x:.1f}" y="{y_axis.first + 16:.1f}" text-anchor="middle">{_number(tick)}</text>')
    middle = (LEFT + x_axis.last) / 2
    parts.append(f'<text x="{middle:.1f}" y="{y_axis.first + 32:.1f}" text-anchor="middle">{x_name}</text>')
    return parts


def _draw(line: Series, x_axis: _Axis, y_axis: _Axis, x_name: str, hue: int, label_y: float | None) -> str:
    """A line, a dot at its end, and its name there unless it is None (a single line) or nan (no room)."""
    places = [(x_axis.place(x), y_axis.place(y)) for x, y in zip(line.x, line.y, strict=True)]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    end_x, end_y = places[-1]
    parts = [
        f"<title>{escape(line.name)}: {_number(line.y[-1])} at {x_name} {_number(line.x[-1])}</title>",
        f'<polyline class="line" points="{points}"/>',
        f'<circle class="point" cx="{end_x:.1f}" cy="{end_y:.1f}" r="2"/>',
    ]
    if label_y is not None and math.isfinite(label_y):
        x, name = x_axis.last + 18, escape(line.name)
        parts.append(f'<path class="leader" d="M{end_x:.1f} {end_y:.1f}L{x - 3:.1f} {label_y:.1f}"/>')
        parts.append(f'<text class="label" x="{x:.1f}" y="{label_y + 4:.1f}">{name}</text>')
    return f'<g style="--hue:{hue}">{"".join(parts)}</g>'


def _label_positions(wanted: Sequence[float], top: float, bottom: float) -> list[float]:
    """Pixels of labels (given from top to bottom) as near to the wanted ones as possible without overlap.

    Those there is no room for are nan: the last ones, which have the lowest values.
    """
    room = int((bottom - top) / LABEL_HEIGHT) + 1
    placed: list[float] = []
    for y in wanted[:room]:
        placed.append(max(y, placed[-1] + LABEL_HEIGHT) if placed else y)
    lowest = bottom
    for number in reversed(range(len(placed))):
        placed[number] = min(placed[number], lowest)
        lowest = placed[number] - LABEL_HEIGHT
    return placed + [math.nan] * (len(wanted) - len(placed))


def _number(value: float) -> str:
    """Short and exact enough to read: 20,000; 2.5; 3e-05."""
    if abs(value) < 1e-12:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"

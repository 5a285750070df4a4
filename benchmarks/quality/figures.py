"""Figures of records as small SVG files, in colours to be read on white and on black."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

from deltalm_ds.files import atomic_file
from deltalm_ds.report.charts import palette

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 300, 220, 52, 12, 28, 38  # pixels, of a panel and around what it draws
TEXT, GRID = "#808080", "#80808040"

Points = Sequence[tuple[float, float]]


def log_log(path: Path, x_name: str, panels: Mapping[str, Points]) -> None:
    """One panel a line side by side, both axes logarithmic, every point with its value."""
    colours = palette(list(panels))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * len(panels)}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="11" fill="{TEXT}">'
    ]
    for number, (name, points) in enumerate(panels.items()):
        parts += [
            f'<g transform="translate({WIDTH * number} 0)">',
            *_panel(name, x_name, points, colours[name]),
            "</g>",
        ]
    with atomic_file(path, "w") as file:
        file.write("\n".join([*parts, "</svg>", ""]))


def _panel(name: str, x_name: str, points: Points, colour: str) -> list[str]:
    xs, ys = zip(*points, strict=True)
    x_of = _axis(xs, LEFT + 14, WIDTH - RIGHT - 22)
    y_of = _axis(_wide(ys), HEIGHT - BOTTOM, TOP + 16)
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts = [_text(middle, 14, name, "middle"), _text(middle, HEIGHT - 6, x_name, "middle")]
    for tick in _ticks(_wide(ys)):
        y = y_of(tick)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{GRID}"/>')
        parts.append(_text(LEFT - 5, y + 4, _short(tick), "end"))
    line = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for x, y in points:
        parts.append(f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3" fill="{colour}"/>')
        parts.append(_text(x_of(x), y_of(y) - 7, _short(y), "middle"))
        parts.append(_text(x_of(x), HEIGHT - BOTTOM + 15, _short(x), "middle"))
    return parts


def _wide(values: Sequence[float]) -> tuple[float, float]:
    """Their range, at least a factor of ten, so that what hardly grows is not shown as growing."""
    low, high = min(values), max(values)
    spare = max(1.0, math.sqrt(10 * low / high))
    return low / spare, high * spare


def _axis(values: Sequence[float], begin: float, end: float) -> Callable[[float], float]:
    """Value -> pixel."""
    low, high = math.log(min(values)), math.log(max(values))
    return lambda value: begin + (math.log(value) - low) / (high - low) * (end - begin)


def _ticks(bounds: tuple[float, float]) -> list[float]:
    powers = range(math.floor(math.log10(bounds[0])), math.ceil(math.log10(bounds[1])) + 1)
    found = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return [tick for tick in found if bounds[0] <= tick <= bounds[1]]


def _short(value: float) -> str:
    """Three digits at most, thousands and millions by a letter."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'

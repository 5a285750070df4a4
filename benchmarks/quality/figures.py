"""Figures of records as small SVG files, in colours to be read on white and on black."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

from benchmarks.recording import ROOT
from deltalm_ds.files import atomic_file
from deltalm_ds.report.charts import palette

FIGURES = ROOT / "docs" / "figures"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 300, 220, 52, 12, 28, 38  # pixels, of a panel and around what it draws
TEXT, GRID = "#808080", "#80808040"

Points = Sequence[tuple[float, float]]


def log_log(path: Path, x_name: str, panels: Mapping[str, Points]) -> None:
    """One panel a line side by side, both axes logarithmic, every point with its value."""
    colours = palette(list(panels))
    parts = [_begin(WIDTH * len(panels), HEIGHT)]
    for number, (name, points) in enumerate(panels.items()):
        parts += [
            f'<g transform="translate({WIDTH * number} 0)">',
            *_panel(name, x_name, points, colours[name]),
            "</g>",
        ]
    _write(path, parts)


def curves(path: Path, x_name: str, y_name: str, lines: Mapping[str, Points]) -> None:
    """Lines over one another, both axes from zero, each named at its side in its colour."""
    colours = palette(list(lines))
    wide, high = 2 * WIDTH, HEIGHT + 60
    x_most, y_most = (max(point[i] for points in lines.values() for point in points) or 1.0 for i in (0, 1))
    x_of = _from_zero(x_most, LEFT, WIDTH + LEFT)
    y_of = _from_zero(y_most, high - BOTTOM, TOP)
    parts = [_begin(wide, high), _text(LEFT - 5, 14, y_name, "start"), _text(x_of(x_most), high - 6, x_name, "end")]
    for tick in _round_steps(y_most):
        parts.append(f'<path d="M{LEFT} {y_of(tick):.1f}H{x_of(x_most):.1f}" stroke="{GRID}"/>')
        parts.append(_text(LEFT - 5, y_of(tick) + 4, _short(tick), "end"))
    parts += [_text(x_of(tick), high - BOTTOM + 15, _short(tick), "middle") for tick in _round_steps(x_most)]
    for number, (name, points) in enumerate(lines.items()):
        line = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colours[name]}" stroke-width="2"/>')
        parts.append(f'<g fill="{colours[name]}">{_text(x_of(x_most) + 8, TOP + 10 + 16 * number, name, "start")}</g>')
    _write(path, parts)


def _from_zero(most: float, begin: float, end: float) -> Callable[[float], float]:
    """Value -> pixel."""
    return lambda value: begin + value / most * (end - begin)


def _round_steps(most: float) -> list[float]:
    """From zero, four to ten of them."""
    step = next(
        factor * 10.0**power for power in range(-3, 12) for factor in (1, 2, 5) if most < 10 * factor * 10.0**power
    )
    return [step * number for number in range(int(most / step) + 1)]


def _begin(width: int, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="11" fill="{TEXT}">'
    )


def _write(path: Path, parts: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
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

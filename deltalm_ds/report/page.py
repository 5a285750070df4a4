"""HTML pages that are one file each and load nothing: the skeleton and its style, tables, and plotly's script."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from plotly.offline import get_plotlyjs

from deltalm_ds.report.charts import CHART_CSS

PAGE_CSS = """
:root { color-scheme: light dark; --grid: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1360px; margin: 0 auto; padding: 1rem 1.5rem 4rem; }
h1 { margin-bottom: 0; } h2 { margin: 2.5rem 0 .5rem; }
.charts { display: grid; gap: 2rem 1.5rem; margin-top: 2rem; }
.charts { grid-template-columns: minmax(0, 1fr); }
@media (min-width: 1000px) { .charts { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: start; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
.number { text-align: end; }
.note { opacity: .75; font-size: 13px; }
"""
# The browser itself keeps the page from loading anything, whatever stands in it.
NOTHING_FROM_ELSEWHERE = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; form-action 'none'"
)


def html_page(title: str, sections: Iterable[str]) -> str:
    """A whole page of HTML elements; about 5 MB where there are charts, since plotly's script is in it then."""
    body = "\n".join(section for section in sections if section)
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{NOTHING_FROM_ELSEWHERE}">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{escape(title)}</title>",
        f"<style>{PAGE_CSS}{CHART_CSS}</style>",
    ]
    if "<figure>" in body:
        head.append(f"<script>{get_plotlyjs()}</script>")
    return f'<!DOCTYPE html>\n<html lang="en"><head>{"".join(head)}</head>\n<body>{body}</body></html>\n'


def chart_grid(charts: Iterable[str]) -> str:
    """Charts of `charts.line_chart` side by side where the window is wide enough."""
    shown = "".join(charts)
    return f'<div class="charts">{shown}</div><noscript>The charts need JavaScript.</noscript>' if shown else ""


def section(title: str, content: str) -> str:
    """A titled part of a page; nothing if it has no content."""
    return f"<h2>{escape(title)}</h2>\n{content}" if content else ""


def note(text: str) -> str:
    """A small remark."""
    return f'<p class="note">{escape(text)}</p>'


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; columns of numbers are aligned to the right, None is an empty cell. No rows: no table.

    `header` names the columns, or is empty.
    """
    rows = list(rows)
    if not rows:
        return ""
    numeric = [all(isinstance(value, int | float | None) for value in column) for column in zip(*rows, strict=True)]
    classes = [' class="number"' if is_number else ' dir="auto"' for is_number in numeric]
    head = "".join(f"<th{c}>{escape(name)}</th>" for c, name in zip(classes, header, strict=False))
    lines = [f"<tr>{head}</tr>"] if header else []
    lines += [
        "<tr>" + "".join(f"<td{c}>{_cell(value)}</td>" for c, value in zip(classes, row, strict=True)) + "</tr>"
        for row in rows
    ]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))

"""A page of the report taken apart."""

import json
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote


class Page(HTMLParser):
    """Rows of all tables, headings, scripts, attributes with addresses; checks that tags are closed in order."""

    VOID = ("meta", "!doctype")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.headings: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.paragraphs: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.urls: list[str] = []
        self.metas: dict[str, str] = {}
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.urls += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "action", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "meta":
            found = {name: value or "" for name, value in attrs}
            self.metas[found.get("http-equiv", "")] = found.get("content", "")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "script":
            self.scripts.append("")
        if tag == "p":
            self.paragraphs.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside in ("td", "th"):
            self.rows[-1][-1] += data
        if inside in ("h1", "h2"):
            self.headings.append(data)
        if inside == "script":
            self.scripts[-1] += data
        if inside == "style":
            self.styles.append(data)
        if "p" in self.open:
            self.paragraphs[-1] += data

    def figures(self) -> dict[str, dict[str, Any]]:
        """What is given to plotly by the title of the chart: its lines, layout and config."""
        found = {}
        for script in self.scripts[1:]:
            values, rest = [], script[script.index("Plotly.newPlot(") + len("Plotly.newPlot(") :]
            for _ in range(4):
                value, end = json.JSONDecoder().raw_decode(rest.lstrip(" ,\n"))
                rest = rest.lstrip(" ,\n")[end:]
                values.append(value)
            name, data, layout, config = values
            found[unquote(name)] = {"lines": {line["name"]: line for line in data}, "layout": layout, "config": config}
        return found

    def row(self, first: str) -> list[str]:
        return next(row for row in self.rows if row[0] == first)


def points(line: dict[str, Any]) -> list[tuple[float, float]]:
    return list(zip(line["x"], line["y"], strict=True))

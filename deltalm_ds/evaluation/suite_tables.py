"""The paper's tables with the rows of a suite, and how sure they are; as text, Markdown, LaTeX and JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.evaluation.scores import DirectionScore
from deltalm_ds.evaluation.significance import LIKELY, TEST, difference, interval, margin, mean_of
from deltalm_ds.evaluation.suites import Result
from deltalm_ds.evaluation.tasks.interface import Table


@dataclass(frozen=True)
class Cell:
    """A score, or a mean over directions.

    Attributes:
        interval: of 95 % of the resamples; None where nothing is resampled, as of a published score.
        p: of its difference from the baseline; None for the baseline and without one.
    """

    value: float
    interval: tuple[float, float] | None = None
    p: float | None = None

    @property
    def is_marked(self) -> bool:
        """Whether it differs from the baseline by more than the choice of sentences explains."""
        return self.p is not None and self.p < LIKELY

    @property
    def text(self) -> str:
        """The value with half of its interval, and a star where it is marked."""
        return f"{self.value:.2f}{margin(self.interval)}{'*' if self.is_marked else ''}"


@dataclass(frozen=True)
class FilledTable:
    """A table with its cells; None where nothing was run. note: what marks mean; empty where there are none."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    note: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON: of each row the values, and beside them intervals and p."""
        rows = [
            {
                "system": name,
                "cells": [cell and cell.value for cell in cells],
                "intervals": [cell and cell.interval for cell in cells],
                "p": [cell and cell.p for cell in cells],
            }
            for name, cells in self.rows
        ]
        return {"title": self.title, "columns": list(self.header[1:]), "rows": rows, "note": self.note}


def fill_table(table: Table, results: Sequence[Result], systems: Sequence[str], baseline: str) -> FilledTable:
    """A table of the paper with the rows of these systems behind the published ones.

    Args:
        table: its layout.
        results: of a suite.
        systems: their names, in order; one without results has empty cells.
        baseline: the one that the others are compared with.
    """
    found = {(result.system.name, result.score.direction): result for result in results}
    by_direction = [((direction,), table.metrics[0]) for direction in table.directions if table.is_by_direction]
    columns = [*by_direction, *((table.directions, metric) for metric in table.metrics)]
    empty: tuple[Cell | None, ...] = (None,) * len(by_direction)
    rows = [(name, (*empty, *map(Cell, averages))) for name, averages in table.published.items()]
    for system in systems:
        of_columns = [([found.get((system, each)) for each in directions], metric) for directions, metric in columns]
        rows.append((system, tuple(_cell(of_column, metric) for of_column, metric in of_columns)))
    titles = (*table.directions, "average") if by_direction else tuple(METRICS[name].title for name in table.metrics)
    has_marks = any(cell and cell.is_marked for _, cells in rows for cell in cells)
    note = f"* differs from {baseline}, p < {LIKELY} ({TEST})" if has_marks else ""
    return FilledTable(table.title, ("system", *titles), tuple(rows), note)


def _cell(results: Sequence[Result | None], metric: str) -> Cell | None:
    """The mean over directions; None where one is not there, or was not scored by this metric."""
    there = [result for result in results if result is not None and metric in result.score.scores]
    if len(there) < len(results):
        return None
    scores = [result.score for result in there]
    value = _mean(scores, metric)
    if any(metric not in score.resampled for score in scores):
        return Cell(value)
    own = mean_of([score.resampled[metric] for score in scores])
    theirs = [result.baseline for result in there if result.baseline is not None]
    if len(theirs) < len(there):
        return Cell(value, interval(own))
    their_own = mean_of([score.resampled[metric] for score in theirs])
    return Cell(value, interval(own), difference(their_own, own, value - _mean(theirs, metric)).p)


def _mean(scores: Sequence[DirectionScore], metric: str) -> float:
    return sum(score.scores[metric] for score in scores) / len(scores)


def as_markdown(table: FilledTable) -> str:
    """The table in Markdown."""
    lines = [f"**{table.title}**", "", "| " + " | ".join(table.header) + " |"]
    lines.append("|---|" + "---:|" * (len(table.header) - 1))
    for name, cells in table.rows:
        texts = (cell.text.replace("*", r"\*") if cell else "" for cell in cells)
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join([*lines, *(["", table.note.replace("*", r"\*")] if table.note else [])])


def as_latex(table: FilledTable) -> str:
    """The table in LaTeX, with booktabs; marks without intervals, which the paper's tables have no room for."""
    lines = [r"\begin{table}", r"\centering", r"\begin{tabular}{l" + "r" * (len(table.header) - 1) + "}", r"\toprule"]
    lines += [" & ".join(map(_escaped, table.header)) + r" \\", r"\midrule"]
    lines += [" & ".join([_escaped(name), *map(_latex_cell, cells)]) + r" \\" for name, cells in table.rows]
    caption = ". ".join(filter(None, [table.title, table.note]))
    lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{_escaped(caption)}}}", r"\end{table}"]
    return "\n".join(lines)


def _latex_cell(cell: Cell | None) -> str:
    return "" if cell is None else f"{cell.value:.2f}{'$^{*}$' if cell.is_marked else ''}"


def _escaped(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        ">": r"\textgreater{}",
        "<": r"\textless{}",
    }
    return "".join(special.get(c, rf"\{c}" if c in "&%$#_{}" else c) for c in text)

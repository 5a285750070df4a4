"""A comparison as tables, for the terminal and for a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from deltalm_ds.evaluation.comparison import Comparison, DirectionPair, Group, MetricPair, Sentence
from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.evaluation.significance import LIKELY, margin
from deltalm_ds.files import atomic_file

ABOUT_DIFFERENCES = (
    "± is half of the interval that 95 % of the resampled scores lie in; p is how often sentences alone would make "
    "such a difference (paired bootstrap, two-sided), * where it is below 0.05. People: in how many percent of pairs "
    "of translation systems with such a difference people preferred the same one."
)


@dataclass(frozen=True)
class Table:
    """A titled table of cells that are text already."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""


def tables_of(comparison: Comparison, names: tuple[str, str]) -> list[Table]:
    """Metrics, directions, lengths and frequencies of two outputs that are called by these names."""
    title = METRICS[comparison.ranked_by].title
    header = ("", *names, "difference")
    metrics = ("metric", *names, "difference", "p", "people")
    of_all = f"Metrics, means over {len(comparison.directions)} directions" if comparison.directions else "Metrics"
    tables = [Table(of_all, metrics, [_metric_row(pair) for pair in comparison.metrics], ABOUT_DIFFERENCES)]
    if comparison.directions:
        rows = [row for each in comparison.directions for row in _direction_rows(each)]
        tables.append(Table("By direction", ("direction", "sentences", *metrics), rows))
    return [
        *tables,
        Table(
            f"{title} by length of the reference",
            ("words", "sentences", *header[1:]),
            _group_rows(comparison.lengths),
        ),
        Table(
            "F1 of words by frequency in the references",
            ("occurrences", "words", *header[1:]),
            _group_rows(comparison.frequencies),
        ),
    ]


def _metric_row(pair: MetricPair) -> tuple[str, ...]:
    intervals = pair.intervals or (None, None)
    sides = [f"{value:.2f}{margin(own)}" for value, own in zip((pair.first, pair.second), intervals, strict=True)]
    people = "" if pair.agreement is None else f"{pair.agreement:.0f} %"
    if pair.difference is None:
        return pair.title, *sides, f"{pair.second - pair.first:+.2f}", "", people
    mark = " *" if pair.difference.p < LIKELY else ""
    more = f"{pair.difference.value:+.2f}{margin(pair.difference.interval)}"
    return pair.title, *sides, more, f"{pair.difference.p:.3f}{mark}", people


def _direction_rows(direction: DirectionPair) -> list[tuple[str, ...]]:
    return [(direction.direction, f"{direction.num_sentences:,}", *_metric_row(pair)) for pair in direction.metrics]


def _group_rows(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    return [
        (
            group.name,
            f"{group.count:,}",
            f"{group.first:.2f}",
            f"{group.second:.2f}",
            f"{group.second - group.first:+.2f}",
        )
        for group in groups
    ]


def sentence_lines(sentence: Sentence, names: tuple[str, str], title: str) -> list[tuple[str, str]]:
    """What is shown of a sentence, a label each."""
    rows = [("source", sentence.source)] if sentence.source is not None else []
    return [
        (
            f"{sentence.direction}, line {sentence.line}",
            f"{title} {sentence.first_value:.2f} → {sentence.second_value:.2f}",
        ),
        *rows,
        ("reference", sentence.reference),
        (names[0], sentence.first),
        (names[1], sentence.second),
    ]


def signature_lines(comparison: Comparison) -> list[str]:
    """The signatures of all metrics."""
    return [f"{pair.title}: {signature}" for pair in comparison.metrics for signature in pair.signatures]


def write_page(comparison: Comparison, names: tuple[str, str], out: Path) -> None:
    """Write the comparison as one HTML page that loads nothing, complete or not at all."""
    from deltalm_ds.report.page import html_page, note, section, table  # plotly is slow to import

    title = METRICS[comparison.ranked_by].title
    heading = f"{names[0]} and {names[1]}"
    sections = [f"<h1>{escape(heading)}</h1>", note(f"{comparison.num_sentences:,} sentences")]
    sections += [
        section(each.title, table(each.header, each.rows) + (note(each.note) if each.note else ""))
        for each in tables_of(comparison, names)
    ]
    shown = [table((), sentence_lines(sentence, names, title)) for sentence in comparison.sentences]
    sections.append(section("Sentences that differ most", "<br>".join(shown)))
    remarks = [*comparison.notes, *signature_lines(comparison)]
    sections.append(section("How it was measured", "".join(map(note, remarks))))
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as file:
        file.write(html_page(heading, sections))

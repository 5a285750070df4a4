"""One page about several runs: their curves in the same charts, the settings that differ, what came out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from deltalm_ds.errors import InputError
from deltalm_ds.files import atomic_file
from deltalm_ds.progress import duration_text
from deltalm_ds.report.charts import Line, line_chart, palette
from deltalm_ds.report.page import chart_grid, html_page, section, table
from deltalm_ds.report.quality import KNOWN_METRICS, Described, Metric, described_metrics
from deltalm_ds.report.records import Record, points_of, steps_since_last, validation_metrics
from deltalm_ds.report.run_files import name_of, read_recipe, read_records


@dataclass(frozen=True)
class _Run:
    """A run as the page shows it."""

    name: str
    colour: str
    recipe: Record
    train: list[Record]
    validation: list[Record]


def write_comparison(runs: Sequence[Path], out: Path, known: Mapping[str, Described] = KNOWN_METRICS) -> None:
    """Write the page about several run directories, complete or not at all; `known` is the table of metrics.

    Raises:
        InputError: a directory comes twice, or has no metrics.
    """
    if len({run.resolve() for run in runs}) < len(runs):
        raise InputError("A run is named twice: name each one once.")
    compared = _read(runs)
    metrics = _metrics(compared, known)
    sections = [
        f"<h1>{escape(', '.join(run.name for run in compared))}</h1>",
        chart_grid(_charts(compared, metrics)),
        section("Results", _results(compared, metrics)),
        section("Settings that differ", _settings(compared)),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as file:
        file.write(html_page("Comparison of runs", sections))


def _read(paths: Sequence[Path]) -> list[_Run]:
    recipes = [read_recipe(path) for path in paths]
    names = [name_of(path, recipe) for path, recipe in zip(paths, recipes, strict=True)]
    if len(set(names)) < len(names):  # runs of one recipe
        names = [str(path) for path in paths]
    found = []
    for path, name, recipe, colour in zip(paths, names, recipes, palette(names).values(), strict=True):
        records = read_records(path)
        train, validation = ([r for r in records if r["kind"] == kind] for kind in ("train", "validation"))
        found.append(_Run(name, colour, recipe, train, validation))
    return found


def _metrics(runs: Sequence[_Run], known: Mapping[str, Described]) -> dict[str, Metric]:
    """The metrics of translations that any run has; those that are not known are called by their names."""
    described = described_metrics({}, known)
    names = dict.fromkeys(name for run in runs for name in validation_metrics(run.validation))
    return {name: described.get(name, Metric(name, None)) for name in names}


def _charts(runs: Sequence[_Run], metrics: Mapping[str, Metric]) -> Iterator[str]:
    yield line_chart("Training loss per target token (nats)", _lines(runs, "train", "loss"))
    yield line_chart("Validation loss per target token (nats)", _lines(runs, "validation", "loss"))
    for name, metric in metrics.items():
        yield line_chart(f"Validation {metric.title}", _lines(runs, "validation", name), from_zero=True)
    yield line_chart("Learning rate", _lines(runs, "train", "learning_rate"), from_zero=True)
    yield line_chart("Gradient norm before clipping", _lines(runs, "train", "gradient_norm"), log=True)
    yield line_chart("Tokens per second", _lines(runs, "train", "tokens_per_second"), from_zero=True)
    yield line_chart("Share of the device's peak (MFU)", _lines(runs, "train", "mfu"), from_zero=True)


def _lines(runs: Sequence[_Run], kind: str, key: str) -> Iterator[Line]:
    for run in runs:
        points = points_of(run.train if kind == "train" else run.validation, key)
        yield Line(run.name, [step for step, _ in points], [value for _, value in points], run.colour)


def _results(runs: Sequence[_Run], metrics: Mapping[str, Metric]) -> str:
    """A row for each number, a column for each run."""
    rows = [["", *(run.name for run in runs)]]
    rows += [
        [what, *(_text(values[what]) for values in map(_numbers, runs))]
        for what in ("steps", "tokens", "time of the steps", "tokens a second", "training loss, last")
    ]
    rows.append(["validation loss, lowest", *(_best(run, "loss", min) for run in runs)])
    for name, metric in metrics.items():
        if metric.higher_is_better is not None:
            best = max if metric.higher_is_better else min
            rows.append([f"validation {metric.title}, best", *(_best(run, name, best) for run in runs)])
    header, *body = rows
    return table(header, body)


def _numbers(run: _Run) -> dict[str, Any]:
    spans = steps_since_last(run.train)
    tokens = sum(record["tokens_per_step"] * steps for record, steps in zip(run.train, spans, strict=True))
    seconds = sum(record["seconds_per_step"] * steps for record, steps in zip(run.train, spans, strict=True))
    return {
        "steps": run.train[-1]["step"] if run.train else None,
        "tokens": round(tokens),
        "time of the steps": duration_text(seconds),
        "tokens a second": round(tokens / seconds) if seconds else None,
        "training loss, last": run.train[-1]["loss"] if run.train else None,
    }


def _best(run: _Run, key: str, best: Any) -> str:
    points = points_of(run.validation, key)
    if not points:
        return ""
    step, value = best(points, key=lambda point: point[1])
    return f"{value:.4g} at step {step:,}"


def _settings(runs: Sequence[_Run]) -> str:
    """The keys of the recipes that are not the same in all runs."""
    flat = [dict(_flat(run.recipe)) for run in runs]
    keys = sorted({key for of_run in flat for key in of_run})
    rows = [[key, *(_text(of_run.get(key)) for of_run in flat)] for key in keys]
    return table(["key", *(run.name for run in runs)], [row for row in rows if len(set(row[1:])) > 1])


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Nested sections and lists as dotted keys with their values."""
    if not isinstance(value, dict | list) or not value:
        yield path, value
        return
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _flat(inner, f"{path}.{name}".removeprefix("."))


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

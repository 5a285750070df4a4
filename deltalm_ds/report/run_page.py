"""One self-contained HTML page about a run: curves, tables, sample translations; it needs no network."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from deltalm_ds.files import atomic_file
from deltalm_ds.progress import duration_text
from deltalm_ds.report.history import health, history
from deltalm_ds.report.page import chart_grid, html_page, note, section, table
from deltalm_ds.report.quality import KNOWN_METRICS, Described, described_metrics, quality_table
from deltalm_ds.report.records import Record, names_in, points_in, steps_since_last
from deltalm_ds.report.run_charts import run_charts
from deltalm_ds.report.run_files import name_of, read_if_there, read_recipe, read_records
from deltalm_ds.report.throughput import throughput
from deltalm_ds.report.time_line import time_line
from deltalm_ds.runs.checkpoints import best_checkpoint, checkpoint_directories, readable_states
from deltalm_ds.runs.events import read_events


def write_report(run: Path, out: Path, known: Mapping[str, Described] = KNOWN_METRICS) -> None:
    """Write the page about a run directory, complete or not at all.

    It shows what is there: `metrics.jsonl`, and where they exist `events.jsonl`, `recipe.yaml`, `environment.json`,
    `checkpoints/`, `evaluation.json` (the output of `deltalm evaluate --json`) and `samples.json` (a list of objects
    with direction, source, reference and hypothesis). `known` is the table of metrics that validation may have.

    Raises:
        InputError: the directory has no metrics, or one of the files cannot be read.
    """
    records, events = read_records(run), read_events(run)
    train = [record for record in records if record["kind"] == "train"]
    validation = [record for record in records if record["kind"] == "validation"]
    recipe = read_recipe(run)
    evaluation = read_if_there(run / "evaluation.json") or {}
    metrics = described_metrics(evaluation, known)
    name = name_of(run, recipe)
    sections = [
        f"<h1>{escape(name)}</h1>",
        _about(recipe),
        _facts(run, recipe, train),
        chart_grid(run_charts(train, validation, metrics)),
        section("Throughput", throughput(run, train)),
        section("Health", health(train, events)),
        section("Translation quality", quality_table(validation, evaluation, metrics)),
        section("Components", _component_table(train, validation)),
        section("Sample translations", _samples(read_if_there(run / "samples.json") or [])),
        section("Checkpoints", _checkpoints(run)),
        section("History", chart_grid([time_line(events, _last_time(records))]) + history(events)),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as file:
        file.write(html_page(name, sections))


def _last_time(records: Sequence[Record]) -> str | None:
    return next((record["time"] for record in reversed(records) if "time" in record), None)


def _about(recipe: Record) -> str:
    about = recipe.get("about") or {}
    return "".join(f"<p><b>{escape(str(key))}</b>: {escape(str(text))}</p>" for key, text in about.items())


def _facts(run: Path, recipe: Record, train: Sequence[Record]) -> str:
    """What was run, for how long, on what."""
    facts: list[tuple[str, str]] = []
    if train:
        spans = steps_since_last(train)
        tokens = sum(record["tokens_per_step"] * steps for record, steps in zip(train, spans, strict=True))
        seconds = sum(record["seconds_per_step"] * steps for record, steps in zip(train, spans, strict=True))
        planned = (recipe.get("training") or {}).get("max_steps")
        of_planned = f" of {planned:,}" if planned else ""
        facts += [
            ("Steps", f"{train[-1]['step']:,}{of_planned}"),
            ("Tokens", f"{tokens:,.0f} (source and target; {tokens / max(seconds, 1e-9):,.0f} a second)"),
            ("Time of the steps", duration_text(seconds)),
            ("Skipped updates", f"{train[-1]['skipped_updates']:,}"),
            *(
                (f"{what.title()} sequences", f"{sum(record.get(f'{what}_sequences', 0) for record in train):,}")
                for what in ("dropped", "truncated")
                if f"{what}_sequences" in train[-1]
            ),
        ]
    facts += [
        (title, str(recipe[key])) for title, key in (("DeepSpeed", "deepspeed"), ("Seed", "seed")) if key in recipe
    ]
    environment = read_if_there(run / "environment.json")
    if environment:
        facts += _environment_facts(environment)
    return table((), facts)


def _environment_facts(environment: Record) -> list[tuple[str, str]]:
    gpus = [gpu["name"] for gpu in environment["gpus"]]
    processor = f"{environment['cpu_cores']} cores of {environment['processor']}"
    versions = {"deltalm_ds": environment["deltalm_ds"], "python": environment["python"], **environment["packages"]}
    return [
        ("Hardware of a node", ", ".join([*gpus, processor])),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
    ]


def _component_table(train: Sequence[Record], validation: Sequence[Record]) -> str:
    """Negative log-likelihood and sampling by component, at the first and at the last record that has it."""
    header = ["component", "training nll, first", "last", "validation nll, last", "probability, first", "last"]
    rows = []
    for component in names_in([*train, *validation], "nll_of"):
        values = _first_and_last(train, "nll_of", component)
        validated = _first_and_last(validation, "nll_of", component)[1]
        rows.append([component, *values, validated, *_first_and_last(train, "probability", component)])
    return table(header, rows) + note("nll: nats per target token, without label smoothing.") if rows else ""


def _first_and_last(records: Sequence[Record], group: str, name: str) -> tuple[float | None, float | None]:
    points = points_in(records, group, name)
    return (points[0][1], points[-1][1]) if points else (None, None)


def _samples(samples: Sequence[Record]) -> str:
    columns = ("direction", "source", "hypothesis", "reference")
    return table(columns, [[sample.get(column) for column in columns] for sample in samples])


def _checkpoints(run: Path) -> str:
    best = best_checkpoint(run)
    states = readable_states(run)
    measures = list(dict.fromkeys(name for state in states.values() for name in state.validation))
    rows = []
    for directory in checkpoint_directories(run):
        measured = states[directory].validation if directory in states else {}
        remark = "best" if directory == best else "" if directory in states else "damaged"
        rows.append([directory.name, *map(measured.get, measures), remark])
    header = ["checkpoint", *(f"validation {name}" for name in measures), ""]
    return table(header, rows) + (note("best: the lowest validation loss.") if best else "")

"""One self-contained HTML page about a run: curves, tables, sample translations; no network, no script."""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from deltalm_ds.errors import InputError
from deltalm_ds.files import atomic_file, read_json
from deltalm_ds.report.line_chart import CHART_CSS, Series, line_chart
from deltalm_ds.runs.checkpoints import best_checkpoint, checkpoint_directories, read_state
from deltalm_ds.runs.metrics import read_metrics

Record = dict[str, Any]

PAGE_CSS = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1360px; margin: 0 auto; padding: 1rem 1.5rem 4rem; }
h1 { margin-bottom: 0; } h2 { margin: 2.5rem 0 .5rem; }
.charts { display: grid; gap: 1.5rem; margin-top: 2rem; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(560px, 100%), 1fr)); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: start; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
.number { text-align: end; }
.note { opacity: .75; font-size: 13px; }
"""


def write_report(run: Path, out: Path) -> None:
    """Write the page about a run directory, complete or not at all.

    It shows what is there: `metrics.jsonl`, and where they exist `recipe.yaml`, `environment.json`, `checkpoints/`,
    `evaluation.json` (the output of `deltalm evaluate --json`) and `samples.json` (a list of objects with direction,
    source, reference and hypothesis).

    Raises:
        InputError: the directory has no metrics, or one of the files cannot be read.
    """
    records = read_metrics(run)
    if not records:
        raise InputError(f"{run} has no metrics.jsonl with records: give the directory of a run that has begun.")
    train = [record for record in records if record["kind"] == "train"]
    validation = [record for record in records if record["kind"] == "validation"]
    recipe = _read_recipe(run)
    evaluation = _read_if_there(run / "evaluation.json")
    name = recipe.get("name", run.resolve().name)
    sections = [
        f"<h1>{escape(name)}</h1>",
        _about(recipe),
        _facts(run, recipe, train),
        f'<div class="charts">{"".join(_charts(train, validation))}</div>',
        _section("Translation quality", _bleu_table(validation, evaluation)),
        _section("Components", _component_table(train, validation)),
        _section("Sample translations", _samples(_read_if_there(run / "samples.json") or [])),
        _section("Checkpoints", _checkpoints(run)),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as file:
        file.write(_page(name, "\n".join(sections)))


def _page(title: str, body: str) -> str:
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head = f"<head>{meta}<title>{escape(title)}</title><style>{PAGE_CSS}{CHART_CSS}</style></head>"
    return f'<!DOCTYPE html>\n<html lang="en">{head}\n<body>{body}</body></html>\n'


def _read_recipe(run: Path) -> Record:
    """What recipe.yaml says, whichever version wrote it; empty without one."""
    path = run / "recipe.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}


def _read_if_there(path: Path) -> Any:
    return read_json(path) if path.exists() else None


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{content}" if content else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
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


def _about(recipe: Record) -> str:
    about = recipe.get("about", {})
    return "".join(f"<p><b>{escape(key)}</b>: {escape(text)}</p>" for key, text in about.items())


def _facts(run: Path, recipe: Record, train: Sequence[Record]) -> str:
    """What was run, for how long, on what."""
    facts: list[tuple[str, str]] = []
    if train:
        spans = _steps_since_last(train)
        tokens = sum(record["tokens_per_step"] * steps for record, steps in zip(train, spans, strict=True))
        seconds = sum(record["seconds_per_step"] * steps for record, steps in zip(train, spans, strict=True))
        of_planned = f" of {recipe['training']['max_steps']:,}" if recipe else ""
        facts += [
            ("Steps", f"{train[-1]['step']:,}{of_planned}"),
            ("Tokens", f"{tokens:,.0f} (source and target; {tokens / max(seconds, 1e-9):,.0f} a second)"),
            ("Time of the steps", _duration(seconds)),
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
    environment = _read_if_there(run / "environment.json")
    if environment:
        facts += _environment_facts(environment)
    return _table((), facts)


def _steps_since_last(train: Sequence[Record]) -> list[int]:
    return [after - before for before, after in pairwise([0, *(record["step"] for record in train)])]


def _environment_facts(environment: Record) -> list[tuple[str, str]]:
    gpus = [gpu["name"] for gpu in environment["gpus"]]
    processor = f"{environment['cpu_cores']} cores of {environment['processor']}"
    versions = {"deltalm_ds": environment["deltalm_ds"], "python": environment["python"], **environment["packages"]}
    return [
        ("Hardware of a node", ", ".join([*gpus, processor])),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
    ]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _charts(train: Sequence[Record], validation: Sequence[Record]) -> Iterable[str]:
    losses = [_series("training", train, "loss"), _series("validation", validation, "loss")]
    yield line_chart("Loss per target token (nats)", losses)
    yield line_chart("Learning rate", [_series("", train, "learning_rate")], from_zero=True)
    yield line_chart("Gradient norm before clipping", [_series("", train, "gradient_norm")], log=True)
    yield line_chart("Sampling temperature", [_series("", train, "temperature")], from_zero=True)
    yield line_chart("Sampling probability", _series_by_key(train, "probability"), from_zero=True)
    yield line_chart("Validation BLEU", _series_by_key(validation, "bleu_of"), from_zero=True)


def _series(name: str, records: Sequence[Record], key: str) -> Series:
    having = [record for record in records if record.get(key) is not None]
    return Series(name, [record["step"] for record in having], [record[key] for record in having])


def _series_by_key(records: Sequence[Record], group: str) -> list[Series]:
    """One line for each key of the dicts `record[group]`, such as one a component."""
    names = _keys(records, group)
    short = _short_names(names)
    lines = []
    for name in names:
        having = [record for record in records if name in record.get(group, {})]
        steps, values = [record["step"] for record in having], [record[group][name] for record in having]
        lines.append(Series(short[name], steps, values))
    return lines


def _keys(records: Sequence[Record], group: str) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record.get(group, {})))


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """A component `seq2seq:en-de:de-en` as `de-en` where that is clear, else with its objective; other names stay."""
    several = len({name.partition(":")[0] for name in names if ":" in name}) > 1
    short = {}
    for name in names:
        objective, _, rest = name.partition(":")
        direction = rest.rpartition(":")[2] or name
        short[name] = f"{direction} {objective.replace('_', ' ')}" if several and rest else direction
    return short


def _bleu_table(validation: Sequence[Record], evaluation: Record | None) -> str:
    """BLEU by direction: of the validations during training, and of `deltalm evaluate`."""
    measured = [record for record in validation if "bleu_of" in record]
    tested = {score["direction"]: score for score in evaluation["directions"]} if evaluation else {}
    rows: list[list[Any]] = []
    for direction in dict.fromkeys([*_keys(measured, "bleu_of"), *tested]):
        points = [(r["bleu_of"][direction], r["step"]) for r in measured if direction in r["bleu_of"]]
        last = points[-1][0] if points else None
        test = tested.get(direction, {})
        rows.append([direction, last, *(max(points) if points else (None, None)), test.get("bleu"), test.get("chrf")])
    if len(rows) > 1:
        rows.append(["average", *(_mean(row[i] for row in rows) if i != 3 else None for i in range(1, 6))])
    header = ["direction", "validation BLEU, last", "best", "at step", "test BLEU", "test chrF2"]
    kept = [i for i in range(len(header)) if any(row[i] is not None for row in rows)]
    table = _table([header[i] for i in kept], [[row[i] for i in kept] for row in rows])
    signatures = sorted({score["bleu_signature"] for score in tested.values()})
    return table + "".join(f'<p class="note">test BLEU: {escape(signature)}</p>' for signature in signatures)


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _component_table(train: Sequence[Record], validation: Sequence[Record]) -> str:
    """Negative log-likelihood and sampling by component, at the first and at the last record that has it."""
    header = ["component", "training nll, first", "last", "validation nll, last", "probability, first", "last"]
    rows = []
    for component in _keys([*train, *validation], "nll_of"):
        nll, validated = _values(train, "nll_of", component), _values(validation, "nll_of", component)
        probability = _values(train, "probability", component)
        ends = [values[i] if values else None for values, i in ((nll, 0), (nll, -1), (validated, -1))]
        rows.append([component, *ends, *([probability[0], probability[-1]] if probability else [None, None])])
    note = '<p class="note">nll: nats per target token, without label smoothing.</p>'
    return _table(header, rows) + note if rows else ""


def _values(records: Sequence[Record], group: str, name: str) -> list[float]:
    return [record[group][name] for record in records if name in record.get(group, {})]


def _samples(samples: Sequence[Record]) -> str:
    columns = ("direction", "source", "hypothesis", "reference")
    return _table(columns, [[sample.get(column) for column in columns] for sample in samples])


def _checkpoints(run: Path) -> str:
    best = best_checkpoint(run)
    states = [(directory, read_state(directory)) for directory in checkpoint_directories(run)]
    measures = list(dict.fromkeys(name for _, state in states for name in state.validation))
    rows = [
        [directory.name, *map(state.validation.get, measures), "best" if directory == best else ""]
        for directory, state in states
    ]
    note = '<p class="note">best: the lowest validation loss.</p>' if best else ""
    header = ["checkpoint", *(f"validation {name}" for name in measures), ""]
    return _table(header, rows) + note if rows else ""

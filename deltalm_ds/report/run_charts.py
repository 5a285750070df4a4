"""The curves of a run: a colour for each direction, the same in all charts, and a dash for each objective."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from deltalm_ds.report.charts import COLOUR, Line, line_chart, palette
from deltalm_ds.report.quality import Metric
from deltalm_ds.report.records import (
    Record,
    direction_of,
    names_in,
    objective_of,
    points_in,
    points_of,
    validation_metrics,
)

DASHES = "solid", "dash", "dot", "dashdot"  # of the objectives, in alphabetical order


def run_charts(train: Sequence[Record], validation: Sequence[Record], metrics: dict[str, Metric]) -> Iterator[str]:
    """The charts that the records have something for; empty texts for the others.

    `metrics` is what is known of metrics of translations, by name.
    """
    scores = validation_metrics(validation)
    names = [*names_in(train, "probability"), *(name for key in scores for name in names_in(validation, f"{key}_of"))]
    colour_of = palette(sorted({direction_of(name) for name in names}))
    first, second = palette(["training", "validation"]).values()
    losses = [_line("training", train, "loss", first), _line("validation", validation, "loss", second)]
    starts = phase_starts(train)
    yield line_chart("Loss per target token (nats)", losses, marks=starts)
    yield line_chart("Learning rate", [_line("learning rate", train, "learning_rate")], from_zero=True)
    yield line_chart("Gradient norm before clipping", [_line("gradient norm", train, "gradient_norm")], log=True)
    yield line_chart("Sampling temperature", [_line("temperature", train, "temperature")], from_zero=True, marks=starts)
    probabilities = _lines(train, "probability", colour_of)
    yield line_chart("Sampling probability", probabilities, from_zero=True, marks=starts)
    languages = _lines(train, "nll_by_language", palette(sorted(names_in(train, "nll_by_language"))))
    if len(lines := list(languages)) > 1:
        yield line_chart("Training nll by target language (nats)", lines)
    for key in scores:
        title = metrics[key].title if key in metrics else key
        yield line_chart(f"Validation {title}", _lines(validation, f"{key}_of", colour_of), from_zero=True)


def phase_starts(train: Sequence[Record]) -> list[int]:
    """The steps of the first records of each phase of the training but the first."""
    phases = points_of(train, "phase")
    return [step for (_, before), (step, phase) in pairwise(phases) if phase != before]


def _line(name: str, records: Sequence[Record], key: str, colour: str = COLOUR) -> Line:
    points = points_of(records, key)
    return Line(name, [step for step, _ in points], [value for _, value in points], colour)


def _lines(records: Sequence[Record], group: str, colour_of: dict[str, str]) -> Iterator[Line]:
    """One line for each key of the dicts `record[group]`."""
    names = names_in(records, group)
    short = _short_names(names)
    objectives = sorted({objective_of(name) for name in names})
    for name in names:
        points = points_in(records, group, name)
        dash = DASHES[objectives.index(objective_of(name)) % len(DASHES)]
        steps, values = [step for step, _ in points], [value for _, value in points]
        yield Line(short[name], steps, values, colour_of[direction_of(name)], dash)


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Components by their directions where that is clear, else with their objectives, else by their whole names."""
    directions = {name: direction_of(name) for name in names}
    with_objectives = {name: f"{directions[name]} {objective_of(name).replace('_', ' ')}".strip() for name in names}
    for short in (directions, with_objectives):
        if len(set(short.values())) == len(names):
            return short
    return {name: name for name in names}

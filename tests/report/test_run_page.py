"""The report page: complete and self-contained for a large run, quiet about what is missing, atomic."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pages import Page, points
from plotly.offline import get_plotlyjs

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.report.run_page import write_report
from deltalm_ds.runs.metrics import read_metrics

OTHERS = ("fr", "cs", "de", "fi", "lv", "et", "ro", "hi", "tr", "gu")
DIRECTIONS = [direction for other in OTHERS for direction in (f"en-{other}", f"{other}-en")]
SIZES = dict(zip(OTHERS, (40, 38, 20, 20, 10, 6, 4.5, 2.6, 2.2, 2), strict=True))

RECIPE = """
name: cldr <many>
about: {hardware: two cores}
vocabulary: vocabulary
model: {preset: tiny}
data: {train: [{path: train}]}
batch: {tokens_per_step: 4000, micro_batch_tokens: 4000}
schedule: {peak_lr: 0.004, warmup_steps: 400}
training: {max_steps: 4000, save_every: 500}
"""


def component_name(direction: str) -> str:
    return f"seq2seq:{direction if direction.startswith('en') else '-'.join(direction.split('-')[::-1])}:{direction}"


def training_record(step: int) -> dict[str, Any]:
    temperature = min(5.0, 1.0 + 4.0 * step / 2000)
    weight = {d: SIZES[d.replace("en", "").strip("-")] ** (1 / temperature) for d in DIRECTIONS}
    wave = 0.05 * math.sin(step * 1.7)
    loss = 2.0 + 6.0 * math.exp(-step / 500) + wave
    return {
        "step": step,
        "kind": "train",
        "loss": loss,
        "nll": loss - 0.4,
        "nll_of": {component_name(d): loss - 0.4 + 0.02 * i for i, d in enumerate(DIRECTIONS)},
        "learning_rate": 0.004 * min(step / 400, (400 / step) ** 0.5),
        "gradient_norm": math.inf if step == 20 else 0.5 + 4 * math.exp(-step / 300) + (9.0 if step == 3000 else wave),
        "skipped_updates": 1,
        "temperature": temperature,
        "probability": {component_name(d): w / sum(weight.values()) for d, w in weight.items()},
        "tokens_per_second": 15000.0,
        "tokens_per_step": 4000.0,
        "seconds_per_step": 0.25,
        "dropped_sequences": 2,
        "truncated_sequences": 3,
    }


def validation_record(step: int) -> dict[str, Any]:
    loss = 2.2 + 5.5 * math.exp(-step / 600)
    bleu = {d: (80 - 1.5 * i) * (1 - math.exp(-step / 700)) for i, d in enumerate(DIRECTIONS)}
    nll = {component_name(d): loss - 0.5 for d in DIRECTIONS}
    return {"step": step, "kind": "validation", "loss": loss, "nll": loss - 0.5, "nll_of": nll} | {
        "bleu": sum(bleu.values()) / len(bleu),
        "bleu_of": bleu,
    }


def write_metrics(run: Path, records: list[dict[str, Any]]) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def fabricate_run(run: Path) -> None:
    """A run of 4,000 steps over 20 directions with everything that a run directory can hold."""
    steps = range(20, 4001, 20)
    records = [training_record(step) for step in steps]
    records += [validation_record(step) for step in range(500, 4001, 500)]
    write_metrics(run, sorted(records, key=lambda record: record["step"]))
    (run / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    environment: dict[str, Any] = {
        "deltalm_ds": "0.1.0",
        "python": "3.11.7",
        "packages": {"torch": "2.13.0", "apex": None},
    }
    environment |= {"processor": "a processor", "cpu_cores": 2, "gpus": [{"name": "a GPU"}]}
    (run / "environment.json").write_text(json.dumps(environment))
    scores = [
        {"direction": d, "bleu": 70.0 + i, "chrf": 80.0, "bleu_signature": "nrefs:1|tok:13a"}
        for i, d in enumerate(DIRECTIONS)
    ]
    (run / "evaluation.json").write_text(json.dumps({"directions": scores, "average_bleu": 79.5}))
    samples = [
        {"direction": "en-gu", "source": "3.5 <km>", "reference": "૩.૫ કિલોમીટર", "hypothesis": "૩.૫ કિમી"},
        {"direction": "en-de", "source": "Saturday", "reference": "Samstag", "hypothesis": "Samstag"},
    ]
    (run / "samples.json").write_text(json.dumps(samples, ensure_ascii=False), encoding="utf-8")
    for step, loss in ((3000, 2.19), (3500, 2.21), (4000, 2.2)):
        directory = run / "checkpoints" / f"step_{step:08d}"
        directory.mkdir(parents=True)
        state = {"step": step, "updates": step - 1, "loss_scaler": None, "validation": {"loss": loss, "bleu": 65.0}}
        (directory / "state.json").write_text(json.dumps(state))


def report_of(run: Path) -> Page:
    write_report(run, run / "report.html")
    return Page((run / "report.html").read_text(encoding="utf-8"))


def test_page_of_a_whole_run(tmp_path: Path) -> None:
    fabricate_run(tmp_path)
    page = report_of(tmp_path)
    assert page.headings == [
        *("cldr <many>", "Throughput", "Health", "Translation quality", "Components", "Sample translations"),
        "Checkpoints",
    ]
    assert page.row("Steps")[1] == "4,000 of 4,000"
    assert page.row("Tokens")[1].startswith("16,000,000 ") and "16,000 a second" in page.row("Tokens")[1]
    assert page.row("Time of the steps")[1] == "16 min 40 s"  # 4,000 · 0.25 s
    assert page.row("Dropped sequences")[1] == "400" and page.row("Truncated sequences")[1] == "600"
    assert page.row("Versions")[1] == "deltalm_ds 0.1.0, python 3.11.7, torch 2.13.0"
    bleu = validation_record(4000)["bleu_of"]
    assert page.row("en-cs") == ["en-cs", f"{bleu['en-cs']:.2f}", f"{bleu['en-cs']:.2f}", "4,000", "72.00", "80.00"]
    assert page.row("average")[-2:] == ["79.50", "80.00"]
    assert (
        page.row(component_name("gu-en"))[-1] == f"{training_record(4000)['probability'][component_name('gu-en')]:.3f}"
    )
    assert page.row("en-gu") != page.row("en-cs") and ["en-gu", "3.5 <km>", "૩.૫ કિમી", "૩.૫ કિલોમીટર"] in page.rows
    assert page.row("step_00003000")[-1] == "best" and page.row("step_00004000")[-1] == ""
    assert list(tmp_path.glob(".*")) == []


def test_parts_that_are_missing_are_left_out(tmp_path: Path) -> None:
    write_metrics(tmp_path / "begun", [training_record(20)])
    page = report_of(tmp_path / "begun")
    assert page.headings == ["begun", "Throughput", "Health", "Components"]
    assert page.row("Steps")[1] == "20"


def test_run_that_only_validated_has_a_page(tmp_path: Path) -> None:
    write_metrics(tmp_path, [validation_record(500)])
    assert report_of(tmp_path).row("en-fr")[0] == "en-fr"


def test_a_damaged_checkpoint_is_shown_as_such(tmp_path: Path) -> None:
    fabricate_run(tmp_path)
    (tmp_path / "checkpoints" / "step_00003000" / "state.json").write_text("")
    page = report_of(tmp_path)
    assert page.row("step_00003000")[-1] == "damaged" and page.row("step_00004000")[-1] == "best"


def test_directory_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no metrics\.jsonl"):
        write_report(tmp_path, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_page_of_before_stays_when_an_input_is_damaged(tmp_path: Path) -> None:
    fabricate_run(tmp_path)
    report_of(tmp_path)
    before = (tmp_path / "report.html").read_bytes()
    (tmp_path / "samples.json").write_text("[{")
    with pytest.raises(InputError, match=r"samples\.json is not valid JSON"):
        write_report(tmp_path, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == before


def test_charts_show_what_the_log_says(tmp_path: Path) -> None:
    fabricate_run(tmp_path)
    figures = report_of(tmp_path).figures()
    records = read_metrics(tmp_path)
    train = [record for record in records if record["kind"] == "train"]
    validation = [record for record in records if record["kind"] == "validation"]
    assert list(figures) == [
        *("Loss per target token (nats)", "Learning rate", "Gradient norm before clipping", "Sampling temperature"),
        *("Sampling probability", "Validation BLEU", "Tokens per second"),
    ]
    losses = figures["Loss per target token (nats)"]["lines"]
    assert points(losses["training"]) == [(record["step"], record["loss"]) for record in train]
    assert points(losses["validation"]) == [(record["step"], record["loss"]) for record in validation]
    for name, key in (("Learning rate", "learning_rate"), ("Sampling temperature", "temperature")):
        (line,) = figures[name]["lines"].values()
        assert points(line) == [(record["step"], record[key]) for record in train]
    (norm,) = figures["Gradient norm before clipping"]["lines"].values()
    assert points(norm) == [(r["step"], r["gradient_norm"]) for r in train if math.isfinite(r["gradient_norm"])]
    assert len(norm["x"]) == len(train) - 1
    assert figures["Gradient norm before clipping"]["layout"]["yaxis"]["type"] == "log"
    probability, bleu = (figures[name]["lines"] for name in ("Sampling probability", "Validation BLEU"))
    assert set(probability) == set(bleu) == set(DIRECTIONS)
    for direction in DIRECTIONS:
        name = component_name(direction)
        assert points(probability[direction]) == [(r["step"], r["probability"][name]) for r in train]
        assert points(bleu[direction]) == [(r["step"], r["bleu_of"][direction]) for r in validation]


def test_a_direction_has_its_own_colour_in_all_charts(tmp_path: Path) -> None:
    fabricate_run(tmp_path)
    figures = report_of(tmp_path).figures()
    colours = [
        {name: line["line"]["color"] for name, line in figures[chart]["lines"].items()}
        for chart in ("Sampling probability", "Validation BLEU")
    ]
    assert colours[0] == colours[1] and len(set(colours[0].values())) == len(DIRECTIONS)
    assert all(figures[chart]["layout"]["showlegend"] for chart in ("Sampling probability", "Validation BLEU"))


def test_page_needs_no_network_and_sends_nothing(tmp_path: Path) -> None:
    fabricate_run(tmp_path)
    page = report_of(tmp_path)
    assert page.scripts[0] == get_plotlyjs() and len(page.scripts) == 1 + len(page.figures())
    assert page.urls == [] and not page.tags & {"link", "img", "iframe", "object", "embed", "base", "form", "a"}
    assert not any(word in style for style in page.styles for word in ("url(", "@import", "http"))
    policy = dict(part.strip().split(" ", 1) for part in page.metas["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["form-action"] == "'none'"
    assert not any(word in policy[key] for key in policy for word in ("http", "*", "'self'"))
    for figure in page.figures().values():
        buttons = {button for group in figure["config"]["modeBarButtons"] for button in group}
        assert buttons and "sendChartToCloud" not in buttons
        assert figure["config"]["displaylogo"] is False  # it is a link
        assert not any("http" in str(value) for value in figure["config"].values())


HOSTILE = "</script><script>alert('1')</script><img src=//x.org/>&amp;\"'<b>"


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    component = f"seq2seq:en-de:{HOSTILE}"
    record = training_record(20) | {"probability": {component: 0.3, "b": 0.7}, "nll_of": {component: 2.0}}
    write_metrics(tmp_path, [record, validation_record(20) | {"bleu_of": {HOSTILE: 1.0}, f"{HOSTILE}_of": {"b": 2.0}}])
    (tmp_path / "recipe.yaml").write_text(json.dumps({"name": HOSTILE, "about": {HOSTILE: HOSTILE}}))
    sample = {"direction": HOSTILE, "source": HOSTILE, "reference": None, "hypothesis": ""}
    (tmp_path / "samples.json").write_text(json.dumps([sample]))
    page = report_of(tmp_path)
    assert page.headings[0] == HOSTILE and page.paragraphs[0] == f"{HOSTILE}: {HOSTILE}"
    assert page.urls == [] and "img" not in page.tags
    assert page.row(component)[1] == "2.000" and [HOSTILE, HOSTILE, "", ""] in page.rows
    figures = page.figures()
    assert len(page.scripts) == 1 + len(figures) == 8  # all but the gradient norm, which is infinite
    for chart in ("Sampling probability", "Validation BLEU"):  # plotly itself reads tags and entities in names
        name, *_ = figures[chart]["lines"]
        text = HOSTILE.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        assert name == text


def test_components_of_several_objectives_are_told_apart(tmp_path: Path) -> None:
    components = ("span_corruption:de:de", "translation_span_corruption:de-en:de-en", "seq2seq:de-en:de-en")
    record = training_record(20) | {"probability": dict.fromkeys(components, 0.3)}
    write_metrics(tmp_path, [record])
    lines = report_of(tmp_path).figures()["Sampling probability"]["lines"]
    assert list(lines) == ["de span corruption", "de-en translation span corruption", "de-en seq2seq"]
    _, translation, seq2seq = (line["line"] for line in lines.values())
    assert translation["color"] == seq2seq["color"] and translation["dash"] != seq2seq["dash"]


def test_components_that_differ_in_their_corpus_alone_have_their_whole_names(tmp_path: Path) -> None:
    components = ("seq2seq:europarl:en-de", "seq2seq:news:en-de")
    write_metrics(tmp_path, [training_record(20) | {"probability": dict.fromkeys(components, 0.5)}])
    assert list(report_of(tmp_path).figures()["Sampling probability"]["lines"]) == list(components)


def test_metrics_are_those_that_the_evaluation_describes(tmp_path: Path) -> None:
    """A metric of which lower values are better, and one that only the evaluation has."""
    directions = {"en-de": (80.0, 60.0, 70.0), "de-en": (90.0, 50.0, 55.0)}
    records = [
        validation_record(100 * number)
        | {"bleu_of": {}, "ter_of": {direction: values[number] for direction, values in directions.items()}}
        for number in range(3)
    ]
    write_metrics(tmp_path, records)
    evaluation: dict[str, Any] = {
        "metrics": {
            "ter": {"title": "TER", "higher_is_better": False},
            "comet": {"title": "COMET-22", "higher_is_better": True},
        },
        "signatures": {"ter": ["case:lc|tok:tercom"], "comet": []},
        "directions": [{"direction": d, "bleu": 1.0, "scores": {"ter": 42.0, "comet": 0.5}} for d in directions],
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    page = report_of(tmp_path)
    assert page.row("direction") == [
        *("direction", "validation TER, last", "best", "at step", "test TER", "test COMET-22")
    ]
    assert page.row("en-de") == ["en-de", "70.00", "60.00", "100", "42.00", "0.500"]
    assert page.row("average") == ["average", "62.50", "55.00", "", "42.00", "0.500"]
    assert "test TER: case:lc|tok:tercom" in page.paragraphs
    assert set(page.figures()["Validation TER"]["lines"]) == set(directions)


def test_no_best_value_of_a_metric_that_nobody_describes(tmp_path: Path) -> None:
    write_metrics(tmp_path, [validation_record(100) | {"bleu_of": {}, "ter_of": {"en-de": 70.0}}])
    page = report_of(tmp_path)
    assert page.row("direction") == ["direction", "validation ter, last"]
    assert page.row("en-de") == ["en-de", "70.00"]


def test_a_table_of_metrics_describes_those_of_the_validation(tmp_path: Path) -> None:
    """Ours has one of which lower values are better, and one that has no best."""
    records = [
        validation_record(step) | {"bleu_of": {}, "off_target_of": {"en-de": rate}, "length_ratio_of": {"en-de": rate}}
        for step, rate in ((100, 20.0), (200, 30.0))
    ]
    write_metrics(tmp_path, records)
    write_report(tmp_path, tmp_path / "report.html", METRICS)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    titles = "direction", "validation off-target, last", "best", "at step", "validation length ratio, last"
    assert page.row("direction") == [*titles]
    assert page.row("en-de") == ["en-de", "30.00", "20.00", "100", "30.00"]


def test_values_that_were_not_finite_are_left_out(tmp_path: Path) -> None:
    """They are null in the log, or NaN in that of an older version."""
    name = component_name("en-fr")
    spoiled = {"loss": None, "nll_of": {name: None}, "learning_rate": math.nan, "bleu_of": None}
    write_metrics(tmp_path, [training_record(20), training_record(40) | spoiled, validation_record(40) | spoiled])
    page = report_of(tmp_path)
    assert page.figures()["Loss per target token (nats)"]["lines"]["training"]["x"] == [20]
    (rate,) = page.figures()["Learning rate"]["lines"].values()
    assert rate["x"] == [20]
    assert page.row(name)[1:4] == [f"{training_record(20)['nll_of'][name]:.3f}"] * 2 + [""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not valid YAML"),
        ("name: 2024-13-45", "is not valid YAML"),  # like a date, and none
        ("", "is not a recipe"),
        ("- a", "is not a recipe"),
    ],
)
def test_recipe_that_cannot_be_read_is_named(tmp_path: Path, text: str, message: str) -> None:
    write_metrics(tmp_path, [training_record(20)])
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"recipe\.yaml {message}"):
        write_report(tmp_path, tmp_path / "report.html")


def test_recipe_of_another_version_is_shown(tmp_path: Path) -> None:
    write_metrics(tmp_path, [training_record(20)])
    (tmp_path / "recipe.yaml").write_text("name: 2024\nabout: null\nseed: 7\ntrainer: {steps: 100}\n")
    page = report_of(tmp_path)
    assert page.headings[0] == "2024" and page.row("Steps")[1] == "20" and page.row("Seed")[1] == "7"


def test_titles_that_differ_in_signs_alone_are_charts_of_their_own(tmp_path: Path) -> None:
    write_metrics(tmp_path, [validation_record(100) | {"bleu_of": {}, "chrf_of": {"a": 1.0}, "chrf++_of": {"a": 2.0}}])
    figures = report_of(tmp_path).figures()
    assert [figures[f"Validation {title}"]["lines"]["a"]["y"] for title in ("chrF2", "chrf++")] == [[1.0], [2.0]]

"""The report page: complete and self-contained for a large run, quiet about what is missing, atomic."""

import json
import math
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalm_ds.errors import InputError
from deltalm_ds.report.line_chart import LABEL_HEIGHT, Series, _label_positions, _nice_step, line_chart
from deltalm_ds.report.run_page import write_report

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


def task_name(direction: str) -> str:
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
        "nll_of": {task_name(d): loss - 0.4 + 0.02 * i for i, d in enumerate(DIRECTIONS)},
        "learning_rate": 0.004 * min(step / 400, (400 / step) ** 0.5),
        "gradient_norm": math.inf if step == 20 else 0.5 + 4 * math.exp(-step / 300) + (9.0 if step == 3000 else wave),
        "skipped_updates": 1,
        "temperature": temperature,
        "probability": {task_name(d): w / sum(weight.values()) for d, w in weight.items()},
        "tokens_per_second": 15000.0,
        "tokens_per_step": 4000.0,
        "seconds_per_step": 0.25,
        "dropped_sequences": 2,
        "truncated_sequences": 3,
    }


def validation_record(step: int) -> dict[str, Any]:
    loss = 2.2 + 5.5 * math.exp(-step / 600)
    bleu = {d: (80 - 1.5 * i) * (1 - math.exp(-step / 700)) for i, d in enumerate(DIRECTIONS)}
    nll = {task_name(d): loss - 0.5 for d in DIRECTIONS}
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


class Page(HTMLParser):
    """Rows of all tables, all headings, all attributes; checks that tags are closed in order."""

    VOID = ("meta", "!doctype")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.headings: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.urls: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.urls += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)

    def row(self, first: str) -> list[str]:
        return next(row for row in self.rows if row[0] == first)


def report_of(run: Path) -> Page:
    write_report(run, run / "report.html")
    return Page((run / "report.html").read_text(encoding="utf-8"))


def test_page_of_a_whole_run(tmp_path: Path) -> None:
    fabricate_run(tmp_path)
    page = report_of(tmp_path)
    assert page.headings == ["cldr <many>", "Translation quality", "Components", "Sample translations", "Checkpoints"]
    assert page.urls == [] and not page.tags & {"script", "link", "img", "iframe"}  # nothing from elsewhere
    assert page.row("Steps")[1] == "4,000 of 4,000"
    assert page.row("Tokens")[1].startswith("16,000,000 ") and "16,000 a second" in page.row("Tokens")[1]
    assert page.row("Time of the steps")[1] == "16 min 40 s"  # 4,000 · 0.25 s
    assert page.row("Dropped sequences")[1] == "400" and page.row("Truncated sequences")[1] == "600"
    assert page.row("Versions")[1] == "deltalm_ds 0.1.0, python 3.11.7, torch 2.13.0"
    bleu = validation_record(4000)["bleu_of"]
    assert page.row("en-cs") == ["en-cs", f"{bleu['en-cs']:.2f}", f"{bleu['en-cs']:.2f}", "4,000", "72.00", "80.00"]
    assert page.row("average")[-2:] == ["79.50", "80.00"]
    assert page.row(task_name("gu-en"))[-1] == f"{training_record(4000)['probability'][task_name('gu-en')]:.3f}"
    assert page.row("en-gu") != page.row("en-cs") and ["en-gu", "3.5 <km>", "૩.૫ કિમી", "૩.૫ કિલોમીટર"] in page.rows
    assert page.row("step_00003000")[-1] == "best" and page.row("step_00004000")[-1] == ""
    assert list(tmp_path.glob(".*")) == []


def test_parts_that_are_missing_are_left_out(tmp_path: Path) -> None:
    write_metrics(tmp_path / "begun", [training_record(20)])
    page = report_of(tmp_path / "begun")
    assert page.headings == ["begun", "Components"]
    assert page.row("Steps")[1] == "20"


def test_run_that_only_validated_has_a_page(tmp_path: Path) -> None:
    write_metrics(tmp_path, [validation_record(500)])
    assert report_of(tmp_path).row("en-fr")[0] == "en-fr"


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


def test_tasks_of_several_objectives_are_told_apart(tmp_path: Path) -> None:
    tasks = ("span_corruption:de:de", "translation_span_corruption:de-en:de-en", "seq2seq:de-en:en-de")
    record = training_record(20) | {"probability": dict.fromkeys(tasks, 0.3), "nll_of": dict.fromkeys(tasks, 2.0)}
    write_metrics(tmp_path, [record])
    write_report(tmp_path, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    for label in ("de span corruption", "de-en translation span corruption", "en-de seq2seq"):
        assert f">{label}</text>" in text


def svg_lines(svg: str) -> list[list[tuple[float, float]]]:
    lines = ElementTree.fromstring(svg).iter("polyline")
    pairs = [[point.split(",") for point in line.attrib["points"].split()] for line in lines]
    return [[(float(x), float(y)) for x, y in line] for line in pairs]


def tick_places(svg: str, anchor: str) -> dict[float, float]:
    """Value of each tick label -> its pixel."""
    texts = [text for text in ElementTree.fromstring(svg).iter("text") if text.get("text-anchor") == anchor]
    axis = "x" if anchor == "middle" else "y"
    shift = 0 if axis == "x" else -4
    values = [(text.text or "", float(text.attrib[axis]) + shift) for text in texts if text.text != "step"]
    return {float(text.replace(",", "")): place for text, place in values}


def test_points_stand_where_the_axes_say() -> None:
    svg = line_chart("a & b", [Series("", [0, 500, 1000], [0.0, 2.0, 10.0])])
    ((first, middle, last),) = svg_lines(svg)
    x, y = tick_places(svg, "middle"), tick_places(svg, "end")
    assert (first, last) == ((x[0], y[0]), (x[1000], y[10]))
    assert middle[0] == pytest.approx((x[0] + x[1000]) / 2, abs=0.1)
    assert middle[1] == pytest.approx(y[2], abs=0.1)


def test_logarithmic_axis_leaves_out_what_it_cannot_show() -> None:
    svg = line_chart("norm", [Series("", [1, 2, 3, 4, 5], [0.1, math.inf, math.nan, 0.0, 1000.0])], log=True)
    ((first, last),) = svg_lines(svg)
    y = tick_places(svg, "end")
    assert first[1] == pytest.approx(y[0.1], abs=0.1) and last[1] == pytest.approx(y[1000], abs=0.1)


def test_chart_without_points_is_nothing() -> None:
    assert line_chart("empty", [Series("a", [], []), Series("b", [1], [math.nan])]) == ""


def test_long_lines_are_averaged_and_small() -> None:
    steps = list(range(100_000))
    svg = line_chart("long", [Series("", steps, [step % 2 for step in steps])])
    (line,) = svg_lines(svg)
    y = tick_places(svg, "end")
    assert len(line) <= 500 and len(svg) < 20_000
    # runs of an even number of points: each mean is one half
    assert all(place == pytest.approx(y[0.5], abs=0.1) for _, place in line)


@given(st.lists(st.floats(0, 200), min_size=1, max_size=40))
def test_labels_do_not_overlap_and_stay_inside(wanted: list[float]) -> None:
    wanted = sorted(wanted)
    placed = _label_positions(wanted, 0, 200)
    shown = [y for y in placed if not math.isnan(y)]
    assert len(shown) == min(len(wanted), 200 // LABEL_HEIGHT + 1)
    assert all(0 <= y <= 200 for y in shown)
    assert all(after - before >= LABEL_HEIGHT - 1e-9 for before, after in pairwise(shown))
    if all(after - before >= LABEL_HEIGHT for before, after in pairwise(wanted)):
        assert placed == wanted


@given(st.floats(1e-12, 1e12))
def test_steps_of_an_axis_are_nice(least: float) -> None:
    step = _nice_step(least)
    assert least * (1 - 1e-9) <= step <= 2.5 * least * (1 + 1e-6)
    assert f"{step:.3e}"[0:5] in ("1.000", "2.000", "5.000")

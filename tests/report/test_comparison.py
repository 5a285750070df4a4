"""The page about several runs: every curve of every run, what differs, what came out."""

from pathlib import Path

import pytest
from pages import Page, points
from test_run_page import RECIPE, fabricate_run, training_record, validation_record, write_metrics

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.report.comparison import write_comparison


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """One with everything, one that is shorter and has another recipe, one with a log alone."""
    fabricate_run(tmp_path / "one")
    short = [training_record(step) | {"loss": 9.0, "mfu": 0.4} for step in (20, 60)]
    write_metrics(tmp_path / "two", [*short, validation_record(60) | {"loss": 7.5}])
    recipe = RECIPE.replace("name: cldr <many>", "name: shorter").replace("peak_lr: 0.004", "peak_lr: 0.001")
    (tmp_path / "two" / "recipe.yaml").write_text(recipe.replace("[{path: train}]", "[{path: train}, {path: more}]"))
    write_metrics(tmp_path / "three", [training_record(20)])
    return [tmp_path / name for name in ("one", "two", "three")]


def page_of(runs: list[Path], out: Path) -> Page:
    write_comparison(runs, out)
    return Page(out.read_text(encoding="utf-8"))


def test_every_run_has_its_curve_in_every_chart(runs: list[Path], tmp_path: Path) -> None:
    figures = page_of(runs, tmp_path / "page.html").figures()
    losses = figures["Training loss per target token (nats)"]["lines"]
    assert list(losses) == ["cldr &lt;many&gt;", "shorter", "three"]
    assert points(losses["shorter"]) == [(20, 9.0), (60, 9.0)]
    assert len(losses["cldr &lt;many&gt;"]["x"]) == 200
    assert points(figures["Validation loss per target token (nats)"]["lines"]["shorter"]) == [(60, 7.5)]
    assert list(figures["Share of the device's peak (MFU)"]["lines"]) == ["shorter"]
    assert list(figures["Validation BLEU"]["lines"]) == ["cldr &lt;many&gt;", "shorter"]
    colours = [{name: line["line"]["color"] for name, line in figure["lines"].items()} for figure in figures.values()]
    assert all(colour.items() <= colours[0].items() for colour in colours)
    assert len(set(colours[0].values())) == 3


def test_the_tables_say_what_differs_and_what_came_out(runs: list[Path], tmp_path: Path) -> None:
    page = page_of(runs, tmp_path / "page.html")
    assert page.headings[1:] == ["Results", "Settings that differ"]
    assert page.row("steps")[1:] == ["4,000", "60", "20"]
    assert page.row("tokens")[1:] == ["16,000,000", "240,000", "80,000"]
    assert page.row("time of the steps")[1] == "16 min 40 s"
    best = min(validation_record(step)["loss"] for step in range(500, 4001, 500))
    assert page.row("validation loss, lowest")[1:] == [f"{best:.4g} at step 4,000", "7.5 at step 60", ""]
    assert page.row("schedule.peak_lr")[1:] == ["0.004", "0.001", ""]
    assert page.row("data.train.1.path")[1:] == ["", "more", ""]
    assert page.row("schedule.warmup_steps")[1:] == ["400", "400", ""]


def test_what_is_the_same_is_left_out_and_runs_of_one_recipe_have_their_paths(runs: list[Path], tmp_path: Path) -> None:
    (runs[2] / "recipe.yaml").write_text((runs[0] / "recipe.yaml").read_text())
    page = page_of([runs[0], runs[2]], tmp_path / "new" / "page.html")
    assert page.headings == [f"{runs[0]}, {runs[2]}", "Results"]


def test_a_run_twice_or_without_a_log_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="named twice"):
        write_comparison([runs[0], tmp_path / "two" / ".." / "one"], tmp_path / "page.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty has no metrics\.jsonl"):
        write_comparison([runs[0], tmp_path / "empty"], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_best_value_is_at_the_end_that_the_table_of_metrics_says(tmp_path: Path) -> None:
    for name, rates in (("low", (30.0, 10.0)), ("high", (40.0, 50.0))):
        records = [validation_record(step) | {"ter_of": {}, "ter": r} for step, r in zip((1, 2), rates, strict=True)]
        write_metrics(tmp_path / name, records)
    write_comparison([tmp_path / "low", tmp_path / "high"], tmp_path / "page.html", METRICS)
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.row("validation TER, best")[1:] == ["10 at step 2", "40 at step 1"]

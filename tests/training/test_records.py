"""What a run logs of itself: against brute force, in all the places where it goes, and explained in the guide."""

import csv
import gzip
import json
import math
import re
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from deepspeed.monitor import monitor
from jobs import Job

from deltalm_ds.data.padding import rounded_up
from deltalm_ds.errors import InputError
from deltalm_ds.recipe.loading import load_recipe
from deltalm_ds.runs.badput import time_spent
from deltalm_ds.runs.events import read_events
from deltalm_ds.runs.metrics import read_metrics
from deltalm_ds.training import monitors
from deltalm_ds.training.inputs import open_inputs
from deltalm_ds.training.monitors import check_monitors, open_monitors
from deltalm_ds.training.records import loss_record
from deltalm_ds.training.sections import Section
from deltalm_ds.training.throughput import operations_of, work_of

GUIDE = Path(__file__).parents[2] / "docs" / "training.md"
NUM_RANKS, MICRO_BATCHES = 2, 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory, make_run, run_on_ranks):
    """Runs of two ranks: `whole` with everything on, `resumed` from its step 10, `half` in float16."""
    directory = tmp_path_factory.mktemp("runs")
    batch = {"min_micro_batches": MICRO_BATCHES}
    seen = {"monitors": ["csv"], "profile": {"start_step": 3, "num_steps": 2, "ranks": "all"}}
    whole = make_run(directory / "whole", batch=batch, training=seen)
    resumed = make_run(directory / "resumed", batch=batch, training={"monitors": ["csv"]})
    half = make_run(directory / "half", deepspeed="fp16_zero1", training={"max_steps": 2, "save_every": 2})
    (resumed / "csv").mkdir()
    rows = "".join(f"{step},{step}\n" for step in range(1, 14))
    (resumed / "csv" / "train_loss.csv").write_text(f"step,loss\n{rows}")
    jobs = [Job(whole), Job(resumed, whole), Job(half)]
    assert run_on_ranks(directory, jobs, NUM_RANKS) == [0, 0, 0]
    return SimpleNamespace(whole=whole, resumed=resumed, half=half)


def train_records(run):
    return [record for record in read_metrics(run) if record["kind"] == "train"]


def test_padding_and_operations_are_those_of_the_batches(runs):
    recipe = load_recipe(runs.whole / "recipe.yaml")
    inputs = open_inputs(recipe)
    for step, record in enumerate(train_records(runs.whole)):
        ranks = [inputs.stream.micro_batches(step, rank, NUM_RANKS) for rank in range(NUM_RANKS)]
        computed = sum(sum(rounded_up(b.shape)[:2]) for batches in ranks for b in batches.micro_batches)
        lengths = defaultdict(list)
        for batch in (b for batches in ranks for b in batches.micro_batches if b.weight):
            lengths["source"] += batch.source.cu_seqlens.diff().tolist()
            lengths["target"] += batch.target_input.cu_seqlens.diff().tolist()
        tokens = sum(lengths["source"]) + sum(lengths["target"])
        assert record["padding"] == pytest.approx(1 - tokens / computed)
        assert 0 < record["padding"] < 0.9
        work = work_of(*(torch.tensor(lengths[side]).numpy() for side in ("source", "target")))
        operations = work @ operations_of(inputs.model_config)
        a_second = record["teraflops_per_rank"] * 1e12 * NUM_RANKS
        assert a_second * record["seconds_per_step"] == pytest.approx(operations)
        share_of_target = record["target_tokens_per_second"] / record["tokens_per_second"]
        assert share_of_target == pytest.approx(sum(lengths["target"]) / tokens)


def test_every_second_is_in_a_section(runs):
    records = read_metrics(runs.whole)
    found = {name for record in records for name in record["seconds"]}
    assert found == set(get_args(Section))
    # times are in whole seconds
    passed = (datetime.fromisoformat(records[-1]["time"]) - datetime.fromisoformat(records[0]["time"])).total_seconds()
    assert sum(sum(record["seconds"].values()) for record in records[1:]) == pytest.approx(passed, abs=1.5)
    assert [("validation" in r["seconds"], "checkpoint" in r["seconds"]) for r in records if r["kind"] == "validation"]
    spent = time_spent(runs.whole)
    assert spent["steps"] > 0 and spent["starts"] > 0 and spent["checkpoints"] > 0 and spent["recomputed"] == 0


def test_memory_and_loss_scale_are_there(runs):
    assert all(100 << 20 < record["peak_memory_bytes"] < 20 << 30 for record in train_records(runs.whole))
    assert all(record["mfu"] > 0 for record in train_records(runs.whole))
    assert all(record["loss_scale"] >= 1 for record in train_records(runs.half))
    assert "loss_scale" not in train_records(runs.whole)[0]


def test_losses_by_language_and_objective_are_weighted_by_tokens(runs):
    record = train_records(runs.whole)[0]
    by_direction = record["nll_of"]
    assert record["nll_by_language"] == {name.rpartition("-")[2]: nll for name, nll in by_direction.items()}
    assert record["nll_by_objective"] == {"seq2seq": pytest.approx(record["nll"], rel=1e-12)}


def test_sums_of_several_components_are_joined():
    def component(label, *languages):
        return SimpleNamespace(languages=languages, objective=SimpleNamespace(label=label))

    components = [component("a", "en", "de"), component("b", "de"), component("b", "fr"), component("c", "fr", "en")]
    sums = torch.tensor([[4.0, 9.0, 5.0, 0.0], [2.0, 8.0, 3.0, 0.0], [2.0, 4.0, 1.0, 0.0]], dtype=torch.float64)
    record = loss_record(sums, components, ["w", "x", "y", "z"])
    assert record["loss"] == 18 / 7 and record["nll"] == 13 / 7
    assert record["nll_of"] == {"w": 1.0, "x": 2.0, "y": 3.0}
    assert record["nll_by_language"] == {"de": 10 / 6, "fr": 3.0}
    assert record["nll_by_objective"] == {"a": 1.0, "b": 11 / 5}
    nothing = loss_record(torch.zeros(3, 4), components, ["w", "x", "y", "z"])  # of a step that was left out
    assert math.isnan(nothing["loss"]) and math.isnan(nothing["nll"]) and nothing["nll_of"] == {}


def test_the_guide_explains_every_key(runs):
    """And names none that no record has; metrics of translations have names of their own."""
    records = [record for run in (runs.whole, runs.half) for record in read_metrics(run)]
    text = GUIDE.read_text(encoding="utf-8")
    table = text[text.index("## What is logged") :].split("\n## ")[0]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", table, re.MULTILINE)
    explained = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert explained == {key for record in records for key in record}


def csv_rows(run, name):
    with open(run / "csv" / f"{name}.csv", newline="") as file:
        return list(csv.reader(file))


def test_csv_files_have_every_number_once_also_after_a_resume(runs):
    header, *rows = csv_rows(runs.whole, "train_loss")
    assert header == ["step", "loss"]
    written = [(int(step), float(value)) for step, value in rows]
    assert written == [(record["step"], record["loss"]) for record in train_records(runs.whole)]
    assert len(csv_rows(runs.whole, "train_seconds_forward")) == 21
    resumed = csv_rows(runs.resumed, "train_loss")
    assert [row[0] for row in resumed] == ["step", *map(str, range(1, 21))]
    assert resumed[11:] == csv_rows(runs.whole, "train_loss")[11:]


def test_what_a_resume_loses_is_an_event(runs):
    (event,) = (event for event in read_events(runs.resumed) if event["kind"] == "steps lost")
    later = [record for record in read_metrics(runs.whole) if record["step"] > 10]
    assert (event["step"], event["last_step"]) == (10, 20)
    assert event["seconds"] == pytest.approx(sum(sum(r["seconds"].values()) for r in later), abs=1e-3)
    assert time_spent(runs.resumed)["recomputed"] == event["seconds"]
    assert all(event["kind"] != "steps lost" for event in read_events(runs.whole))


def test_a_profile_has_the_sections_of_the_steps_asked_for(runs):
    assert not (runs.resumed / "profile").exists()
    for rank in range(NUM_RANKS):
        with gzip.open(runs.whole / "profile" / f"rank{rank}_step4.pt.trace.json.gz") as file:
            events = json.load(file)["traceEvents"]
        names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
        assert names.count("forward") == names.count("backward") == 2 * MICRO_BATCHES
        assert names.count("optimizer") == 2
        assert any(event["name"] == "aten::mm" for event in events)
    assert len(list((runs.whole / "profile").iterdir())) == NUM_RANKS


def test_an_unknown_monitor_is_answered_with_the_nearest(make_recipe):
    with pytest.raises(ValueError, match="there is no monitor 'wandbb'; the nearest is 'wandb'"):
        make_recipe(training={"monitors": ["wandbb"]})


def test_a_window_past_the_end_is_refused(make_recipe):
    make_recipe(training={"profile": {"start_step": 17}})
    with pytest.raises(ValueError, match=r"start_step \+ num_steps = 21 is past training.max_steps=20"):
        make_recipe(training={"profile": {"start_step": 18}})


def test_a_monitor_without_its_package_is_refused_before_training(make_recipe, monkeypatch):
    monkeypatch.setattr(monitors, "find_spec", lambda name: None)
    check_monitors(make_recipe(training={"monitors": ["csv"]}))
    with pytest.raises(InputError, match="comet needs the package comet_ml, which is not installed"):
        check_monitors(make_recipe(training={"monitors": ["csv", "comet"]}))


def test_a_monitor_that_fails_is_given_up_and_told_once(make_recipe, tmp_path, monkeypatch, capsys):
    written = []

    class Service:
        def __init__(self, config):
            assert config.wandb.enabled and config.wandb.group == "test" and not config.comet.enabled

        def write_events(self, events):
            if len(written) == 2:
                raise ConnectionError("no route to host")
            written.append(events)

    monkeypatch.setattr(monitor, "MonitorMaster", Service)
    (write,) = open_monitors(make_recipe(training={"monitors": ["wandb"]}), tmp_path, 0)
    for step in range(1, 6):
        write(step, [("train/loss", 1.0 / step)])
    assert written == [[("train/loss", 1.0, 1)], [("train/loss", 0.5, 2)]]
    assert capsys.readouterr().err == "The monitor wandb is given up at step 3: no route to host\n"


def test_a_monitor_that_cannot_be_opened_is_an_error(make_recipe, tmp_path, monkeypatch):
    def refuse(config):
        raise RuntimeError("no API key")

    monkeypatch.setattr(monitor, "MonitorMaster", refuse)
    with pytest.raises(InputError, match=r"training.monitors: wandb cannot be opened: no API key"):
        open_monitors(make_recipe(training={"monitors": ["wandb"]}), tmp_path, 0)

"""What `benchmarks.inference` compares a search with, and how it tells where the time goes."""

import time

import pytest
import torch

from benchmarks import inference, inference_growth, inference_profile, inference_roofline
from benchmarks.stages import REST, StageClock
from deltalm_ds.generation.engines.pytorch import engine_of_frozen
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM


@pytest.fixture
def rates(monkeypatch):
    """Every byte and every operation of another kind takes a time of its own."""
    monkeypatch.setattr(inference_roofline, "memory_rate", lambda: 1e3)
    monkeypatch.setattr(inference_roofline, "product_rate", lambda dtype: 1e6)
    monkeypatch.setattr(
        inference_roofline, "_product_seconds", lambda outputs, inputs, rows, dtype: outputs * inputs * rows
    )


@pytest.mark.usefixtures("rates")
@pytest.mark.parametrize(("decoder", "ffns"), [("interleaved", 2), ("vanilla", 1)])
def test_the_roofline_counts_all_products_and_caches_of_a_search(decoder, ffns):
    """Of base, counted by hand from its shape: 3 sentences, beam 5, outputs of 9 tokens and `</s>`."""
    config = DeltaLMConfig.preset("base", vocabulary_size=250_001, decoder=decoder)
    lengths, rows, num_steps, width, ffn = [4, 7, 9], 15, 10, 768, 3072
    found = inference_roofline.roofline(config, torch.bfloat16, lengths, 5, 9)
    assert found["output layer"] == rows * width * 250_001
    assert found["products of weights"] == rows * 6 * (6 * width**2 + ffns * 2 * width * ffn)
    encoder = 20 * (12 * (4 * width**2 + 2 * width * ffn) + 6 * 2 * width**2)
    attention = 12 * 4 * width * (16 + 49 + 81) / 1e6
    assert found["encoder"] == pytest.approx((encoder + attention) / num_steps, rel=1e-12)
    past = rows * sum(range(1, num_steps + 1)) / num_steps  # positions that a step reads
    assert found["attention"] == pytest.approx((past + 20) * 6 * 2 * width * 2 / 1e3)


def test_weights_are_read_at_the_speed_of_memory_where_products_are_faster(monkeypatch):
    monkeypatch.setattr(inference_roofline, "memory_rate", lambda: 1e3)
    monkeypatch.setattr(inference_roofline, "best_seconds", lambda way, at_least: way().sum().item() * 0 + 7.0)
    assert inference_roofline._product_seconds(10, 16, 2, torch.float32) == 7.0
    assert inference_roofline._product_seconds(200, 16, 2, torch.float32) == 200 * 16 * 4 / 1e3


class Work:
    """Functions that take seconds of a clock of their own."""

    now = 0.0

    @staticmethod
    def outer():
        Work.now += 1
        Work.inner()

    @staticmethod
    def inner():
        Work.now += 10


@pytest.mark.parametrize(("whole", "expected"), [(False, {"a": 1, "b": 20}), (True, {"a": 11, "b": 10})])
def test_a_stage_has_its_own_time_or_that_of_what_it_calls_too(whole, expected, monkeypatch):
    for name in ("now", "outer", "inner"):
        monkeypatch.setattr(Work, name, getattr(Work, name))  # to be as it was afterwards
    monkeypatch.setattr(time, "perf_counter", lambda: Work.now)
    clock = StageClock()
    clock.time(Work, "outer", "a", whole)
    clock.time(Work, "inner", "b")
    Work.outer()
    Work.now += 100
    Work.inner()
    clock.go_to(REST)
    assert clock.seconds == {**expected, REST: 100}


def test_the_stages_of_a_search_are_all_of_it(monkeypatch):
    for owner, name, _ in inference_profile.FUNCTIONS:
        monkeypatch.setattr(owner, name, getattr(owner, name))
    engine = engine_of_frozen(DeltaLM(DeltaLMConfig.preset("tiny", vocabulary_size=100)))
    took = []

    def run():
        start = time.perf_counter()
        engine.generate([[5, 6, 7], [8]], SearchOptions(2, min_length=4, max_length=4))
        took.append(time.perf_counter() - start)

    start = time.perf_counter()
    stages = inference_profile.profile(run, 20)  # among so many a pause of the machine is in any stage alike
    assert sum(took) <= 20 * sum(stages.values()) <= time.perf_counter() - start
    assert all(stages.values()) and stages[REST] < 0.5 * sum(stages.values())
    rows = inference_profile.rows_of_stages(stages, {"encoder": 1e-3, "attention": 2e-3}, 5)
    assert rows[-1]["ms a step"] == pytest.approx(sum(row["ms a step"] for row in rows[:-1]))
    assert rows[-1]["roofline ms a step"] == pytest.approx(3) and sum(row["of all"] for row in rows) == pytest.approx(2)


def test_speeds_are_compared_with_ours_and_with_those_without_neighbours():
    speeds = {("pytorch-float32", 0): 20.0, ("x", 0): 10.0, ("pytorch-float32", 2): 8.0, ("x", 2): 2.0}
    rows = [{"engine": name, "beam": 5, "neighbours": n, "tokens/s": speed} for (name, n), speed in speeds.items()]
    inference._compare(rows)
    assert [row["ratio"] for row in rows] == [1, 0.5, 1, 0.25]
    assert [row.get("of alone") for row in rows] == [None, None, 0.4, 0.2]
    rows = [{"engine": "x", "beam": 5, "tokens/s": 3.0}, {"engine": "pytorch-float32", "beam": 5, "failed": "no"}]
    inference._compare(rows)
    assert not any("ratio" in row or "of alone" in row for row in rows)


def test_slopes_are_exponents():
    rows = [
        {"axis": "batch", "engine": "x", "batch": n, "tokens/s": 3 * n**0.25, "ms a step": 2 * n**0.75, "peak GiB": 2.0}
        for n in (1, 8, 64)
    ]
    failed = {"axis": "batch", "engine": "y", "batch": 1, "failed": "no"}
    assert inference_growth.slopes([*rows, failed]) == (
        "Slopes in logarithms: batch, x: tokens/s 0.25, ms a step 0.75, peak GiB 0.00."
    )

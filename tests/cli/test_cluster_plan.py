"""Plans of clusters: formulas beside brute force and numbers by hand, a search beside trying all, the verb itself."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command import deltalm, make_world, must

from deltalm_ds.devices import DEVICES, GIB, find_device
from deltalm_ds.errors import InputError
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.recipe.loading import load_recipe
from deltalm_ds.training.checkpoint_interval import daly_interval, saving
from deltalm_ds.training.cluster_plan import compare_clusters, make_cluster_plan, scale_cluster
from deltalm_ds.training.network import Topology, all_reduce_seconds, gather_seconds
from deltalm_ds.training.planned_batch import planned_batch
from deltalm_ds.training.planner import FINEST, Planner, cluster_of
from deltalm_ds.training.step_time import LARGE_PRODUCT, Gpu
from deltalm_ds.training.step_work import MicroBatch, Product, products
from deltalm_ds.training.this_machine import ThisMachine
from deltalm_ds.training.throughput import operations_of

PAPER: dict[str, Any] = {
    "name": "paper",
    "deepspeed": "fp16_zero1",
    "vocabulary": "not/here",
    "model": {"preset": "base"},
    "data": {
        "train": [{"path": "not/here", "objective": "span_corruption"}],
        "max_source_tokens": 512,
        "max_target_tokens": 128,
    },
    "batch": {"tokens_per_step": 1_282_048, "micro_batch_tokens": 21_504},
    "schedule": {"kind": "linear", "peak_lr": 3e-4, "warmup_steps": 10_000},
    "training": {"max_steps": 600_000, "save_every": 2000},
}


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("paper") / "recipe.yaml"
    path.write_text(yaml.safe_dump(PAPER))
    return path


def planner_of(path: Path, *overrides: str) -> Planner:
    recipe = load_recipe(path, overrides)
    return Planner(recipe, planned_batch(recipe))


# --- formulas ---


def test_an_interval_is_that_of_the_least_time() -> None:
    """Of a run whose failures come at random, by Daly's complete model of it, searched through."""
    for cost, between in ((1.0, 3600.0), (30.0, 7200.0), (200.0, 2000.0)):
        intervals = np.linspace(1, 3 * math.sqrt(2 * cost * between), 20_000)
        time = between * (np.exp((intervals + cost) / between) - 1) / intervals  # a second of work, restarts aside
        assert daly_interval(cost, between) == pytest.approx(intervals[time.argmin()], rel=0.01)
    assert daly_interval(500.0, 100.0) == 100.0


def test_saving_waits_for_the_copy_and_not_for_the_disk() -> None:
    saved = saving(40 * 10**9, 4, 32, 50_000)
    assert (saved.copying, saved.writing) == (0.125, 10.0)
    assert saved.interval == daly_interval(0.125, 50_000 * 3600 / 32)
    slow_disk = saving(4 * 10**12, 1, 1024, 50_000)
    assert slow_disk.interval == slow_disk.writing == 4000.0


def test_exchanges_by_hand() -> None:
    pair = Topology(1, 2, link_rate=100e9, network_rate=1e9)
    assert all_reduce_seconds(8e9, pair) == pytest.approx(0.1, rel=1e-3)  # once the size at 80 % of the link
    assert gather_seconds(8e9, pair) == pytest.approx(0.05, rel=1e-3)
    far = replace(pair, hosts=2, slots=1)
    assert all_reduce_seconds(8e9, far) == pytest.approx(10.0, rel=1e-3)  # through the network
    assert all_reduce_seconds(8e9, Topology(1, 1, 1e9, 1e9)) == gather_seconds(8e9, Topology(1, 1, 1e9, 1e9)) == 0
    many = Topology(512, 8, 100e9, 100e9)
    ring = 8.4e-6 + 2 * (4096 - 512) * 3.4e-6 + 2 * 511 * 9.6e-6
    tree = 2 * (7 * 28e-6 + 9 * 50e-6)
    assert all_reduce_seconds(8.0, many) == pytest.approx(tree, rel=1e-3) and tree < ring


@pytest.mark.parametrize("decoder", ["interleaved", "vanilla"])
def test_products_are_what_the_log_counts(decoder: str) -> None:
    """The log leaves out the half of the decoder's own scores that is masked; the counter of torch tests the log."""
    config = DeltaLMConfig.preset("tiny", vocabulary_size=1000, decoder=decoder)
    counted = products(config, MicroBatch(6 * 40, 6 * 24, 6))
    of_source, of_target, own, causal, cross = operations_of(config)
    linear = sum(p.operations * times for p, times in counted.items() if p.kind != "attention")
    attention = sum(p.operations * times for p, times in counted.items() if p.kind == "attention")
    assert linear == 6 * 40 * of_source + 6 * 24 * of_target
    assert attention == 6 * (40 * 40 * own + 24 * 24 * causal + 24 * 40 * cross)
    again = products(config.model_copy(update={"activation_checkpointing": True}), MicroBatch(6 * 40, 6 * 24, 6))
    assert sum(p.operations * times for p, times in again.items()) > 1.2 * (linear + attention)


def test_a_large_product_nears_the_peak_and_a_small_one_does_not() -> None:
    gpu = Gpu(DEVICES["h100"], "bfloat16", has_graphs=True)

    def share(*sizes: int) -> float:
        product = Product("forward", 1, *sizes)
        return product.operations / gpu.product_seconds(product) / 989e12

    assert 0.9 * LARGE_PRODUCT < share(16_896, 16_384, 16_384) < LARGE_PRODUCT
    assert share(8192, 768, 768) < share(32_768, 768, 3072) < 0.75 * LARGE_PRODUCT
    assert share(128, 768, 768) < 0.05  # the weights are read by a few multiprocessors
    narrow = Product("forward", 1, 8, 8192, 8192)
    assert gpu.product_seconds(narrow) >= 2 * 8192**2 / 3350e9  # no faster than its weight is read


def test_names_of_gpus() -> None:
    assert find_device("V100")[0] == "v100-32g" and find_device("a100")[0] == "a100-80g"
    assert find_device("h100")[1].link_rate == 450e9
    with pytest.raises(InputError, match=r"no GPU 'v10-32' in the table; the nearest is 'v100-32g'"):
        find_device("v10-32")


# --- plans ---


def test_the_largest_micro_batch_is_the_largest(paper: Path) -> None:
    """By trying all: nothing above it fits, and it does."""
    planner = planner_of(paper)
    cluster = cluster_of("v100-16g", DEVICES["v100-16g"], 4, 8)
    found = planner.largest_micro_batch(cluster)
    assert found is not None
    sizes = range(planner.batch.longest_pair, round(planner.batch.tokens / 32), 500)
    fitting = [size for size in sizes if planner.fits(cluster, size)]
    assert planner.fits(cluster, found) and not planner.fits(cluster, found + FINEST)
    assert fitting[-1] <= found < fitting[-1] + 500 + FINEST
    larger = planner.largest_micro_batch(cluster_of("v100-32g", DEVICES["v100-32g"], 4, 8))
    assert larger is not None and larger > 1.5 * found


def test_the_paper_on_32_v100(paper: Path) -> None:
    result = make_cluster_plan(load_recipe(paper, ()), cluster_of("v100-32g", DEVICES["v100-32g"], 4, 8), 50_000, 2.0)
    assert result["pairs_per_step"] == 2048  # published: 2,048 samples of 512 tokens
    assert (result["source_tokens_per_step"], result["target_tokens_per_step"]) == (2048 * 512, 2048 * 114)
    assert result["num_parameters"] == pytest.approx(362e6, rel=0.01)
    assert result["micro_batches_per_rank"] == 2
    assert sum(result["seconds_by_part"].values()) == pytest.approx(result["seconds_per_step"])
    assert result["days"] == pytest.approx(result["seconds_per_step"] * 600_000 / 86_400)
    assert result["gpu_hours"] == pytest.approx(result["days"] * 24 * 32) == result["price"] / 2
    # a week was published; products at the peak alone would take 1.7 days
    assert 1.7 < result["days"] < 7
    assert result["energy_kwh"] == pytest.approx(result["gpu_hours"] * 0.3)
    assert [stage["zero_stage"] for stage in result["stages"]] == [1, 2, 3]
    totals = [stage["memory_bytes_per_rank"]["total"] for stage in result["stages"]]
    assert totals == sorted(totals, reverse=True) and totals[0] < result["usable_bytes_per_rank"] < 32 * GIB
    assert len(result["assumed"]) == 2 and "no GPU has confirmed" in result["accuracy"]["time"]
    assert json.loads(json.dumps(result)) == result


def test_communication_takes_over_where_the_network_is_slow(paper: Path) -> None:
    recipe = load_recipe(paper, ())
    name, device = find_device("v100-32g")
    fast, slow = (scale_cluster(recipe, cluster_of(name, device, 1, 8, rate), 4096) for rate in (50e9, 0.5e9))
    assert [row["ranks"] for row in fast] == [2**power for power in range(12)]  # no more ranks than 2,048 pairs
    assert [row["hosts"] for row in fast[:5]] == [1, 1, 1, 1, 2]
    assert fast[0]["efficiency"] == 1 and fast[0]["communication_share"] == 0
    assert all(a["tokens_per_second"] >= b["tokens_per_second"] for a, b in zip(fast, slow, strict=True))
    assert [row["taken_over"] for row in slow].index(True) < [row["taken_over"] for row in fast].index(True)


def test_all_presets_gpus_and_hosts(paper: Path) -> None:
    rows = compare_clusters(load_recipe(paper, ["deepspeed=bf16_zero1", "batch.micro_batch_tokens=1024"]))
    assert len(rows) == 3 * len(DEVICES) * 4
    best = {(row["preset"], row["gpu"], row["hosts"]): row for row in rows}
    assert best["base", "h100", 1]["days"] < best["base", "a100-80g", 1]["days"] < best["base", "v100-32g", 1]["days"]
    assert best["base", "v100-32g", 4]["days"] < best["base", "v100-32g", 1]["days"]
    assert best["large", "v100-32g", 1]["days"] > best["base", "v100-32g", 1]["days"]


# --- the verb ---


def plan_of(*arguments: object) -> Any:
    return json.loads(must("plan", *arguments, "--json"))


def test_a_plan_of_data_that_is_here_uses_its_lengths(tmp_path: Path) -> None:
    make_world(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    result = plan_of(recipe, "--gpu", "a100-40g", "--slots", 2)
    assert result["assumed"] == [] and result["ranks"] == 2
    steps = plan_of(recipe, "--ranks", 2)["steps"]
    mean = np.mean([step["source_tokens"] for step in steps])
    assert result["source_tokens_per_step"] == pytest.approx(mean, rel=0.2)
    share = (result["source_tokens_per_step"] + result["target_tokens_per_step"]) / 2
    assert result["largest_micro_batch_tokens"] == math.ceil(share)  # there is room for all that a rank has to do


def test_this_machine_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_world(tmp_path)
    measured: list[Product] = []

    def rate(machine: ThisMachine, product: Product) -> float:
        measured.append(product)
        return 1e9

    monkeypatch.setattr(ThisMachine, "_measured_rate", rate)
    result = plan_of(tmp_path / "recipe.yaml", "--gpu", "this")
    assert result["ranks"] == 1 and result["energy_kwh"] is None and not result["cuda_graphs"]
    parts = result["seconds_by_part"]
    assert parts["communication"] == 0 and all(
        seconds > 0 for name, seconds in parts.items() if name != "communication"
    )
    assert {product.kind for product in measured} == {"forward", "input_gradient", "weight_gradient", "attention"}
    assert result["memory_bytes_per_rank"]["libraries"] > 0


def test_rates_are_those_of_real_products() -> None:
    machine = ThisMachine(torch.float32)
    small, large = (Product("forward", 1, m, 256, 256) for m in (64, 6400))
    assert machine.product_seconds(large) > 5 * machine.product_seconds(small) > 0
    assert 1e8 < machine.copy_rate < 1e12


def explain(path: Path, *arguments: object) -> str:
    outcome = deltalm("plan", path, *arguments)
    assert outcome.code == 2 and outcome.stdout == ""
    return outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--gpu", "h10"], "There is no GPU 'h10' in the table; the nearest is 'h100' ("),
        (
            ["--gpu", "this", "--hosts", "2"],
            "--gpu this plans one rank of this machine: leave out --hosts and --slots.",
        ),
        (["--scale", "1..8"], "--scale needs a GPU: give --gpu as well."),
        (["--gpu", "h100", "--scale", "8"], "--scale '8' is not 1..N, as in 1..1024."),
        (
            ["--gpu", "h100", "--hosts", "300"],
            "batch.tokens_per_step=1282048 is 2048 pairs, fewer than 2400 ranks: plan fewer hosts or slots, or a ",
        ),
        (
            ["--gpu", "v100-32g", "deepspeed=bf16_zero2"],
            "deepspeed: bf16_zero2 computes in bfloat16, which v100-32g does not: write deepspeed=fp16_zero2.",
        ),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(paper: Path, arguments: list[str], sentence: str) -> None:
    assert explain(paper, *arguments).startswith(f"deltalm: {sentence}")


def test_a_model_that_is_too_large_says_what_would_fit(paper: Path) -> None:
    huge = ["model.preset=large", "model.num_encoder_layers=60", "model.num_decoder_blocks=30"]
    message = explain(paper, "--gpu", "v100-16g", "--hosts", 4, *huge)
    assert "does not fit on v100-16g: one pair of 626 tokens takes" in message
    suggested = message.split("what fits: ")[1]
    assert "deepspeed=fp16_zero3" in suggested
    assert plan_of(paper, "--gpu", "v100-16g", "--hosts", 4, *huge, "deepspeed=fp16_zero3")["days"] > 0
    assert "--gpu " in suggested


@pytest.mark.parametrize("options", [[], ["--scale", "1..4"]])
def test_tables_for_people(paper: Path, options: list[str]) -> None:
    text = must("plan", paper, "--gpu", "v100-32g", "--hosts", 4, *options)
    assert "no GPU has confirmed" in text
    assert ("largest micro batch tokens" in text) == (not options)

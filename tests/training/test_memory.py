"""Memory of a rank as it is planned: by hand, counted in real forwards, and (slow) in DeepSpeed's live tensors."""

import gc
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing, nn

from deltalm_ds.data.collation import Batch
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.packing import PackedSequences
from deltalm_ds.training.deepspeed_config import config_path, for_ranks
from deltalm_ds.training.memory import ActivationCost, exchange_bytes, loss_bytes, model_states, norm_bytes
from deltalm_ds.training.parameter_groups import WeightCounts
from deltalm_ds.training.plan import memory_of_rank
from tests.ranks_here import places

MIB = 2**20


def ds_config_of(stage: int, precision: str, **zero: Any) -> dict[str, Any]:
    ds_config: dict[str, Any] = {"zero_optimization": {"stage": stage, "reduce_bucket_size": 10, **zero}}
    if precision != "fp32":
        ds_config[precision] = {"enabled": True}
    if precision == "bf16":
        ds_config["communication_data_type"] = "fp32"
    return ds_config


@pytest.mark.parametrize(
    ("stage", "precision", "offload", "expected"),
    [  # 1,000 parameters, 600 of them in one, on 2 ranks
        (1, "fp32", {}, 8 * 500),
        (2, "bf16", {}, 8 * 500),
        (3, "bf16", {}, 8 * 300),
        (1, "bf16", {}, 0),
        (1, "bf16", {"offload_optimizer": {"device": "cpu"}}, 8 * 500),
    ],
)
def test_the_norm_is_taken_in_float64(stage: int, precision: str, offload: dict[str, Any], expected: int) -> None:
    assert norm_bytes(ds_config_of(stage, precision, **offload), 1000, 600, 2) == expected
    assert norm_bytes(ds_config_of(1, "fp32"), 1000, 600, 1) == 8 * 600
    assert norm_bytes(ds_config_of(2, "fp32"), 10**9, 10**8, 1) == 8 * 2**22  # a block of it
    assert norm_bytes(ds_config_of(3, "fp32"), 10**9, 10**8, 1) == 8 * 10**8


@pytest.mark.parametrize(
    ("stage", "precision", "expected"),
    [  # 1,000 parameters in buckets of 10: gradients that are sent, and what gloo copies besides
        (1, "fp32", (40, 4000)),
        (2, "fp32", (40, 4000)),
        (3, "fp32", (40, 40 + 8000)),
        (1, "bf16", (0, 2000)),
        (2, "bf16", (40, 2000)),
        (3, "bf16", (40, 40 + 8000)),
        (2, "fp16", (20, 2000)),
    ],
)
def test_copies_of_exchanges_by_hand(stage: int, precision: str, expected: tuple[int, int]) -> None:
    ds_config = ds_config_of(stage, precision)
    assert exchange_bytes(ds_config, 1000, 2, on_cpu=True) == expected
    assert exchange_bytes(ds_config, 1000, 2, on_cpu=False) == (expected[0], 0)
    assert exchange_bytes(ds_config, 1000, 1, on_cpu=True) == (0, 0)


@pytest.mark.parametrize(
    ("stage", "precision", "expected"),
    [  # 1,000 parameters on 4 ranks: weights, gathered weights, gradients, optimizer, buckets, offloaded
        (1, "fp32", (4000, 0, 4000, 2000, 40, 0)),
        (2, "fp32", (4000, 0, 1000, 2000, 40, 0)),
        (3, "fp32", (1000, 4000, 1000, 3000, 40, 0)),
        (1, "bf16", (2000, 0, 6000, 3000, 40, 0)),
        (2, "bf16", (2000, 0, 1000, 3000, 40, 0)),
        (3, "bf16", (500, 2000, 1000, 3000, 40, 0)),
        (2, "fp16", (2000, 0, 1000, 3000, 20, 0)),
    ],
)
def test_model_states_by_hand(stage: int, precision: str, expected: tuple[int, ...]) -> None:
    assert tuple(model_states(ds_config_of(stage, precision), 1000, 4).values()) == expected


def test_a_cpu_keeps_its_share_of_the_gradients() -> None:
    assert model_states(ds_config_of(1, "fp32"), 1000, 4, on_cpu=True)["gradients"] == 4000 + 1000
    assert model_states(ds_config_of(2, "fp32"), 1000, 4, on_cpu=True)["gradients"] == 1000
    alone = for_ranks(ds_config_of(1, "fp32"), 1, on_cpu=True)
    assert tuple(model_states(alone, 1000, 1, on_cpu=True).values()) == (4000, 0, 4000, 8000, 4, 0)


def test_frozen_weights_by_hand() -> None:
    assert model_states(ds_config_of(2, "bf16"), 1000, 4, True, num_frozen=600)["weights"] == 2000 + 4 * 600
    assert tuple(model_states(ds_config_of(3, "bf16"), 1000, 4, num_frozen=600).values()) == (
        500,
        2000,
        400,
        1200,
        40,
        0,
    )


def test_options_of_the_engine_that_change_memory() -> None:
    assert model_states(ds_config_of(2, "fp32", overlap_comm=True), 1000, 4)["reduce_buckets"] == 80
    assert model_states(ds_config_of(3, "bf16", stage3_max_live_parameters=100), 1000, 4)["gathered_weights"] == 200


@pytest.mark.parametrize(
    ("stage", "precision", "expected"),
    [  # where there is a GPU, the last is in the host's memory
        (1, "fp32", (4000, 0, 4000, 0, 40, 24 * 250)),
        (1, "bf16", (2000, 0, 4000, 0, 40, 18 * 250)),
        (2, "fp32", (4000, 0, 0, 0, 40, 24 * 250)),
        (2, "bf16", (2000, 0, 1000, 0, 40, 18 * 250)),
        (3, "bf16", (500, 2000, 0, 0, 40, 20 * 250)),
    ],
)
def test_an_offloaded_optimizer_by_hand(stage: int, precision: str, expected: tuple[int, ...]) -> None:
    ds_config = ds_config_of(stage, precision, offload_optimizer={"device": "cpu"})
    assert tuple(model_states(ds_config, 1000, 4).values()) == expected
    with torch.device("meta"):
        model = DeltaLM(DeltaLMConfig.preset("tiny", vocabulary_size=1000))
    cpu, gpu = (
        memory_of_rank(ds_config, model.config, WeightCounts.of(model), [(8, 8)], 4, torch.device(d), has_graphs=False)
        for d in ("cpu", "cuda")
    )
    assert gpu["total"] < sum(gpu.values()) - gpu["total"] - gpu["offloaded"] < cpu["total"]


def test_activations_of_a_layer_by_hand() -> None:
    config = DeltaLMConfig.preset("tiny", vocabulary_size=1000, dropout=0.0)
    m, f, heads = 128, 512, 4
    cost = ActivationCost.measure(config, 4)
    # a sub-layer: its input, what its norm takes, mean and deviation; queries, keys, values, output, log-sum-exp;
    # the FFN before and after GELU
    attention, feed_forward = 4 * (m + 3 * m + m + m + 2 + heads), 4 * (m + 2 * f + m + 2)
    cross_attention = 4 * (m + m + m + m + 2 + heads)
    assert cost.encoder_layer == attention + feed_forward
    assert cost.block_source == 4 * 2 * m
    assert cost.block_target == attention + cross_attention + 2 * feed_forward
    plain = cost.micro_batch(30, 20)
    assert plain == 30 * (cost.embedding + 2 * cost.encoder_layer + 4 * m + cost.block_source) + 20 * (
        cost.embedding + cost.block_target
    )
    saving = ActivationCost.measure(config.model_copy(update={"activation_checkpointing": True}), 4)
    inside = max(30 * cost.encoder_layer, 30 * cost.block_source + 20 * cost.block_target)
    assert saving.micro_batch(30, 20) == 50 * cost.embedding + (30 + 2 * 30 + 20) * 4 * m + inside


@pytest.mark.parametrize("decoder", ["interleaved", "vanilla"])
def test_activations_are_those_of_a_whole_forward(decoder: str) -> None:
    config = DeltaLMConfig.preset("tiny", vocabulary_size=200, decoder=decoder, num_encoder_layers=5)
    model = DeltaLM(config)
    source, target = (PackedSequences.from_lengths(torch.zeros(n, dtype=torch.int64), [n]) for n in (96, 40))
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.decode(target, model.encode(source), source)
    counted = sum(size for pointer, size in saved.items() if pointer not in known)
    assert output.requires_grad
    assert ActivationCost.measure(config, 4).micro_batch(96, 40) == pytest.approx(counted, rel=0.01)


def test_loss_holds_one_chunk_of_logits() -> None:
    config = DeltaLMConfig.preset("base", vocabulary_size=250_001)
    table = 250_048 * 768
    assert loss_bytes(config, 4, 100) == 4 * 100 * 250_001 + 4 * table
    assert loss_bytes(config, 2, 9000) == 2 * 4096 * 250_001 + 6 * table
    assert loss_bytes(config, 2, 100) == 2 * 100 * 250_001 + 2 * table  # one chunk: there is nothing to sum
    assert loss_bytes(config, 4, 9000, on_cpu=True) == 4 * 768 * 250_001 + 4 * table


class Square(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(500, 500, bias=False) for _ in range(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x.float().sum()


def live_bytes() -> int:
    """Bytes of all tensors that Python can reach, small ones left out."""
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            others = (
                thing.grad if thing.is_leaf else None,
                getattr(thing, "ds_tensor", None),
                thing.__dict__.get("grad_accum"),
            )
            for tensor in (thing, *others):
                if tensor is not None and tensor.numel() > 1000:
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def count_before_the_update(rank: int, name: str, of_ranks: list[dict[str, str]], result: str) -> None:
    import deepspeed

    from deltalm_ds.training.deepspeed_engine import start_distributed
    from deltalm_ds.training.deepspeed_internals import hold_numbers_once

    os.environ |= of_ranks[rank]
    start_distributed()
    config = json.loads(config_path(name).read_text())
    config["gradient_clipping"] = 1.0
    config["zero_optimization"] |= {"reduce_bucket_size": 300_000}
    model = Square()
    optimizer = torch.optim.AdamW(model.parameters())
    ds_config, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    hold_numbers_once(ds_config)
    x = torch.zeros(4, 500, dtype=torch.bfloat16 if "bf16" in name else torch.float32)
    for _ in range(2):  # Adam's moments exist from the first update on
        for _ in range(2):
            ds_config.backward(ds_config(x), scale_wrt_gas=False)
        gc.collect()
        size = live_bytes()
        ds_config.step()
    if rank == 0:
        Path(result).write_text(f"{size}")
    torch.distributed.barrier()  # a rank that leaves first looks to the other like one that crashed
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("offload", ["", "_offload_cpu"])
@pytest.mark.parametrize(
    "engine", [f"{precision}_zero{stage}" for precision in ("fp32", "bf16") for stage in (1, 2, 3)]
)
def test_model_states_are_those_deepspeed_holds(engine: str, offload: str, tmp_path: Path) -> None:
    name = engine + offload
    multiprocessing.spawn(count_before_the_update, (name, places(2), str(tmp_path / "size")), nprocs=2)
    config = json.loads(config_path(name).read_text())
    config["zero_optimization"]["reduce_bucket_size"] = 300_000
    expected = model_states(config, 2_000_000, 2, on_cpu=True)
    # between micro-batches no weights are gathered; a bucket is there or not, by stage
    low = sum(expected.values()) - expected["gathered_weights"] - expected["reduce_buckets"]
    counted = int((tmp_path / "size").read_text())
    assert 0.99 * low <= counted <= low + expected["reduce_buckets"] + 2 * MIB


SENTENCES, SENTENCE_TOKENS, LARGE_VOCABULARY = 8, 48, 64_000


def peak_of_training(_: int, name: str, place: dict[str, str], result: str) -> None:
    """The most memory that this process had while it trained DeltaLM-base of a smaller vocabulary."""
    import resource

    from deltalm_ds.recipe.loading import load_recipe, recipe_path
    from deltalm_ds.training.checkpoint import Share
    from deltalm_ds.training.deepspeed_engine import initialize, start_distributed
    from deltalm_ds.training.sections import Sections
    from deltalm_ds.training.spikes import not_finite_or_one
    from deltalm_ds.training.step import LossSums, train_step

    os.environ |= place
    start_distributed()
    model = DeltaLM(DeltaLMConfig.preset("base", vocabulary_size=LARGE_VOCABULARY))
    ds_engine = initialize(model, load_recipe(recipe_path("cldr_en_de"), [f"deepspeed={name}"]))
    side = PackedSequences.from_sequences([[5] * SENTENCE_TOKENS] * SENTENCES)
    batch = Batch(side, side, side.tokens.clone(), torch.zeros(SENTENCES, dtype=torch.int64)).padded()
    sums = LossSums(1, ds_engine.device)
    for step in range(3):
        done = train_step(
            ds_engine, [batch], len(batch.labels), 1e-4, 0.1, (0, step), lambda: None, Sections(), not_finite_or_one
        )
        sums.add(*done.losses[0])
        if not step:
            share = Share(ds_engine)
        share.copy()
    Path(result).write_text(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp32_zero1", "bf16_zero1"])
def test_the_plan_is_what_training_takes(name: str, tmp_path: Path) -> None:
    """By the system's count, libraries included, within 10 %."""
    multiprocessing.spawn(peak_of_training, (name, *places(), str(tmp_path / "peak")))
    ds_config = for_ranks(json.loads(config_path(name).read_text()), 1, on_cpu=True)
    with torch.device("meta"):
        model = DeltaLM(DeltaLMConfig.preset("base", vocabulary_size=LARGE_VOCABULARY))
    tokens = SENTENCES * SENTENCE_TOKENS
    weights = WeightCounts.of(model)
    memory = memory_of_rank(
        ds_config, model.config, weights, [(tokens, tokens)], 1, torch.device("cpu"), has_graphs=False
    )
    assert memory["total"] == pytest.approx(int((tmp_path / "peak").read_text()), rel=0.1)

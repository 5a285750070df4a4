"""Recorded micro-batches against the model itself, and trainings with them against those without.

On a CPU the recorded functions themselves take the graphs' place: static tensors, hand-over and order are tested here,
and what CUDA does with a graph in tests/model/test_cuda_graph.py.
"""

import json

import pytest
import torch
from jobs import Job

from deltalm_ds.data.collation import Batch
from deltalm_ds.data.padding import on_ladder
from deltalm_ds.errors import InputError
from deltalm_ds.files import read_json
from deltalm_ds.kernels import dispatch
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.packing import PackedSequences
from deltalm_ds.runs.metrics import read_metrics
from deltalm_ds.training import graphs
from deltalm_ds.training.deepspeed_config import CONFIG_DIRECTORY
from deltalm_ds.training.graphs import GraphedForward, reason_against_graphs
from deltalm_ds.training.inputs import open_inputs

VOCABULARY, STEPS = 100, 10
DROPOUT = {"dropout": 0.2, "attention_dropout": 0.1, "activation_dropout": 0.1}
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="a graph is for GPUs")),
]


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


def make_model(device="cpu"):
    torch.manual_seed(0)
    small = {"hidden_size": 32, "ffn_size": 64, "max_positions": 128, **DROPOUT}
    return DeltaLM(DeltaLMConfig.preset("tiny", vocabulary_size=VOCABULARY, **small)).train().to(device)


def make_batch(seed, num_sequences=6):
    generator = torch.Generator().manual_seed(seed)

    def draw():
        lengths = torch.randint(1, 15, (num_sequences,), generator=generator).tolist()
        return [torch.randint(4, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]

    sources, targets = PackedSequences.from_sequences(draw()), PackedSequences.from_sequences(draw())
    labels = torch.randint(4, VOCABULARY, (len(targets.tokens),), generator=generator)
    return Batch(sources, targets, labels, torch.zeros(num_sequences, dtype=torch.int64)).padded(on_ladder)


def losses_and_gradients(model, batches, forward):
    """Three micro-batches a step whose gradients are summed, each with a factor of its own, one of them 0."""
    found = []
    for number, batch in enumerate(batches):
        if number % 3 == 0:
            model.zero_grad()
        torch.manual_seed(number)
        result = forward(batch.source, batch.target_input, batch.labels, 0.1)
        (result.loss * (number % 3) / 7).backward()
        found.append([*(x.detach().cpu().clone() for x in result), *(p.grad.cpu().clone() for p in model.parameters())])
    return found


def test_losses_masks_and_gradients_are_the_models_own(device, monkeypatch):
    """To the last digit on a CPU; on a GPU the libraries may choose another product. A constant mask would show."""
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)  # so that some are dropped, and recorded once more
    batches = [make_batch(seed, num_sequences=4 + seed % 4 * 8).to(device) for seed in (0, 1, 2, 3, 0, 2) * 6]
    assert len({batch.shape for batch in batches}) == 4
    expected = losses_and_gradients(model := make_model(device), batches, model)
    graphed = GraphedForward(model := make_model(device))
    found = losses_and_gradients(model, batches, graphed)
    assert graphed.num_replays == 32
    tolerance = 0.0 if device.type == "cpu" else 1e-5
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_what_was_handed_over_is_not_written_again():
    """Gradients that a caller keeps, and losses of micro-batches before, are copies."""
    graphed = GraphedForward(model := make_model())
    batch = make_batch(1)
    kept = []
    for step in range(4):
        model.zero_grad()
        torch.manual_seed(step)
        result = graphed(batch.source, batch.target_input, batch.labels, 0.1)
        result.loss.backward()
        kept.append([x.detach() for x in (*result, *(p.grad for p in model.parameters()))])
    copies = [[x.clone() for x in tensors] for tensors in kept]
    losses_and_gradients(model, [make_batch(seed) for seed in range(4)], graphed)
    for ours, theirs in zip(kept, copies, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not torch.equal(kept[2][0], kept[3][0])  # other masks


def test_new_weights_are_seen_and_validation_is_not_recorded():
    graphed = GraphedForward(model := make_model())
    batch = make_batch(1)
    arguments = batch.source, batch.target_input, batch.labels, 0.1
    for step in range(4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
        for is_training in (True, False):
            model.train(is_training)
            torch.manual_seed(step)
            expected = model(*arguments)
            torch.manual_seed(step)
            assert torch.equal(graphed(*arguments).loss, expected.loss)
    assert graphed.num_replays == 3
    model.token_embedding.weight.data = model.token_embedding.weight.data.clone()
    model.train()
    with pytest.raises(AssertionError, match="weights have moved"):
        graphed(*arguments)


def test_what_cannot_be_recorded_is_told(monkeypatch):
    graphed = GraphedForward(make_model())
    batch = make_batch(1)
    arguments = batch.source, batch.target_input, batch.labels
    graphed(*arguments)

    def fail(*_):
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(graphs.GraphRecorder, "record", fail)
    with pytest.raises(InputError, match=r"graph: operation not permitted .* Set training.cuda_graphs=false"):
        graphed(*arguments)


@pytest.mark.parametrize(
    ("changes", "backend", "device", "reason"),
    [
        ({}, "", "cuda", None),
        ({"deepspeed": "fp16_zero2"}, "", "cuda", None),
        ({}, "", "cpu", "there is no GPU"),
        ({"training": {"cuda_graphs": False}}, "", "cuda", "training.cuda_graphs is false"),
        ({"deepspeed": "bf16_zero3"}, "", "cuda", "ZeRO stage 3"),
        ({"model": {"activation_checkpointing": True}}, "", "cuda", "activation checkpointing"),
        ({}, "reference", "cuda", "the reference backend of attention waits"),
    ],
)
def test_when_micro_batches_are_recorded(changes, backend, device, reason, make_recipe, monkeypatch):
    recipe = make_recipe(**changes)
    config = open_inputs(recipe).model_config
    monkeypatch.setenv(dispatch.VARIABLE, backend)
    monkeypatch.setattr(graphs, "compute_capability", lambda _: (9, 0))
    monkeypatch.setattr(dispatch, "triton_is_installed", lambda: True)
    found = reason_against_graphs(recipe, config, torch.device(device))
    assert (found is None) if reason is None else found.startswith(reason)


# --- under DeepSpeed ---


@pytest.fixture(scope="module")
def runs(with_slow, tmp_path_factory, make_run, run_on_ranks):
    """Pairs of runs on two ranks, the second with graphs; masks of the reference backend do not depend on padding."""
    few = {"max_steps": STEPS, "save_every": STEPS // 2}
    directory = tmp_path_factory.mktemp("graphs")
    many = {"tokens_per_step": 120, "min_micro_batches": 3}
    cases = {
        "zero1": {"deepspeed": "fp32_zero1", "batch": many},
        "zero2": {"deepspeed": "fp32_zero2", "batch": many},
        "padding": {"deepspeed": "fp32_zero2", "batch": {"tokens_per_step": 60, "min_micro_batches": 4}},
        "bf16": {"deepspeed": "bf16_zero1", "batch": many},
        "fp16": {"deepspeed": loss_scaled(directory), "batch": many},
    }
    if not with_slow:
        cases = {name: cases[name] for name in ("zero2", "padding", "bf16")}
    jobs = {}
    for name, changes in cases.items():
        for fault in (None, "graphs"):
            run = make_run(directory / f"{name}_{fault}", model=DROPOUT, training=few, validation=None, **changes)
            jobs[name, fault] = Job(run, fault=fault)
    resumed = make_run(directory / "resumed", model=DROPOUT, training=few, validation=None, **cases["zero2"])
    jobs["resumed", "graphs"] = Job(resumed, jobs["zero2", "graphs"].run, "graphs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(dispatch.VARIABLE, "reference")
        assert run_on_ranks(directory, list(jobs.values()), 2) == [0] * len(jobs)
    return {key: [record["loss"] for record in read_metrics(job.run)] for key, job in jobs.items()}


def loss_scaled(directory):
    """float16 with a loss scale that skips no update."""
    config = read_json(CONFIG_DIRECTORY / "fp16_zero2.json")
    config["fp16"] = {"enabled": True, "initial_scale_power": 8}
    (directory / "fp16.json").write_text(json.dumps(config))
    return str(directory / "fp16.json")


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        pytest.param("zero1", 1e-6, marks=pytest.mark.slow),
        ("zero2", 1e-6),
        ("padding", 1e-6),
        ("bf16", 1e-3),
        pytest.param("fp16", 1e-4, marks=pytest.mark.slow),
    ],
)
def test_steps_with_graphs_are_those_without(name, tolerance, runs):
    """Up to where a matrix product of another number of rows is rounded elsewhere."""
    expected, found = runs[name, None], runs[name, "graphs"]
    assert len(found) == STEPS and expected[-1] < expected[0]
    assert max(abs(a - b) / b for a, b in zip(found, expected, strict=True)) <= tolerance


def test_a_resumed_run_repeats_every_digit(runs):
    assert runs["resumed", "graphs"] == runs["zero2", "graphs"]

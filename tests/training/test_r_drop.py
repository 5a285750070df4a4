"""R-Drop against its definition in float64, alone and in training."""

from itertools import accumulate

import pytest
import torch
from jobs import Job
from torch.nn import functional

from deltalm_ds.arrays.counter_rng import hash_counters
from deltalm_ds.errors import InputError
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.runs.metrics import read_metrics
from deltalm_ds.training import r_drop
from deltalm_ds.training.checks import check_inputs
from deltalm_ds.training.inputs import open_inputs
from deltalm_ds.training.r_drop import RDropForward

ALPHA, SMOOTHING, STEPS = 0.7, 0.1, 4
DROPOUT = {"dropout": 0.2, "attention_dropout": 0.1}
MODES = {"model": DROPOUT, "training": {"max_steps": STEPS, "save_every": STEPS, "r_drop": ALPHA}}


def definition(hidden, table, labels, vocabulary_size):
    """[Wu+21 §2.1] divided by two: loss, divergence of each token and nll of both passes, from all logits at once."""
    logits = (hidden @ table[:vocabulary_size].T).view(2, len(labels), -1)
    first, second = logits.log_softmax(-1)
    kept = labels != -100
    each = SMOOTHING / (vocabulary_size - 1)
    nll, smoothed = [], []
    for log_p in (first, second):
        nll.append(functional.nll_loss(log_p, labels, ignore_index=-100, reduction="none"))
        smoothed.append((1 - SMOOTHING - each) * nll[-1] - each * log_p.sum(-1) * kept)
    forward = functional.kl_div(second, first, reduction="none", log_target=True).sum(-1)
    backward = functional.kl_div(first, second, reduction="none", log_target=True).sum(-1)
    divergence = (forward + backward) / 2 * kept
    token_loss = (smoothed[0] + smoothed[1]) / 2 + ALPHA / 2 * divergence
    return token_loss, (nll[0] + nll[1]) / 2, divergence


def by_definition(model, batch):
    """Of the two passes that `RDropForward` makes with the same masks."""
    hidden, table = model.hidden_and_table(r_drop._twice(batch.source), r_drop._twice(batch.target_input))
    return definition(hidden, table, batch.labels, model.config.vocabulary_size)


@pytest.fixture(scope="module")
def inputs(make_recipe):
    return open_inputs(make_recipe(**MODES))


@pytest.mark.parametrize("chunk", [7, 10_000])
def test_it_is_the_definition_in_float64(chunk, inputs, monkeypatch):
    monkeypatch.setattr(r_drop, "chunk_tokens", lambda *_: chunk)
    monkeypatch.setattr(r_drop, "CPU_BLOCK_LOGITS", 3 * 2 * inputs.model_config.vocabulary_size)  # 3 tokens at a time
    torch.manual_seed(0)
    model = DeltaLM(inputs.model_config).double().train()
    batch = inputs.stream.micro_batches(0, 0, 1).micro_batches[0].padded()
    assert (batch.labels == -100).any()
    torch.manual_seed(5)
    token_loss, nll, divergence = by_definition(model, batch)
    assert divergence.sum() / token_loss.sum() > 1e-3
    parameters = list(model.parameters())
    expected = torch.autograd.grad(token_loss.sum(), parameters)
    torch.manual_seed(5)
    found = RDropForward(model, ALPHA)(batch.source, batch.target_input, batch.labels, SMOOTHING)
    torch.testing.assert_close(found.loss, token_loss.sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.token_loss, token_loss.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.token_nll, nll.detach(), rtol=1e-10, atol=1e-12)
    for gradient, other in zip(torch.autograd.grad(3 * found.loss, parameters), expected, strict=True):
        torch.testing.assert_close(gradient, 3 * other, rtol=1e-9, atol=1e-12)


def test_one_sequence_twice_is_two_passes(inputs):
    """Without dropout both are the model's own, and nothing diverges."""
    model = DeltaLM(inputs.model_config.model_copy(update={"dropout": 0.0, "attention_dropout": 0.0})).train()
    batch = inputs.stream.micro_batches(0, 0, 1).micro_batches[0].padded()
    alone = model(batch.source, batch.target_input, batch.labels, SMOOTHING)
    found = RDropForward(model, ALPHA)(batch.source, batch.target_input, batch.labels, SMOOTHING)
    for one, other in zip(found, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=1e-5)


def test_validation_is_one_pass(inputs):
    model = DeltaLM(inputs.model_config).eval()
    batch = inputs.stream.micro_batches(0, 0, 1).micro_batches[0].padded()
    found = RDropForward(model, ALPHA)(batch.source, batch.target_input, batch.labels, SMOOTHING)
    assert torch.equal(found.loss, model(batch.source, batch.target_input, batch.labels, SMOOTHING).loss)


def test_sixteen_bits_follow(inputs):
    torch.manual_seed(0)
    model = DeltaLM(inputs.model_config).train()
    batch = inputs.stream.micro_batches(0, 0, 1).micro_batches[0].padded()
    torch.manual_seed(5)
    exact = RDropForward(model, ALPHA)(batch.source, batch.target_input, batch.labels, SMOOTHING).loss.item()
    torch.manual_seed(5)
    narrow = RDropForward(model.bfloat16(), ALPHA)(batch.source, batch.target_input, batch.labels, SMOOTHING)
    assert narrow.loss.item() == pytest.approx(exact, rel=0.02)
    narrow.loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_block_takes_the_memory_that_is_planned(dtype):
    """By PyTorch's own record of what is allocated and freed."""
    logits, labels = torch.randn(2, 8, 5000).to(dtype), torch.arange(8)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        r_drop._losses_and_gradient_(logits, labels, ALPHA, SMOOTHING, torch.float32)
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = list(accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())))
    assert max(held) == pytest.approx(r_drop.LOGIT_BYTES * logits.numel(), rel=0.01)


def plain_losses(recipe):
    """AdamW on the definition's loss, with the masks of the only rank."""
    inputs = open_inputs(recipe)
    torch.manual_seed(recipe.seed)
    model = DeltaLM(inputs.model_config).train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), eps=1e-8, weight_decay=0.01)
    losses = []
    for step in range(STEPS):
        batches = inputs.stream.micro_batches(step, 0, 1)
        optimizer.zero_grad()
        total = 0.0
        for index, batch in enumerate(batches.micro_batches):
            torch.manual_seed(int(hash_counters(recipe.seed, step, 0, index)) >> 1)
            loss = by_definition(model, batch.padded())[0].sum() / batches.num_target_tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.training.clip_norm)
        optimizer.param_groups[0]["lr"] = recipe.schedule.learning_rate(step, STEPS)
        optimizer.step()
        losses.append(total)
    return losses


def test_training_with_it_is_the_plain_loop_on_the_definition(make_recipe, make_run, run_on_ranks, tmp_path):
    jobs = [Job(make_run(tmp_path / name, **MODES, deepspeed=name)) for name in ("fp32_zero1", "fp32_zero3")]
    assert run_on_ranks(tmp_path, jobs, 1) == [0, 0]
    expected = plain_losses(make_recipe(**MODES))
    for job in jobs:
        losses = [record["loss"] for record in read_metrics(job.run) if record["kind"] == "train"]
        assert losses == pytest.approx(expected, rel=1e-6)


def test_a_model_without_dropout_is_refused(make_recipe):
    with pytest.raises(InputError, match=r"training\.r_drop: the model has no dropout"):
        check_inputs(make_recipe(training={"r_drop": 1.0}))

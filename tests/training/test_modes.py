"""Freezing, learning rates by depth, weight decay by name and the running average against a loop written down."""

import math
from types import SimpleNamespace

import pytest
import torch
from jobs import Job
from pydantic import ValidationError
from safetensors.torch import load_file

from deltalm_ds.checkpoints.average import average_models
from deltalm_ds.checkpoints.directory import load_model, open_weights
from deltalm_ds.data.stream import evaluation_batches
from deltalm_ds.errors import InputError
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.runs.checkpoints import checkpoint_directories
from deltalm_ds.runs.metrics import read_metrics
from deltalm_ds.training.checks import check_inputs
from deltalm_ds.training.graphs import GraphedForward
from deltalm_ds.training.inputs import open_inputs

STEPS = 8
DECAY, FROM_STEP = 0.6, 3
FREEZE = ("encoder.layers.0.*", "decoder.embedding.*")
MODES = {
    "optimizer": {"freeze": FREEZE, "no_decay": ("*.bias", "*norm*"), "layer_decay": 0.5, "weight_decay": 0.1},
    "training": {
        "max_steps": STEPS,
        "save_every": STEPS // 2,
        "average": {"decay": DECAY, "from_step": FROM_STEP},
    },
}


def is_frozen(name):
    return name.startswith(("encoder.layers.0.", "decoder.embedding."))


def share_of_rate(name):
    """Of two encoder layers and one block, by hand."""
    if name.startswith(("encoder.layers.1.", "decoder.blocks.0.")):
        return 1.0
    return 0.5 if name.startswith("encoder.layers.0.") else 0.25


def is_decayed(name):
    return not name.endswith(".bias") and "norm" not in name


def plain_training(recipe):
    """AdamW by its definition, one process; losses, norms, weights and their average."""
    inputs = open_inputs(recipe)
    torch.manual_seed(recipe.seed)
    model = DeltaLM(inputs.model_config).train()
    trained = {name: p for name, p in model.named_parameters() if not is_frozen(name)}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in trained.items()}
    average = {name: p.detach().clone() for name, p in trained.items()}
    (beta_1, beta_2), eps = recipe.optimizer.betas, recipe.optimizer.eps
    losses, norms = [], []
    for step in range(STEPS):
        batches = inputs.stream.micro_batches(step, rank=0, world_size=1)
        model.zero_grad()
        sums = [model(b.source, b.target_input, b.labels, 0.1).loss for b in batches.micro_batches]
        loss = sum(sums) / batches.num_target_tokens
        loss.backward()
        norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in trained.values()))
        clip = min(1.0, recipe.training.clip_norm / (norm + 1e-6))
        rate = recipe.schedule.learning_rate(step, STEPS)
        for name, p in trained.items():
            m, v = moments[name]
            lr, gradient = rate * share_of_rate(name), clip * p.grad
            with torch.no_grad():
                m.mul_(beta_1).add_(gradient, alpha=1 - beta_1)
                v.mul_(beta_2).add_(gradient**2, alpha=1 - beta_2)
                p.mul_(1 - lr * (0.1 if is_decayed(name) else 0.0))
                p.sub_(lr * (m / (1 - beta_1 ** (step + 1))) / ((v / (1 - beta_2 ** (step + 1))).sqrt() + eps))
                begins = step + 1 <= FROM_STEP
                average[name] = p.clone() if begins else DECAY * average[name] + (1 - DECAY) * p
        losses.append(loss.item())
        norms.append(norm)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    return SimpleNamespace(losses=losses, norms=norms, weights=weights, average=average)


@pytest.fixture(scope="module")
def recipe(make_recipe):
    return make_recipe(**MODES)


@pytest.fixture(scope="module")
def plain(recipe):
    return plain_training(recipe)


STAGES = ("fp32_zero1", "fp32_zero2", "fp32_zero3")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, make_run, run_on_ranks):
    """Run directories by name, all of them trained to the end."""
    directory = tmp_path_factory.mktemp("modes")

    def job(name, engine, resumes=None, **validation):
        changes = {**MODES, "deepspeed": engine, "validation": validation}
        return Job(make_run(directory / name, **changes), resumes and directory / resumes)

    of_two = [job("fp32_zero1", "fp32_zero1"), job("fp32_zero2", "fp32_zero2", weights="average")]
    of_two += [job("fp32_zero3", "fp32_zero3"), job("bf16_zero3", "bf16_zero3", weights="average")]
    of_two += [job("again", "fp32_zero1", "fp32_zero1"), job("again_bf16", "bf16_zero1", "bf16_zero3")]
    assert set(run_on_ranks(directory, of_two, 2)) == {0}
    assert run_on_ranks(directory, [job("alone", "fp32_zero3", "fp32_zero2")], 1) == [0]
    return {path.name: path for path in directory.iterdir() if path.is_dir()}


def losses(run, key="loss", kind="train"):
    return [record[key] for record in read_metrics(run) if record["kind"] == kind]


def tensors(run, files):
    """Of the last checkpoint."""
    found = {}
    for file in checkpoint_directories(run)[-1].glob(files):
        found |= load_file(file)
    return found


@pytest.mark.parametrize("name", [*STAGES, "alone"])
def test_it_is_the_loop_written_down(name, runs, plain):
    run = runs[name]
    assert losses(run) == pytest.approx(plain.losses, rel=1e-6)
    assert losses(run, "gradient_norm") == pytest.approx(plain.norms, rel=1e-5)
    weights, average = tensors(run, "model-*"), tensors(run, "average-*")
    assert weights.keys() == plain.weights.keys() and average.keys() == plain.average.keys()
    # keys' biases have no gradient but rounding, as a softmax does not see them, and Adam makes an update of that
    compared = [name for name in weights if not name.endswith("key_value.bias")]
    for name in compared:
        torch.testing.assert_close(weights[name], plain.weights[name], rtol=1e-4, atol=5e-6)
    for name in set(compared) & average.keys():
        torch.testing.assert_close(average[name], plain.average[name], rtol=1e-4, atol=5e-6)
        assert not torch.equal(average[name], weights[name]), name


def test_shares_of_the_rate_make_a_difference(plain, make_recipe, monkeypatch):
    """Or the comparison above could not fail for what is compared."""
    monkeypatch.setattr("test_modes.share_of_rate", lambda name: 1.0)
    other = plain_training(make_recipe(**MODES))
    assert abs(other.losses[-1] / plain.losses[-1] - 1) > 1e-3


@pytest.mark.parametrize("name", [*STAGES, "bf16_zero3", "again_bf16"])
def test_what_is_frozen_comes_out_as_it_went_in_and_has_no_moments(name, runs, recipe):
    torch.manual_seed(recipe.seed)
    start = {n: p.detach() for n, p in DeltaLM(open_inputs(recipe).model_config).named_parameters()}
    weights, moments = tensors(runs[name], "model-*"), tensors(runs[name], "optimizer-*")
    assert {n for n in weights if torch.equal(weights[n], start[n])} == {n for n in start if is_frozen(n)}
    assert {key.split(".", 1)[1] for key in moments} == {n for n in start if not is_frozen(n)}


def test_a_resumed_run_repeats_every_digit(runs):
    assert losses(runs["again"]) == losses(runs["fp32_zero1"])
    for files in ("model-*", "optimizer-*", "average-*"):
        found, expected = tensors(runs["again"], files), tensors(runs["fp32_zero1"], files)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("name", "tolerance"), [("fp32_zero2", 1e-6), ("bf16_zero3", 2e-3)])
def test_validation_can_measure_the_average(name, tolerance, runs, recipe, tmp_path):
    checkpoint = checkpoint_directories(runs[name])[-1]
    average_models([checkpoint], tmp_path / "average", running=True)
    of_average = open_weights(tmp_path / "average")
    assert all(torch.equal(of_average[n], p) for n, p in tensors(runs[name], "average-*").items())
    model = load_model(tmp_path / "average").eval()
    batches = evaluation_batches(open_inputs(recipe).validation, 0, 1).micro_batches
    with torch.no_grad():
        total = sum(model(b.source, b.target_input, b.labels, 0.1).loss.item() for b in batches)
    loss = total / sum(int((b.labels >= 0).sum()) for b in batches)
    assert losses(runs[name], kind="validation")[-1] == pytest.approx(loss, rel=tolerance)
    assert abs(losses(runs["fp32_zero1"], kind="validation")[-1] / loss - 1) > 2 * tolerance


def test_graphs_give_gradients_to_what_is_trained_alone(recipe):
    inputs = open_inputs(recipe)
    model = DeltaLM(inputs.model_config).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not is_frozen(name))
    batch = inputs.stream.micro_batches(0, 0, 1).micro_batches[0].padded()
    trained = [p for p in model.parameters() if p.requires_grad]
    inputs_of_batch = batch.source, batch.target_input, batch.labels, 0.1
    expected = torch.autograd.grad(model(*inputs_of_batch).loss, trained)
    graphed = GraphedForward(model)
    for _ in range(3):  # as ever, recorded, replayed
        model.zero_grad()
        graphed(*inputs_of_batch).loss.backward()
        assert all(torch.equal(p.grad, g) for p, g in zip(trained, expected, strict=True))
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    assert graphed.num_replays == 2


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"freeze": ["encoder.*", "encoder.layer.0.*"]}, r"optimizer.freeze: no parameter is named 'encoder.layer.0"),
        ({"no_decay": ["*.biases"]}, r"optimizer.no_decay: no parameter is named '\*.biases'; the nearest is '.*bias'"),
        ({"freeze": ["*"]}, "the patterns name every parameter, so nothing is left to train"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused_before_a_rank_starts(optimizer, message, make_recipe):
    with pytest.raises(InputError, match=message):
        check_inputs(make_recipe(optimizer=optimizer))


def test_an_average_that_is_measured_must_be_kept(make_recipe):
    with pytest.raises(ValidationError, match=r"average must be given where validation\.weights is average"):
        make_recipe(validation={"weights": "average"})

"""Microsoft's DeltaLM on fairseq: logits, losses, gradients and 20 updates of the same weights on the same batches.

The reduced reference has a few logit rows, of every gradient its norm and 16 of its values, and the encoder's output at
tokens; where the whole reference is at hand, all logits and gradients are compared.

The official code computes the softmax of cross-attention in float32 even in its float64 run; all else of that run is
float64. Ours is float64 throughout, and the same to 1e-14 on every processor. What that softmax may change is measured
on our model: in each of `NUM_DRAWS` further runs cross-attention has a float32 softmax too, of scores that are each off
by at most one float32 rounding. The official run is one more such draw, so that twice the largest change among ours is
allowed, per quantity. One rounding of all probabilities p in the worst directions changes a token's loss by
Σ |∂loss/∂p| · p · 2⁻²⁴ = 2.3e-7 at most (by autograd, on these batches), and a float32 softmax was at most 4.2 such
roundings off: more than 1e-6 is never allowed. The encoder's output, which no float32 touches, is held to 1e-12.
"""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from deltalm_ds.checkpoints.initialise import unchanged_initialisation
from deltalm_ds.checkpoints.names import POSITION_OFFSET, fairseq_names
from deltalm_ds.checkpoints.sources import recognise
from deltalm_ds.kernels.optimizer import adam
from deltalm_ds.model import layers
from deltalm_ds.model.packing import PackedSequences
from deltalm_ds.recipe.schedules.inverse_sqrt import InverseSqrt

PAD = 1
NUM_TOKENS, NUM_HEADS, LABEL_SMOOTHING = 1000, 4, 0.1
DTYPES = {"f32": torch.float32, "f64": torch.float64}
OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4  # float32: absolute, as the issue asks, and relative to the norm
NUM_DRAWS = 4
MOST_OF_OUTPUT, MOST_OF_GRADIENT = 1e-6, 3e-6  # what may be allowed in float64; a gradient's by its norm
EXACT = 1e-12
FLOAT32_ROUNDING = 2.0**-24


def rounded_cross_attention(q, kv, cu_seqlens_q, cu_seqlens_k, *lengths_and_dropout):
    """The softmax in float32, of scores each off by up to one rounding; its gradient is float32 too."""
    k, v = kv.unbind(1)
    outputs = []
    for b in range(len(cu_seqlens_q) - 1):
        queries = q[cu_seqlens_q[b] : cu_seqlens_q[b + 1]].transpose(0, 1)  # [H, Lq, D]
        keys, values = (x[cu_seqlens_k[b] : cu_seqlens_k[b + 1]].transpose(0, 1) for x in (k, v))
        scores = (queries * q.shape[-1] ** -0.5) @ keys.transpose(1, 2)  # [H, Lq, Lk]
        scores = scores * (1 + FLOAT32_ROUNDING * (2 * torch.rand_like(scores) - 1))
        probabilities = torch.softmax(scores, dim=-1, dtype=torch.float32).type_as(scores)
        outputs.append((probabilities @ values).transpose(0, 1))
    return torch.cat(outputs)


def make_model(path, dtype):
    """The official weights in our model, without dropout."""
    return unchanged_initialisation(recognise(path), NUM_HEADS, NUM_TOKENS).model(dropout=0.0).train().to(dtype)


@dataclass
class Outputs:
    """Of one batch: logits [T, V], token_loss and token_nll [T], their sum, gradients of the sum by our names."""

    logits: np.ndarray
    token_loss: np.ndarray
    token_nll: np.ndarray
    loss_sum: float
    gradients: dict[str, np.ndarray]


def run(model, batch):
    """Forward and backward of a padded official batch."""
    is_token = batch["target"] != PAD
    source = PackedSequences.from_sequences([[t for t in row if t != PAD] for row in batch["src_tokens"].tolist()])
    target_input = PackedSequences.from_sequences(
        [row[kept].tolist() for row, kept in zip(batch["prev_output_tokens"], is_token, strict=True)]
    )
    labels = torch.from_numpy(batch["target"][is_token].astype(np.int64))
    with torch.no_grad():
        logits = model.logits(model.decode(target_input, model.encode(source), source))
    model.zero_grad()
    loss, token_loss, token_nll = model(source, target_input, labels, LABEL_SMOOTHING)
    loss.backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    gradients["token_embedding.weight"] = gradients["token_embedding.weight"][:NUM_TOKENS]
    return Outputs(logits.numpy(), token_loss.numpy(), token_nll.numpy(), loss.item(), gradients)


@dataclass
class Tolerances:
    """The largest difference allowed of one token's loss and nll, of one logit, and its norm for a gradient by name."""

    token_loss: float
    token_nll: float
    logits: float
    gradients: dict[str, float]


def tolerances(precision, model, batch, outputs):
    """In float64, twice what a float32 softmax in cross-attention was seen to do to our own `outputs`."""
    norms = {name: np.linalg.norm(gradient) for name, gradient in outputs.gradients.items()}
    if precision == "f32":
        gradients = {name: GRADIENT_TOLERANCE * norm for name, norm in norms.items()}
        return Tolerances(OUTPUT_TOLERANCE, OUTPUT_TOLERANCE, OUTPUT_TOLERANCE, gradients)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "cross_attention", rounded_cross_attention)
        draws = [run(model, batch) for _ in range(NUM_DRAWS)]

    def allowed(name):
        return 2 * max(np.abs(getattr(draw, name) - getattr(outputs, name)).max() for draw in draws)

    gradients = {
        name: 2 * max(np.linalg.norm(draw.gradients[name] - outputs.gradients[name]) for draw in draws)
        for name in norms
    }
    found = Tolerances(allowed("token_loss"), allowed("token_nll"), allowed("logits"), gradients)
    assert max(found.token_loss, found.token_nll, found.logits) <= MOST_OF_OUTPUT
    assert all(gradients[name] <= MOST_OF_GRADIENT * norm for name, norm in norms.items())
    return found


def official_parts(config):
    """Our parameter names, each with the official names of what is laid one below the other to make it.

    fairseq files the gradient of the shared table under the encoder's name.
    """
    for name, parts in fairseq_names(config).items():
        yield name, [part.replace("decoder.embed_tokens", "encoder.embed_tokens") for part in parts]


def assert_losses_agree(outputs, numbers, is_token, allowed):
    assert np.abs(outputs.token_loss - numbers["loss_tok"][is_token]).max() <= allowed.token_loss
    assert np.abs(outputs.token_nll - numbers["nll_tok"][is_token]).max() <= allowed.token_nll
    assert abs(outputs.loss_sum - float(numbers["loss_sum"])) <= allowed.token_loss * is_token.sum()


def section(archive, prefix):
    return {key.removeprefix(prefix): archive[key] for key in archive if key.startswith(prefix)}


@pytest.mark.parametrize("batch_name", ["b0", "b1"])
@pytest.mark.parametrize("precision", ["f32", "f64"])
def test_reduced_reference(precision, batch_name, fixtures):
    archive = dict(np.load(fixtures / "official_base_reference.npz"))
    batch, numbers = section(archive, f"{batch_name}."), section(archive, f"{precision}.{batch_name}.")
    model = make_model(fixtures / "official_base.pt", DTYPES[precision])
    outputs = run(model, batch)
    allowed = tolerances(precision, model, batch, outputs)

    is_token = batch["target"] != PAD
    assert_losses_agree(outputs, numbers, is_token, allowed)
    row_of_token = np.cumsum(is_token).reshape(is_token.shape) - 1
    rows = row_of_token[tuple(batch["logit_rows"].T)]
    assert np.abs(outputs.logits[rows] - numbers["logits"]).max() <= allowed.logits

    number_of = {name: i for i, name in enumerate(batch["gradient_names"])}
    for name, parts in official_parts(model.config):
        skipped = POSITION_OFFSET if name.endswith("positions") else 0  # rows that ours does not have
        found = np.pad(outputs.gradients[name], [(skipped, 0)] + [(0, 0)] * (outputs.gradients[name].ndim - 1))
        expected_norm = np.linalg.norm([numbers["gradient_norm"][number_of[part]] for part in parts])
        assert abs(np.linalg.norm(found.astype(np.float64)) - expected_norm) <= allowed.gradients[name], name
        for part, of_part in zip(parts, np.split(found, len(parts)), strict=True):
            number = number_of[part]
            sample = of_part.ravel()[batch["gradient_index"][number]]
            difference = np.linalg.norm(sample - numbers["gradient_sample"][number])
            assert difference <= allowed.gradients[name], part


@pytest.mark.parametrize("batch_name", ["b0", "b1"])
@pytest.mark.parametrize("precision", ["f32", "f64"])
@pytest.mark.parametrize("file", ["pretrained.pt", "finetuned.pt", "pretrained_morerows.pt"])
def test_whole_reference(file, precision, batch_name, reference):
    archive = dict(np.load(reference / "base" / "reference.npz"))
    batch, numbers = section(archive, f"{batch_name}."), section(archive, f"{precision}.{batch_name}.")
    model = make_model(reference / "base" / file, DTYPES[precision])
    outputs = run(model, batch)
    allowed = tolerances(precision, model, batch, outputs)

    is_token = batch["target"] != PAD
    assert_losses_agree(outputs, numbers, is_token, allowed)
    assert np.abs(outputs.logits - numbers["logits"][is_token]).max() <= allowed.logits
    for name, parts in official_parts(model.config):
        expected = np.concatenate([numbers[f"grad.{part}"] for part in parts])
        found = outputs.gradients[name]
        if name.endswith("positions"):
            expected = expected[POSITION_OFFSET:]
            assert not found[len(expected) :].any()  # surplus rows of the file are never read
            found = found[: len(expected)]
        assert np.linalg.norm(found - expected) <= allowed.gradients[name], name


@pytest.mark.parametrize("batch_name", ["b0", "b1"])
def test_encoder_output_is_exact_in_float64(batch_name, fixtures):
    """No float32 comes before it."""
    archive = np.load(fixtures / "official_base_reference.npz")
    rows = archive[f"{batch_name}.src_tokens"].tolist()
    source = PackedSequences.from_sequences([[token for token in row if token != PAD] for row in rows])
    states = make_model(fixtures / "official_base.pt", torch.float64).encode(source)
    assert np.abs(states.detach().numpy() - archive[f"f64.{batch_name}.encoder_out"]).max() <= EXACT


@pytest.mark.parametrize(("precision", "tolerance"), [("f32", 1e-5), ("f64", 1e-6)])
def test_trajectory_of_twenty_updates(precision, tolerance, fixtures):
    """The issue asks for 1e-4; but torch's definition of Adam is only 5e-5 away, and must not pass."""
    trajectory = json.loads((fixtures / "official_base_trajectory.json").read_text())
    model = make_model(fixtures / "official_base.pt", DTYPES[precision])
    options, rates = trajectory["optimizer"], trajectory["schedule"]
    optimizer = adam(model.parameters(), tuple(options["betas"]), options["eps"], options["weight_decay"], "fairseq")
    schedule = InverseSqrt(
        peak_lr=rates["lr"],
        warmup_steps=rates["warmup_updates"],
        initial_lr=rates["warmup_init_lr"],
    )
    updates = trajectory["float32" if precision == "f32" else "float64"]
    assert len(updates) == 20
    for number, update in enumerate(updates):
        pairs = sorted(trajectory["batches"][update["batch"]], key=lambda pair: -len(pair["source"]))
        source = PackedSequences.from_sequences([pair["source"] for pair in pairs])
        target_input = PackedSequences.from_sequences([[2, *pair["target"][:-1]] for pair in pairs])
        labels = torch.tensor([token for pair in pairs for token in pair["target"]])
        optimizer.zero_grad()
        loss = model(source, target_input, labels, LABEL_SMOOTHING).loss / len(labels)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options["clip_norm"])
        optimizer.param_groups[0]["lr"] = schedule.learning_rate(number, max_steps=20)
        optimizer.step()
        assert len(labels) == update["sample_size"]
        assert loss.item() == pytest.approx(update["loss_per_token"], abs=tolerance), update["update"]
        assert norm.item() == pytest.approx(update["gnorm"], rel=10 * tolerance), update["update"]
        assert optimizer.param_groups[0]["lr"] == pytest.approx(update["lr_used"], rel=1e-12)

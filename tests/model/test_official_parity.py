"""Microsoft's DeltaLM on fairseq: logits, losses, gradients and 20 updates of the same weights on the same batches.

The reduced reference has a few logit rows, and of every gradient its norm and 16 of its values; where the whole
reference is at hand, everything is compared.

The official code computes the softmax of cross-attention in float32 even in its float64 run, over keys padded on the
left, and a float32 sum depends on where its terms stand. The float64 tests do the same. A last bit of float64 can still
decide how a score is rounded to float32: that is all the difference there is (1e-11 where no score lies so near a tie,
2e-8 of a gradient where one does, the same with three implementations of self-attention).
"""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from deltalm_ds.checkpoints.initialise import unchanged_initialisation
from deltalm_ds.checkpoints.names import POSITION_OFFSET, fairseq_names
from deltalm_ds.checkpoints.sources import recognise
from deltalm_ds.kernels.attention import attention
from deltalm_ds.kernels.optimizer import adam
from deltalm_ds.model import layers
from deltalm_ds.model.packing import PackedSequences
from deltalm_ds.recipe.schedules.inverse_sqrt import InverseSqrt

PAD = 1
NUM_TOKENS, NUM_HEADS, LABEL_SMOOTHING = 1000, 4, 0.1
DTYPES = {"f32": torch.float32, "f64": torch.float64}
GRADIENT_TOLERANCE = {"f32": 1e-4, "f64": 5e-8}
# The 1e-5 and what the float32 cross-attention leaves of float64
OUTPUT_TOLERANCE = {"f32": 1e-5, "f64": 1e-9}


def official_cross_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, dropout_p=0.0):
    """Padded on the left to the longest source, scaled before the product, softmax in float32."""
    q = q * q.shape[-1] ** -0.5
    longest = int(cu_seqlens_k.diff().max())
    outputs = []
    for b in range(len(cu_seqlens_q) - 1):
        queries = q[cu_seqlens_q[b] : cu_seqlens_q[b + 1]].transpose(0, 1)  # [H, Lq, D]
        keys, values = (x[cu_seqlens_k[b] : cu_seqlens_k[b + 1]].transpose(0, 1) for x in (k, v))
        padding = longest - keys.shape[1]
        keys, values = (torch.nn.functional.pad(x, (0, 0, padding, 0)) for x in (keys, values))
        scores = queries @ keys.transpose(1, 2)
        scores[..., :padding] = -math.inf
        probabilities = torch.softmax(scores, dim=-1, dtype=torch.float32).type_as(scores)
        outputs.append((probabilities @ values).transpose(0, 1))
    return torch.cat(outputs)


def official_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, causal=False, dropout_p=0.0):
    if cu_seqlens_k is cu_seqlens_q:
        return attention(q, k, v, cu_seqlens_q, cu_seqlens_k, causal, dropout_p)
    return official_cross_attention(q, k, v, cu_seqlens_q, cu_seqlens_k)


def make_model(path, dtype, monkeypatch):
    """The official weights in our model, without dropout."""
    if dtype == torch.float64:
        monkeypatch.setattr(layers, "attention", official_attention)
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


def official_parts(config):
    """Our parameter names, each with the official names of what is laid one below the other to make it.

    fairseq files the gradient of the shared table under the encoder's name.
    """
    for name, parts in fairseq_names(config).items():
        yield name, [part.replace("decoder.embed_tokens", "encoder.embed_tokens") for part in parts]


def assert_losses_agree(outputs, numbers, is_token, tolerance):
    assert np.abs(outputs.token_loss - numbers["loss_tok"][is_token]).max() <= tolerance
    assert np.abs(outputs.token_nll - numbers["nll_tok"][is_token]).max() <= tolerance
    assert abs(outputs.loss_sum - float(numbers["loss_sum"])) <= tolerance * is_token.sum()


def section(archive, prefix):
    return {key.removeprefix(prefix): archive[key] for key in archive if key.startswith(prefix)}


@pytest.mark.parametrize("batch_name", ["b0", "b1"])
@pytest.mark.parametrize("precision", ["f32", "f64"])
def test_reduced_reference(precision, batch_name, fixtures, monkeypatch):
    archive = dict(np.load(fixtures / "official_base_reference.npz"))
    batch, numbers = section(archive, f"{batch_name}."), section(archive, f"{precision}.{batch_name}.")
    model = make_model(fixtures / "official_base.pt", DTYPES[precision], monkeypatch)
    outputs = run(model, batch)

    is_token = batch["target"] != PAD
    assert_losses_agree(outputs, numbers, is_token, OUTPUT_TOLERANCE[precision])
    row_of_token = np.cumsum(is_token).reshape(is_token.shape) - 1
    rows = row_of_token[tuple(batch["logit_rows"].T)]
    assert np.abs(outputs.logits[rows] - numbers["logits"]).max() <= OUTPUT_TOLERANCE[precision]

    number_of = {name: i for i, name in enumerate(batch["gradient_names"])}
    for name, parts in official_parts(model.config):
        skipped = POSITION_OFFSET if name.endswith("positions") else 0  # rows that ours does not have
        found = np.pad(outputs.gradients[name], [(skipped, 0)] + [(0, 0)] * (outputs.gradients[name].ndim - 1))
        expected_norm = np.linalg.norm([numbers["gradient_norm"][number_of[part]] for part in parts])
        tolerance = GRADIENT_TOLERANCE[precision]
        assert np.linalg.norm(found.astype(np.float64)) == pytest.approx(expected_norm, rel=tolerance), name
        for part, of_part in zip(parts, np.split(found, len(parts)), strict=True):
            number = number_of[part]
            sample = of_part.ravel()[batch["gradient_index"][number]]
            difference = np.linalg.norm(sample - numbers["gradient_sample"][number])
            assert difference <= tolerance * expected_norm, part


@pytest.mark.parametrize("batch_name", ["b0", "b1"])
@pytest.mark.parametrize("precision", ["f32", "f64"])
@pytest.mark.parametrize("file", ["pretrained.pt", "finetuned.pt", "pretrained_morerows.pt"])
def test_whole_reference(file, precision, batch_name, reference, monkeypatch):
    archive = dict(np.load(reference / "base" / "reference.npz"))
    batch, numbers = section(archive, f"{batch_name}."), section(archive, f"{precision}.{batch_name}.")
    model = make_model(reference / "base" / file, DTYPES[precision], monkeypatch)
    outputs = run(model, batch)

    is_token = batch["target"] != PAD
    assert_losses_agree(outputs, numbers, is_token, OUTPUT_TOLERANCE[precision])
    assert np.abs(outputs.logits - numbers["logits"][is_token]).max() <= OUTPUT_TOLERANCE[precision]
    for name, parts in official_parts(model.config):
        expected = np.concatenate([numbers[f"grad.{part}"] for part in parts])
        found = outputs.gradients[name]
        if name.endswith("positions"):
            expected = expected[POSITION_OFFSET:]
            assert not found[len(expected) :].any()  # surplus rows of the file are never read
            found = found[: len(expected)]
        difference = np.linalg.norm(found - expected)
        assert difference <= GRADIENT_TOLERANCE[precision] * np.linalg.norm(expected), name


@pytest.mark.parametrize(("precision", "tolerance"), [("f32", 1e-5), ("f64", 1e-6)])
def test_trajectory_of_twenty_updates(precision, tolerance, fixtures, monkeypatch):
    """The issue asks for 1e-4; but torch's definition of Adam is only 5e-5 away, and must not pass."""
    trajectory = json.loads((fixtures / "official_base_trajectory.json").read_text())
    model = make_model(fixtures / "official_base.pt", DTYPES[precision], monkeypatch)
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

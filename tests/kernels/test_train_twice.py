"""A small model trained by the definitions, and by what serves this machine: the same losses."""

import pytest
import torch

from deltalm_ds.kernels.dispatch import VARIABLE
from deltalm_ds.kernels.optimizer import adam
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.packing import PackedSequences

NUM_STEPS = 200


def losses(backend: str, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Loss per token of each step of learning to reverse sequences, without dropout (its masks differ on a CPU)."""
    monkeypatch.setenv(VARIABLE, backend)
    torch.manual_seed(0)
    config = DeltaLMConfig(
        vocabulary_size=23, hidden_size=32, ffn_size=64, num_heads=4, num_encoder_layers=2, num_decoder_blocks=1,
        max_positions=12, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
    )  # fmt: skip
    model = DeltaLM(config)
    optimizer = adam(model.parameters(), (0.9, 0.98), 1e-8, 0.0)
    optimizer.param_groups[0]["lr"] = 3e-3
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(NUM_STEPS):
        sequences = [torch.randint(4, 23, (length,), generator=generator).tolist() for length in (3, 7, 1, 9, 5, 8)]
        labels = torch.tensor([token for tokens in sequences for token in [*reversed(tokens), 2]])
        source = PackedSequences.from_sequences([[*tokens, 2] for tokens in sequences])
        target = PackedSequences.from_sequences([[2, *reversed(tokens)] for tokens in sequences])
        loss = model(source, target, labels, 0.1).loss / len(labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.detach())
    return torch.stack(found)


def test_training_by_the_definitions_and_by_the_default_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, found = losses("reference", monkeypatch), losses("", monkeypatch)
    assert expected[-10:].mean() < expected[0] / 1.2  # it learns
    # float32 rounding, which training amplifies: measured 1.3e-6 at most
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=0)

"""What `benchmarks.train_step` times: the update of its plain loops, and the operations that it counts."""

import copy

import pytest
import torch

from benchmarks import train_step, train_step_kinds
from benchmarks.train_step_kinds import Size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_updates_are_torchs_adam_behind_clipping(dtype):
    """By whole tensors, as on a GPU, and by blocks, as on a processor."""
    torch.manual_seed(0)
    expected = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 3))
    models = [copy.deepcopy(expected) for _ in range(2)]
    adam = torch.optim.AdamW(expected.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0)
    updates = [train_step_kinds._Update(model, dtype) for model in models]
    for _ in range(3):
        gradients = [3 * torch.randn_like(weight).to(dtype) for weight in expected.parameters()]
        for module in (expected, *models):
            for weight, gradient in zip(module.parameters(), gradients, strict=True):
                weight.grad = gradient.to(weight.dtype)
        torch.nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
        adam.step()
        for update, way in zip(updates, ("_update_whole_tensors", "_update_in_blocks"), strict=True):
            update.num_steps += 1
            with torch.no_grad():
                getattr(update, way)()
    for model in models:
        for weight, wanted in zip(model.parameters(), expected.parameters(), strict=True):
            assert weight.dtype == dtype
            torch.testing.assert_close(weight, wanted.to(dtype), rtol=1e-6, atol=1e-7)


def test_operations_are_three_times_the_forwards(monkeypatch):
    """Of base at 64 x (512 + 114) tokens, counted by hand from its shape.

    Padding rows of the table are multiplied too, and attention of the target is as if not causal.
    """
    size = Size(768, 3072, 12, 12, 6, (512,), (114,), "64", ())
    monkeypatch.setattr(train_step, "SIZE", size)
    monkeypatch.setattr(train_step_kinds, "VOCABULARY", 250_001)
    found = sum(2 * times * b * m * k * n for (b, m, k, n), times in train_step._products(64).items())
    width, ffn, source, target = 768, 3072, 64 * 512, 64 * 114
    encoder = 12 * source * (4 * width**2 + 2 * width * ffn)
    decoder = 6 * (target * (6 * width**2 + 4 * width * ffn) + 2 * source * width**2)
    scores = 12 * source * 512 + 6 * target * (114 + 512)  # of queries and keys, and again of probabilities and values
    assert found == 3 * 2 * (encoder + decoder + target * width * 250_048 + 2 * width * scores)

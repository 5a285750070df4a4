"""The definitions themselves: against published numbers, and against other implementations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deltalm_ds.kernels import reference
from deltalm_ds.kernels.dropout_mask import draw_seed, keep_mask, philox, scale, threshold

# (counter, key, result) of Philox4x32-10, as its authors publish them with Random123 (kat_vectors)
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def seed_of(low: int, high: int) -> Tensor:
    return torch.tensor([(high << 32 | low) - (1 << 64 if high >> 31 else 0)])


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_gives_the_published_numbers(counter: str, key: str, result: str) -> None:
    found = philox(tuple(torch.tensor([word]) for word in words(counter)), seed_of(*words(key)))  # type: ignore[arg-type]
    assert [word.item() for word in found] == words(result)


def philox_by_numpy(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """The paper's figure in unsigned numpy: [..., 4] uint32 -> [..., 4] uint32 [Salmon+11 §4.3]."""
    c = counter.astype(np.uint64)
    k = np.array(key, dtype=np.uint64)
    for _ in range(10):
        product_0, product_2 = c[..., 0] * np.uint64(0xD2511F53), c[..., 2] * np.uint64(0xCD9E8D57)
        left, right = c[..., 1] ^ k[0], c[..., 3] ^ k[1]
        parts = (product_2 >> 32) ^ left, product_2, (product_0 >> 32) ^ right, product_0
        c = np.stack(parts, -1) & np.uint64(0xFFFFFFFF)
        k = (k + np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)) & np.uint64(0xFFFFFFFF)
    return c.astype(np.uint32)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_a_mask_is_the_bytes_of_philox(p: float) -> None:
    num_rows, num_columns, plane, key = 5, 37, 3, (0x12345678, 0x1ABCDEF0)
    counter = np.zeros((num_rows, 3, 4), dtype=np.uint32)
    counter[..., 0], counter[..., 1], counter[..., 2] = np.arange(3), np.arange(num_rows)[:, None] + 100, plane
    expected = philox_by_numpy(counter, key).astype("<u4").view(np.uint8).reshape(num_rows, 48)[:, :num_columns]
    found = keep_mask(seed_of(*key), p, torch.arange(100, 105), num_columns, plane)
    assert np.array_equal(found.numpy(), expected >= round(p * 256))


def test_masks_keep_their_rate_and_are_independent() -> None:
    """Of neighbours, of rows, of heads, and of seeds (the steps of training)."""
    rows = torch.arange(500)
    masks = torch.stack(
        [
            keep_mask(torch.tensor([seed]), 0.25, rows, 160, head)
            for seed, head in [(1, 0), (1, 1), (2, 0), (1 + 2**32, 0)]
        ]
    )
    num = masks[0].numel()
    assert masks.double().mean((1, 2)).sub(0.75).abs().max().item() < 5 * (0.25 * 0.75 / num) ** 0.5
    centred = (masks.double() - 0.75) / (0.25 * 0.75) ** 0.5
    pairs = [(centred[a], centred[b]) for a in range(4) for b in range(a)]
    pairs += [(centred[0, :, :-d], centred[0, :, d:]) for d in (1, 4, 15, 16)]
    pairs.append((centred[0, :-1], centred[0, 1:]))
    for a, b in pairs:
        assert abs((a * b).mean().item()) < 5 / a.numel() ** 0.5


@pytest.mark.parametrize(("p", "of_256"), [(0.0, 0), (0.001, 0), (0.1, 26), (0.5, 128), (1.0, 255)])
def test_rates_are_rounded_and_means_kept(p: float, of_256: int) -> None:
    assert threshold(p) == of_256
    assert scale(p) * (256 - of_256) == 256


def test_seeds_come_from_torchs_generator_and_only_where_something_is_dropped() -> None:
    torch.manual_seed(1)
    first, second = draw_seed(0.1, torch.device("cpu")), draw_seed(0.1, torch.device("cpu"))
    assert first is not None and second is not None and first.item() != second.item()
    torch.manual_seed(1)
    assert torch.equal(draw_seed(0.1, torch.device("cpu")), first)  # type: ignore[arg-type]
    state = torch.get_rng_state()
    assert draw_seed(0.0, torch.device("cpu")) is None
    assert torch.equal(torch.get_rng_state(), state)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_norm_feed_forward_and_loss_are_torchs() -> None:
    x, weight, bias = normal(5, 7), normal(7), normal(7) * 2
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(
        reference.layer_norm(x, weight, bias, 1e-5), F.layer_norm(x, (7,), weight, bias), **close
    )
    weight_in, bias_in, weight_out = normal(11, 7), normal(11), normal(7, 11)
    found = reference.feed_forward(x, weight_in, bias_in, weight_out, bias, 0.0, None)
    expected = F.linear(F.gelu(F.linear(x, weight_in, bias_in)), weight_out, bias)
    torch.testing.assert_close(found, expected, **close)
    labels = torch.tensor([0, 10, -100, 3, 3])
    loss, token_loss, token_nll = reference.linear_cross_entropy(x, weight_in, labels, 11, 0.1)
    smoothed = F.cross_entropy(x @ weight_in.T, labels, label_smoothing=0.1 * 11 / 10, reduction="none")
    torch.testing.assert_close(token_loss, smoothed, **close)
    torch.testing.assert_close(loss, smoothed.sum(), **close)
    torch.testing.assert_close(token_nll, F.cross_entropy(x @ weight_in.T, labels, reduction="none"), **close)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_torchs_sequence_by_sequence(causal: bool) -> None:
    q, k, v = normal(6, 2, 4), normal(6, 2, 4) * 2, normal(6, 2, 4) * 3
    cu = torch.tensor([0, 4, 4, 6])
    found = reference.attention(q, k, v, cu, cu, causal, 0.0, None)
    for span in (slice(0, 4), slice(4, 6)):
        heads_first = [x[span].transpose(0, 1) for x in (q, k, v)]
        expected = F.scaled_dot_product_attention(*heads_first, is_causal=causal).transpose(0, 1)
        torch.testing.assert_close(found[span], expected, rtol=1e-12, atol=1e-12)


def test_16_bit_inputs_are_computed_in_float32() -> None:
    x = (1000 + normal(3, 8)).bfloat16()
    found = reference.layer_norm(x, torch.ones(8).bfloat16(), torch.zeros(8).bfloat16(), 1e-5)
    assert found.dtype == torch.bfloat16
    expected = F.layer_norm(x.double(), (8,))
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-3)

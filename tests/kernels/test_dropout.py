"""Dropout: its rate, its scale, and where its randomness comes from."""

import pytest
import torch

from deltalm_ds.kernels.dropout import dropout

SIZE = 80_000


@pytest.mark.parametrize(("p", "of_256"), [(0.1, 26), (0.25, 64), (0.5, 128), (0.9999, 255)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rate_and_scale(p, of_256, dtype):
    torch.manual_seed(0)
    out = dropout(torch.ones(SIZE, dtype=dtype), p)
    rate = of_256 / 256
    kept = out != 0
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / (1 - rate)), rtol=1e-7, atol=0)
    five_deviations = 5 * (rate * (1 - rate) / SIZE) ** 0.5
    assert kept.double().mean().item() == pytest.approx(1 - rate, abs=five_deviations)
    # every byte of the drawn words is used alike
    lanes = kept.view(-1, 8).double().mean(0)
    assert lanes.sub(1 - rate).abs().max().item() <= 8**0.5 * five_deviations


def test_neighbours_fall_out_independently():
    torch.manual_seed(0)
    zero = (dropout(torch.ones(SIZE), 0.5) == 0).double() - 0.5
    for distance in (1, 7, 8, 9):
        correlation = 4 * (zero[:-distance] * zero[distance:]).mean().item()
        assert abs(correlation) <= 5 / SIZE**0.5


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (3, 5), (2, 3, 4)])
def test_shapes_and_gradient(shape):
    x = torch.full(shape, 3.0, requires_grad=True)
    torch.manual_seed(1)
    out = dropout(x, 0.5)
    assert out.shape == shape
    out.sum().backward()
    assert torch.equal(3 * x.grad, out.detach())


def test_it_is_drawn_from_torchs_generator():
    x = torch.ones(100)
    torch.manual_seed(1)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.5), first)
    assert not torch.equal(first, second)


def test_rate_zero_gives_back_the_same_tensor_and_draws_nothing():
    x = torch.ones(3)
    before = torch.get_rng_state()
    assert dropout(x, 0.0) is x
    assert torch.equal(torch.get_rng_state(), before)

"""LayerNorm and the end of a post-LN sub-layer against their definitions, in float64."""

import pytest
import torch

from deltalm_ds.kernels.dropout import dropout
from deltalm_ds.kernels.layer_norm import dropout_add_layer_norm, layer_norm

EPS = 1e-5


def defined(x, weight, bias):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt() * weight + bias


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    x, residual = torch.randn(2, 7, 13, generator=generator, dtype=torch.float64) * 1e-2  # so small that eps counts
    weight, bias = torch.randn(2, 13, generator=generator, dtype=torch.float64)
    return x, residual, weight, bias


def test_layer_norm(tensors):
    x, _, weight, bias = tensors
    torch.testing.assert_close(layer_norm(x, weight, bias, EPS), defined(x, weight, bias), rtol=1e-12, atol=1e-12)


def test_without_dropout_it_is_the_norm_of_the_sum(tensors):
    x, residual, weight, bias = tensors
    found = dropout_add_layer_norm(x, residual, weight, bias, EPS)
    torch.testing.assert_close(found, defined(x + residual, weight, bias), rtol=1e-12, atol=1e-12)


def test_dropout_falls_on_the_sublayer_and_not_on_the_residual(tensors):
    x, residual, weight, bias = tensors
    torch.manual_seed(3)
    found = dropout_add_layer_norm(x, residual, weight, bias, EPS, dropout_p=0.5)
    torch.manual_seed(3)
    kept = dropout(torch.ones_like(x), 0.5)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    torch.testing.assert_close(found, defined(kept * x + residual, weight, bias), rtol=1e-12, atol=1e-12)

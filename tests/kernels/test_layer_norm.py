"""LayerNorm and the end of a post-LN sub-layer against their definitions, in float64."""

import sys
from types import ModuleType

import pytest
import torch

from deltalm_ds.kernels import dispatch
from deltalm_ds.kernels.dispatch import VARIABLE
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


def test_apex_serves_the_norm_where_it_is_asked_for(tensors, monkeypatch):
    """A stand-in with the signature of apex's function, as neither apex nor a GPU is here."""
    calls = []

    def fused_layer_norm_affine(x, weight, bias, normalized_shape, eps=1e-6, memory_efficient=False):
        calls.append(tuple(normalized_shape))
        return defined(x, weight, bias) if eps == EPS else None

    module = ModuleType("apex.normalization.fused_layer_norm")
    module.fused_layer_norm_affine = fused_layer_norm_affine
    for name in ("apex", "apex.normalization"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(dispatch, "compute_capability", lambda device: (8, 0))
    monkeypatch.setattr(dispatch, "apex_is_installed", lambda: True)
    monkeypatch.setenv(VARIABLE, "apex")
    x, residual, weight, bias = tensors
    exact = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(layer_norm(x, weight, bias, EPS), defined(x, weight, bias), **exact)
    found = dropout_add_layer_norm(x, residual, weight, bias, EPS, dropout_p=0.0)
    torch.testing.assert_close(found, defined(x + residual, weight, bias), **exact)
    assert calls == [(13,), (13,)]

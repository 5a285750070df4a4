"""The feed-forward sub-layer against its definition, in float64."""

import torch

from deltalm_ds.kernels.dropout import dropout
from deltalm_ds.kernels.feed_forward import feed_forward


def tensors():
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 3), (11, 3), (11,), (3, 11), (3,)]
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def gelu(x):
    """The exact form: x times the standard normal distribution function."""
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def test_definition():
    x, weight_in, bias_in, weight_out, bias_out = tensors()
    expected = gelu(x @ weight_in.T + bias_in) @ weight_out.T + bias_out
    found = feed_forward(x, weight_in, bias_in, weight_out, bias_out)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_dropout_falls_behind_the_activation():
    x, weight_in, bias_in, weight_out, bias_out = tensors()
    torch.manual_seed(3)
    found = feed_forward(x, weight_in, bias_in, weight_out, bias_out, dropout_p=0.25)
    torch.manual_seed(3)
    kept = dropout(torch.ones(5, 11, dtype=torch.float64), 0.25)
    expected = (kept * gelu(x @ weight_in.T + bias_in)) @ weight_out.T + bias_out
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

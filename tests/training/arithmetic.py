"""Prints fingerprints of how this machine computes what a training computes: equal for equal numbers to the last bit.

Started as `python arithmetic.py` with the environment of a golden run (test_golden.py). A JSON object: one fingerprint
for what a training in float32 does, one for what a training in bfloat16 does.
"""

import hashlib
import json

import torch
from torch import Tensor
from torch.nn import functional

TOKENS, HIDDEN, FFN = 37, 32, 65


def numbers(*shape: int, seed: int) -> Tensor:
    """Of -2 to 2, by integers alone."""
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.int64)
    return ((count * 7919 + seed * 104729) % 1009 - 504).view(shape).float() / 252


def step(dtype: torch.dtype) -> list[Tensor]:
    """The ops of a forward and backward, at odd sizes."""
    x, w = (numbers(n, HIDDEN, seed=n).to(dtype).requires_grad_() for n in (TOKENS, FFN))
    hidden = functional.gelu(functional.linear(x, w))
    heads = functional.layer_norm(hidden[:, :64], (64,)).view(1, TOKENS, 4, 16).transpose(1, 2)
    attended = functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
    loss = functional.cross_entropy((hidden + attended.sum()).float(), torch.arange(TOKENS) % FFN)
    loss.backward()
    return [hidden, heads, attended, loss, x.grad, w.grad, hidden.sum(), torch.softmax(x, -1), torch.logsumexp(x, -1)]


def around_a_step() -> list[Tensor]:
    """Initial weights, dropout, functions, norms and Adam: in float32 in every training."""
    x = numbers(1001, seed=3)
    found = [torch.exp(x), torch.erf(x), torch.log(x.abs() + 1), torch.sqrt(x.abs()), torch.cos(x), x.double().norm()]
    torch.manual_seed(1)
    found += [torch.randn(100), torch.rand(100), torch.bernoulli(torch.full((100,), 0.3))]
    parameter = torch.nn.Parameter(x.clone())
    optimizer = torch.optim.AdamW([parameter], lr=0.01, fused=True)
    for number in range(3):
        parameter.grad = numbers(1001, seed=4 + number)
        optimizer.step()
    return [*found, parameter]


def fingerprint(results: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for result in results:
        digest.update(result.detach().double().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    of_types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    print(json.dumps({name: fingerprint(around_a_step() + step(dtype)) for name, dtype in of_types.items()}))

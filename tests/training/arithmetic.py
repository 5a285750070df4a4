"""Prints a fingerprint of how this machine computes what a training computes: equal for equal numbers to the last bit.

Started as `python arithmetic.py` with the environment of a golden run (test_golden.py).
"""

import hashlib

import torch
from torch.nn import functional

torch.set_num_threads(1)


def numbers(*shape: int, seed: int) -> torch.Tensor:
    """Of -2 to 2, by integers alone."""
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.int64)
    return ((count * 7919 + seed * 104729) % 1009 - 504).view(shape).float() / 252


def results() -> list[torch.Tensor]:
    """What a step is made of, at odd sizes, forward and backward."""
    x, w = numbers(37, 32, seed=1).requires_grad_(), numbers(65, 32, seed=2).requires_grad_()
    found = [torch.exp(x), torch.erf(x), torch.log(x.abs() + 1), torch.sqrt(x.abs()), torch.cos(x), x.sum(), x.mean(0)]
    hidden = functional.gelu(functional.linear(x, w))
    heads = functional.layer_norm(hidden[:, :64], (64,)).view(1, 37, 4, 16).transpose(1, 2)
    attended = functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
    loss = functional.cross_entropy(hidden + attended.sum(), torch.arange(37) % 65)
    loss.backward()
    found += [hidden, heads, attended, torch.softmax(hidden, -1), torch.logsumexp(hidden, -1), loss, x.grad, w.grad]
    narrow = [tensor.detach().bfloat16() for tensor in (x, w)]
    found += [functional.linear(*narrow), narrow[0].sum(), functional.gelu(narrow[0]), torch.softmax(narrow[1], -1)]
    torch.manual_seed(1)
    found += [torch.randn(100), torch.rand(100), torch.bernoulli(torch.full((100,), 0.3))]
    parameter = torch.nn.Parameter(numbers(1001, seed=3))
    optimizer = torch.optim.AdamW([parameter], lr=0.01, fused=True)
    parameter.grad = numbers(1001, seed=4)
    optimizer.step()
    return [*found, parameter]


digest = hashlib.sha256()
for result in results():
    digest.update(result.detach().float().contiguous().numpy().tobytes())
print(digest.hexdigest()[:16])

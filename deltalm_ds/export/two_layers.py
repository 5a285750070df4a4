"""An interleaved block as two ordinary decoder layers, for engines that know no other kind [facts: CTranslate2].

The block (self-attention, FFN 1, cross-attention, FFN 2) becomes two layers of self-attention, cross-attention, FFN:

    layer A: the self-attention,           a no-op cross-attention, FFN 1
    layer B: a no-op self-attention,       the cross-attention,     FFN 2

A no-op attention has zero weights, so its sub-layer is LayerNorm(x + 0): one LayerNorm too many. It is cancelled by
splitting the LayerNorm before it in two: the first normalises and scales by a small g, the second restores gamma
and beta. The two together are exactly one LayerNorm with epsilon ε · (ε/g²) / (1 + ε/g²), 0.994 ε at g = 2⁻¹².
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from deltalm_ds.model.layers import PostNorm

SPLIT_GAIN = 2.0**-12  # representable in float16, and small enough to leave 99.4 % of epsilon


class NormWeights(NamedTuple):
    """Of one LayerNorm; each [M]."""

    gamma: Tensor
    beta: Tensor


def split_norm(norm: PostNorm) -> tuple[NormWeights, NormWeights]:
    """The two LayerNorms that together are `norm`."""
    gamma, beta = norm.weight.detach(), norm.bias.detach()
    first = NormWeights(torch.full_like(gamma, SPLIT_GAIN), torch.zeros_like(beta))
    return first, NormWeights(gamma * math.sqrt(1.0 + norm.eps / SPLIT_GAIN**2), beta.clone())

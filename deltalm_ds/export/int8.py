"""Weights in int8 that every processor multiplies exactly.

Processors without VNNI (AVX2, older AVX512) multiply uint8 activations by int8 weights with an instruction that adds
two products in 16 bits and saturates there: with weights up to 127, 255 · 127 · 2 is twice what fits, and sums come out
wrong without a word. Weights up to 64 cannot saturate, 255 · 64 · 2 = 32,640 <= 32,767, whichever two are added; they
cost one bit, which is little beside the rounding of the activations.
"""

import torch
from torch import Tensor

LARGEST_WEIGHT = 64
LEAST_LARGEST = 1e-12  # of a row, for the scale of a row of zeros


def int8_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """[out, in] -> int8 [out, in], at most `LARGEST_WEIGHT`, and float32 scales [out] of which it is the multiple."""
    scales = matrix.float().abs().amax(dim=1).clamp(min=LEAST_LARGEST) / LARGEST_WEIGHT
    return (matrix / scales[:, None]).round().to(torch.int8), scales

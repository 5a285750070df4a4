"""LayerNorm, alone and behind the dropout and residual connection of a post-LN sub-layer."""

import torch.nn.functional as F
from torch import Tensor

from deltalm_ds.kernels.dropout import dropout


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis. x: [..., M]; weight, bias: [M]."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def dropout_add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout_p: float = 0.0
) -> Tensor:
    """LayerNorm(residual + dropout(x)). x, residual: [T, M]; weight, bias: [M]; dropout_p 0 leaves x whole."""
    return layer_norm(residual + dropout(x, dropout_p), weight, bias, eps)

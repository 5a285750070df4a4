"""LayerNorm, alone and behind the dropout and residual connection of a post-LN sub-layer.

Legend: T tokens, M model dim.
"""

import torch.nn.functional as F
from torch import Tensor

from deltalm_ds.kernels import reference
from deltalm_ds.kernels.dispatch import Op, implementation
from deltalm_ds.kernels.dropout import dropout
from deltalm_ds.kernels.dropout_mask import draw_seed


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis.

    Args:
        x: [..., M], any floating dtype.
        weight: [M].
        bias: [M].
        eps: added to the variance.

    Returns:
        The shape and dtype of x.
    """
    return implementation(OP, x)(x, None, weight, bias, eps, 0.0)


def dropout_add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout_p: float = 0.0
) -> Tensor:
    """LayerNorm(residual + dropout(x)).

    Args:
        x: [T, M], any floating dtype.
        residual: [T, M].
        weight: [M].
        bias: [M].
        eps: added to the variance.
        dropout_p: rate of dropout on x, drawn from torch's generator; 0 leaves x whole and draws nothing.

    Returns:
        [T, M], the dtype of x.
    """
    return implementation(OP, x)(x, residual, weight, bias, eps, dropout_p)


def _torch(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dropout_p: float) -> Tensor:
    return F.layer_norm(_sum(x, residual, dropout_p), weight.shape, weight, bias, eps)


def _apex(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dropout_p: float) -> Tensor:
    from apex.normalization.fused_layer_norm import fused_layer_norm_affine

    return fused_layer_norm_affine(_sum(x, residual, dropout_p), weight, bias, weight.shape, eps)


def _sum(x: Tensor, residual: Tensor | None, dropout_p: float) -> Tensor:
    """residual + dropout(x); x where there is no residual."""
    return x if residual is None else residual + dropout(x, dropout_p)


def _triton(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dropout_p: float) -> Tensor:
    from deltalm_ds.kernels.fused.layer_norm import dropout_add_layer_norm as fused

    return fused(x, residual, weight, bias, eps, dropout_p, draw_seed(dropout_p, x.device))


def _reference(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dropout_p: float
) -> Tensor:
    if residual is None:
        return reference.layer_norm(x, weight, bias, eps)
    seed = draw_seed(dropout_p, x.device)
    return reference.dropout_add_layer_norm(x, residual, weight, bias, eps, dropout_p, seed)


OP = Op(torch=_torch, triton=_triton, reference=_reference, apex=_apex)

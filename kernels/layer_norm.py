"""LayerNorm, alone and behind the dropout and residual connection of a post-LN sub-layer."""

import torch.nn.functional as F
from torch import Tensor

from deltalm_ds.kernels import reference
from deltalm_ds.kernels.dispatch import backend_for
from deltalm_ds.kernels.dropout import dropout
from deltalm_ds.kernels.dropout_mask import draw_seed


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis. x: [..., M]; weight, bias: [M]."""
    backend = backend_for("layer_norm", x.device, x.dtype)
    if backend == "triton":
        from deltalm_ds.kernels.fused.layer_norm import dropout_add_layer_norm as fused

        return fused(x, None, weight, bias, eps)
    if backend == "reference":
        return reference.layer_norm(x, weight, bias, eps)
    if backend == "apex":
        return _apex_layer_norm(x, weight, bias, eps)
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def dropout_add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout_p: float = 0.0
) -> Tensor:
    """LayerNorm(residual + dropout(x)). x, residual: [T, M]; weight, bias: [M]; dropout_p 0 leaves x whole."""
    backend = backend_for("layer_norm", x.device, x.dtype)
    if backend == "triton":
        from deltalm_ds.kernels.fused.layer_norm import dropout_add_layer_norm as fused

        return fused(x, residual, weight, bias, eps, dropout_p, draw_seed(dropout_p, x.device))
    if backend == "reference":
        seed = draw_seed(dropout_p, x.device)
        return reference.dropout_add_layer_norm(x, residual, weight, bias, eps, dropout_p, seed)
    total = residual + dropout(x, dropout_p)
    if backend == "apex":
        return _apex_layer_norm(total, weight, bias, eps)
    return F.layer_norm(total, weight.shape, weight, bias, eps)


def _apex_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    from apex.normalization.fused_layer_norm import fused_layer_norm_affine

    return fused_layer_norm_affine(x, weight, bias, weight.shape, eps)

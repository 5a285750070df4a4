"""The position-wise feed-forward sub-layer's two matrix products with exact GELU between them."""

import torch.nn.functional as F
from torch import Tensor

from deltalm_ds.kernels import reference
from deltalm_ds.kernels.dispatch import backend_for
from deltalm_ds.kernels.dropout import dropout
from deltalm_ds.kernels.dropout_mask import draw_seed


def feed_forward(
    x: Tensor,
    weight_in: Tensor,
    bias_in: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
    dropout_p: float = 0.0,
) -> Tensor:
    """dropout(GELU(x W_inᵀ + b_in)) W_outᵀ + b_out.

    x: [T, M]; weight_in: [F, M]; bias_in: [F]; weight_out: [M, F]; bias_out: [M]. Returns [T, M].
    """
    backend = backend_for("feed_forward", x.device, x.dtype)
    if backend == "torch":
        hidden = F.gelu(F.linear(x, weight_in, bias_in))  # [T, F], erf form [FACTS §1]
        return F.linear(dropout(hidden, dropout_p), weight_out, bias_out)
    seed = draw_seed(dropout_p, x.device)
    if backend == "reference":
        return reference.feed_forward(x, weight_in, bias_in, weight_out, bias_out, dropout_p, seed)
    from deltalm_ds.kernels.fused.feed_forward import feed_forward as fused

    return fused(x, weight_in, bias_in, weight_out, bias_out, dropout_p, seed)

"""The position-wise feed-forward sub-layer's two matrix products with exact GELU between them.

Legend: T tokens, M model dim, F ffn dim.
"""

from torch import Tensor

from deltalm_ds.kernels import reference
from deltalm_ds.kernels.dispatch import Op, implementation
from deltalm_ds.kernels.dropout import dropout
from deltalm_ds.kernels.dropout_mask import draw_seed
from deltalm_ds.kernels.linear import linear, linear_gelu


def feed_forward(
    x: Tensor,
    weight_in: Tensor,
    bias_in: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
    dropout_p: float = 0.0,
) -> Tensor:
    """dropout(GELU(x W_inᵀ + b_in)) W_outᵀ + b_out.

    Args:
        x: [T, M], any floating dtype, which all weights share.
        weight_in: [F, M].
        bias_in: [F].
        weight_out: [M, F].
        bias_out: [M].
        dropout_p: rate of dropout on the activation, drawn from torch's generator.

    Returns:
        [T, M], the dtype of x.
    """
    return implementation(OP, x)(x, weight_in, bias_in, weight_out, bias_out, dropout_p)


def _torch(
    x: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, bias_out: Tensor, dropout_p: float
) -> Tensor:
    hidden = linear_gelu(x, weight_in, bias_in)  # [T, F]; in the erf form, as fairseq
    return linear(dropout(hidden, dropout_p), weight_out, bias_out)


def _triton(
    x: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, bias_out: Tensor, dropout_p: float
) -> Tensor:
    from deltalm_ds.kernels.fused.feed_forward import feed_forward as fused

    return fused(x, weight_in, bias_in, weight_out, bias_out, dropout_p, draw_seed(dropout_p, x.device))


def _reference(
    x: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, bias_out: Tensor, dropout_p: float
) -> Tensor:
    seed = draw_seed(dropout_p, x.device)
    return reference.feed_forward(x, weight_in, bias_in, weight_out, bias_out, dropout_p, seed)


OP = Op(torch=_torch, triton=_triton, reference=_reference)

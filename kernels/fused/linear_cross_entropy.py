"""The element-wise half of linear cross-entropy: losses of a chunk of logits, and their gradient in place.

Legend: C tokens of a chunk, V vocabulary; a row of logits has V columns and then padding.
"""

import triton
import triton.language as tl
from torch import Tensor

from deltalm_ds.kernels.fused.sizes import next_power_of_2

BLOCK = 4096  # logits of a row that a program holds at once: eight a thread of its 16 warps, 16 bytes in 16 bits
LOWEST = tl.constexpr(-1e30)  # below any logit, and yet a difference of two such is no nan


@triton.jit
def _with(highest, total, logits):
    """The highest logit of each group, and Σ exp of what lies below it, with more logits [groups, VECTOR] counted."""
    higher = tl.maximum(highest, tl.max(logits, 1))
    total = total * tl.exp(highest - higher) + tl.sum(tl.exp(logits - higher[:, None]), 1)
    return higher, total


@triton.jit
def _gradient(shifted, is_label, scale, target_weight, smoothing_each):
    """p - q of logits minus the highest; all three factors are 0 for an ignored token."""
    grad = tl.exp(shifted) * scale - smoothing_each
    return tl.where(is_label, grad - target_weight, grad)


@triton.jit
def _kernel(
    # read and then overwritten by their gradient: logits [C, columns]. read: labels [C] int64
    logits_ptr, labels_ptr,
    # written: token_loss, token_nll [C] float32
    token_loss_ptr, token_nll_ptr,
    # elements from row to row of logits; columns with the padding, and V
    stride_row, num_columns, vocabulary_size,
    # of the target distribution: what the label has beside the second, and what every token has
    target_weight, smoothing_each,
    # VECTOR: what a thread loads at once, a group
    IGNORED_LABEL: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Loss and nll of each token, and d loss / d logits in place of the logits.

    Grid: (C,). A program owns a row and walks over it twice, BLOCK columns at a time: for maximum and sum, then for the
    gradient. Padding columns, from vocabulary_size on, take no part and get gradient 0; only the last blocks mask them.
    """
    row = tl.program_id(0)
    row_ptr = logits_ptr + row.to(tl.int64) * stride_row
    lane = tl.arange(0, BLOCK // VECTOR)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    label = tl.load(labels_ptr + row).to(tl.int32)
    is_counted = label != IGNORED_LABEL
    label_logit = tl.load(row_ptr + label, mask=is_counted, other=0.0).to(tl.float32)  # before it is overwritten
    highest = tl.full([BLOCK // VECTOR], LOWEST, tl.float32)  # of a group: no exchange between threads in the loop
    total = tl.zeros([BLOCK // VECTOR], tl.float32)
    num_whole = vocabulary_size // BLOCK * BLOCK
    for start in range(0, num_whole, BLOCK):
        highest, total = _with(highest, total, tl.load(row_ptr + start + lane).to(tl.float32))
    columns = num_whole + lane
    # masks end with the padding, so that loads are 16 bytes wide
    logits = tl.load(row_ptr + columns, mask=columns < num_columns, other=LOWEST).to(tl.float32)
    highest, total = _with(highest, total, tl.where(columns < vocabulary_size, logits, LOWEST))
    row_highest = tl.max(highest, 0)
    row_total = tl.sum(total * tl.exp(highest - row_highest), 0)  # groups that saw no logit count exp(LOWEST) = 0

    counted = tl.where(is_counted, 1.0, 0.0)
    scale, of_label, of_each = counted / row_total, target_weight * counted, smoothing_each * counted
    logit_sum = tl.zeros([BLOCK // VECTOR, VECTOR], tl.float32)
    for start in range(0, num_whole, BLOCK):
        shifted = tl.load(row_ptr + start + lane).to(tl.float32) - row_highest
        logit_sum += shifted
        grad = _gradient(shifted, lane == label - start, scale, of_label, of_each)
        tl.store(row_ptr + start + lane, grad.to(logits_ptr.dtype.element_ty))
    for start in range(num_whole, num_columns, BLOCK):
        columns = start + lane
        is_real = columns < vocabulary_size
        shifted = tl.load(row_ptr + columns, mask=columns < num_columns, other=0.0).to(tl.float32) - row_highest
        logit_sum += tl.where(is_real, shifted, 0.0)
        grad = tl.where(is_real, _gradient(shifted, columns == label, scale, of_label, of_each), 0.0)
        tl.store(row_ptr + columns, grad.to(logits_ptr.dtype.element_ty), mask=columns < num_columns)

    log_total = tl.log(row_total)
    nll = log_total + (row_highest - label_logit)
    smoothing = vocabulary_size * log_total - tl.sum(tl.sum(logit_sum, 1), 0)
    tl.store(token_nll_ptr + row, nll * counted)
    tl.store(token_loss_ptr + row, (target_weight * nll + smoothing_each * smoothing) * counted)


def losses_and_grad_(
    logits: Tensor,
    labels: Tensor,
    vocabulary_size: int,
    target_weight: float,
    smoothing_each: float,
    ignored_label: int,
    token_loss: Tensor,
    token_nll: Tensor,
) -> None:
    """Fill token_loss and token_nll, and turn logits in place into d loss / d logits.

    Args:
        logits: [C, columns ≥ V], of which a row is contiguous.
        labels: [C] int64.
        vocabulary_size: V.
        target_weight: what the target distribution gives to the label beside `smoothing_each`.
        smoothing_each: what it gives to every token.
        ignored_label: the label of tokens without loss and gradient.
        token_loss: [C] float32.
        token_nll: [C] float32.
    """
    num_rows, num_columns = logits.shape
    vector = 16 // logits.element_size()
    _kernel[(num_rows,)](
        logits, labels, token_loss, token_nll,
        logits.stride(0), num_columns, vocabulary_size, target_weight, smoothing_each,
        IGNORED_LABEL=ignored_label, BLOCK=max(vector, min(BLOCK, next_power_of_2(num_columns))),
        VECTOR=vector, num_warps=16,
    )  # fmt: skip

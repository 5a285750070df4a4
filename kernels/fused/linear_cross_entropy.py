"""The element-wise half of linear cross-entropy: losses of a chunk of logits, and their gradient in place.

Legend: C tokens of a chunk, V vocabulary; a row of logits has V columns and then padding.
"""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # logits of a row that a program holds at once: eight a thread of its 16 warps, 16 bytes in 16 bits
LOWEST = tl.constexpr(-1e30)  # below any logit, and yet a difference of two such is no nan


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
    IGNORED_LABEL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss and nll of each token, and d loss / d logits in place of the logits.

    Grid: (C,). A program owns a row and walks over it twice, BLOCK columns at a time: for maximum, sum and the label's
    logit, then for the gradient. Padding columns, from vocabulary_size on, take no part and get gradient 0.
    """
    row = tl.program_id(0)
    row_ptr = logits_ptr + row.to(tl.int64) * stride_row
    lane = tl.arange(0, BLOCK)
    highest = tl.full([BLOCK], LOWEST, tl.float32)  # of each lane: no exchange between threads in the loop
    total = tl.zeros([BLOCK], tl.float32)
    at_label = tl.zeros([BLOCK], tl.float32)  # found here, as below another thread may have overwritten it
    label = tl.load(labels_ptr + row)
    for start in range(0, vocabulary_size, BLOCK):
        columns = start + lane
        # masks end with the padding, so that loads are 16 bytes wide
        logits = tl.load(row_ptr + columns, mask=columns < num_columns, other=LOWEST).to(tl.float32)
        logits = tl.where(columns < vocabulary_size, logits, LOWEST)
        higher = tl.maximum(highest, logits)
        total = total * tl.exp(highest - higher) + tl.exp(logits - higher)
        highest = higher
        at_label += tl.where(columns == label, logits, 0.0)
    row_highest = tl.max(highest, 0)
    row_total = tl.sum(total * tl.exp(highest - row_highest), 0)  # lanes that saw no logit count exp(LOWEST) = 0

    counted = tl.where(label == IGNORED_LABEL, 0.0, 1.0)
    logit_sum = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_columns, BLOCK):
        columns = start + lane
        real = columns < vocabulary_size
        shifted = tl.load(row_ptr + columns, mask=columns < num_columns, other=0.0).to(tl.float32) - row_highest
        logit_sum += tl.where(real, shifted, 0.0)
        grad = tl.exp(shifted) / row_total - smoothing_each
        grad = tl.where(columns == label, grad - target_weight, grad) * counted
        tl.store(row_ptr + columns, tl.where(real, grad, 0.0), mask=columns < num_columns)

    log_total = tl.log(row_total)
    nll = log_total + (row_highest - tl.sum(at_label, 0))
    smoothing = vocabulary_size * log_total - tl.sum(logit_sum, 0)
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
    _kernel[(num_rows,)](
        logits, labels, token_loss, token_nll,
        logits.stride(0), num_columns, vocabulary_size, target_weight, smoothing_each,
        IGNORED_LABEL=ignored_label, BLOCK=min(BLOCK, triton.next_power_of_2(num_columns)), num_warps=16,
    )  # fmt: skip

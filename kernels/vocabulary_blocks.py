"""The loss of few tokens on a CPU: their logits lie in the weight's gradient, which is not written yet.

With T ≤ M, the T · V logits are fewer elements than the weight's gradient [V, M]. They fill its end, one block of the
vocabulary behind the other, each a matrix [T, block]. The gradient is written from its start, a block of rows at a
time: as T ≤ M, rows up to the end of block j never reach the logits of block j + 1. So only one block is held twice.

Legend: T tokens, M model dim, V vocabulary, R rows of a block.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from deltalm_ds.kernels.linear import input_gradient, linear

BLOCK_ROWS = 20_480  # of the weight: products as fast as with all rows, and of the class that those are of
PART_LOGITS = 1 << 20  # that the element-wise part has at a time: 4 MB in float32, which stay in the cache


def losses_and_gradients_(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    target_weight: float,
    each: float,
    token_loss: Tensor,
    token_nll: Tensor,
    grad_hidden: Tensor | None,
    grad_weight: Tensor,
) -> None:
    """Fill the losses and gradients of `linear_cross_entropy`.

    A block's softmax is made while its logits are in the cache; when the whole vocabulary's sum is known, a factor a
    token makes probabilities of it.

    Args:
        hidden: [T, M], T ≤ M.
        weight: [V, M], the same dtype.
        labels: [T] int64 in [0, V), or negative: ignored.
        target_weight: what the target distribution gives to the label, beside `each`.
        each: what it gives to every token of the vocabulary.
        token_loss: [T], float32 at least.
        token_nll: [T], the same dtype.
        grad_hidden: [T, M]; None if it is not needed.
        grad_weight: [V, M], contiguous, the dtype of the weight.
    """
    label_logit, logit_sum = torch.zeros_like(token_loss), torch.zeros_like(token_loss)
    log_totals = []
    for rows, block in _blocks(len(weight), len(hidden), grad_weight):
        block.copy_(linear(hidden, weight[rows]))
        tokens, columns = _labels_inside(labels, rows)
        label_logit[tokens] = block[tokens, columns].to(label_logit.dtype)
        log_totals.append(_softmax_(block, logit_sum))
    log_total = torch.stack(log_totals).logsumexp(0)
    ignored = (labels < 0).nonzero().squeeze(1)
    token_nll.copy_(log_total - label_logit).index_fill_(0, ignored, 0.0)
    smoothing_loss = each * (len(weight) * log_total - logit_sum)
    token_loss.copy_(target_weight * token_nll + smoothing_loss).index_fill_(0, ignored, 0.0)

    grad_sum = None if grad_hidden is None else torch.zeros_like(grad_hidden, dtype=token_loss.dtype)
    for (rows, block), block_total in zip(_blocks(len(weight), len(hidden), grad_weight), log_totals, strict=True):
        grad = block * (block_total - log_total).exp()[:, None]  # [T, R] float32 at least
        tokens, columns = _labels_inside(labels, rows)
        grad.sub_(each)[tokens, columns] -= target_weight
        grad_logits = grad.index_fill_(0, ignored, 0.0).to(weight.dtype)
        torch.mm(grad_logits.T, hidden, out=grad_weight[rows])
        if grad_sum is not None:
            grad_sum += input_gradient(grad_logits, weight[rows])
    if grad_hidden is not None and grad_sum is not None:
        grad_hidden.copy_(grad_sum)


def _blocks(num_rows: int, num_tokens: int, grad_weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the weight, and where their logits [T, R] lie."""
    room = grad_weight.view(-1)[grad_weight.numel() - num_rows * num_tokens :]
    for start in range(0, num_rows, BLOCK_ROWS):
        end = min(start + BLOCK_ROWS, num_rows)
        yield slice(start, end), room[start * num_tokens : end * num_tokens].view(num_tokens, end - start)


def _labels_inside(labels: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """The tokens whose labels are among the rows, and their columns in the block."""
    tokens = ((labels >= rows.start) & (labels < rows.stop)).nonzero().squeeze(1)
    return tokens, labels[tokens] - rows.start


def _softmax_(block: Tensor, logit_sum: Tensor) -> Tensor:
    """Turn logits [T, R] into their softmax, add their sums to logit_sum [T], and give their log-sum-exp [T]."""
    log_total = torch.empty_like(logit_sum)
    num_tokens = max(1, PART_LOGITS // block.shape[1])
    for part in (slice(start, start + num_tokens) for start in range(0, len(block), num_tokens)):
        x = block[part].to(logit_sum.dtype)
        logit_sum[part] += x.sum(1)
        highest = x.amax(1)
        x = x.softmax(1)
        log_total[part] = highest - x.amax(1).log()  # the largest probability is exp(0) / total
        block[part] = x
    return log_total

"""Output projection and label-smoothed cross-entropy in one op: the logits of all tokens never exist at once.

Legend: T tokens, C tokens of a chunk, M model dim, V vocabulary (the weight may have padding rows behind the V real
ones).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from deltalm_ds.kernels import reference, vocabulary_blocks
from deltalm_ds.kernels.custom_op import CustomOp
from deltalm_ds.kernels.dispatch import Op, implementation
from deltalm_ds.kernels.linear import input_gradient, linear
from deltalm_ds.kernels.reference import IGNORED_LABEL
from deltalm_ds.kernels.torch_internals import adds_products_in_float32, graph_is_kept

CHUNK_TOKENS = 8192  # enough for full GEMM speed, and to touch the weight's gradient seldom
CHUNK_BYTES = 1 << 31  # of a chunk's logits, which are beside the weight's gradient the most that the op holds
CPU_CHUNK_TOKENS = 768  # a CPU's GEMMs are as fast with fewer rows, and its weights are often float32
CPU_BLOCK_LOGITS = 1 << 20  # that the element-wise part has at a time: 4 MB in float32, which stay in the cache
CPU_BLOCK_ROWS = 8192  # of the weight's gradient that one product makes, so that its temporary stays in the cache


class CrossEntropy(NamedTuple):
    """loss: scalar, the sum of smoothed token losses in nats; token_loss, token_nll: [T], without gradient."""

    loss: Tensor
    token_loss: Tensor
    token_nll: Tensor


def chunk_tokens(num_rows: int, bytes_each: int, on_cpu: bool) -> int:
    """Of how many tokens the logits exist at once; on a GPU a power of two.

    num_rows: of the weight. bytes_each: of a logit.
    """
    if on_cpu:
        return CPU_CHUNK_TOKENS
    fitting = max(1, CHUNK_BYTES // (num_rows * bytes_each))
    return min(CHUNK_TOKENS, 1 << (fitting.bit_length() - 1))


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, vocabulary_size: int, label_smoothing: float = 0.0
) -> CrossEntropy:
    """Label-smoothed cross-entropy of softmax(hidden · weightᵀ) in fairseq's definition.

    With e = label_smoothing / (V - 1): loss = (1 - label_smoothing - e) · nll + e · Σ_v -log p_v.

    Args:
        hidden: [T, M], any floating dtype.
        weight: [rows ≥ V, M], the same dtype; rows from V on are padding and take no part.
        labels: [T] int64 in [0, V), or IGNORED_LABEL.
        vocabulary_size: V.
        label_smoothing: what the target distribution takes from the label, from 0 to 1.
    """
    return implementation(OP, hidden)(hidden, weight, labels, vocabulary_size, label_smoothing)


def _torch(
    hidden: Tensor, weight: Tensor, labels: Tensor, vocabulary_size: int, label_smoothing: float
) -> CrossEntropy:
    return _in_chunks(hidden, weight, labels, vocabulary_size, label_smoothing, is_fused=False)


def _triton(
    hidden: Tensor, weight: Tensor, labels: Tensor, vocabulary_size: int, label_smoothing: float
) -> CrossEntropy:
    return _in_chunks(hidden, weight, labels, vocabulary_size, label_smoothing, is_fused=True)


def _reference(
    hidden: Tensor, weight: Tensor, labels: Tensor, vocabulary_size: int, label_smoothing: float
) -> CrossEntropy:
    return CrossEntropy(*reference.linear_cross_entropy(hidden, weight, labels, vocabulary_size, label_smoothing))


OP = Op(torch=_torch, triton=_triton, reference=_reference)


def _in_chunks(
    hidden: Tensor, weight: Tensor, labels: Tensor, vocabulary_size: int, label_smoothing: float, is_fused: bool
) -> CrossEntropy:
    needs_hidden, needs_weight = (torch.is_grad_enabled() and x.requires_grad for x in (hidden, weight))
    loss, token_loss, token_nll, _, _ = _FORWARD(
        hidden, weight, labels, vocabulary_size, label_smoothing, is_fused, needs_hidden, needs_weight
    )
    return CrossEntropy(loss, token_loss.detach(), token_nll.detach())


# PyTorch reads a custom op's schema from its annotations; its shape function must have the same parameters.
def _forward(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    vocabulary_size: int,
    label_smoothing: float,
    is_fused: bool,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, token losses, token nll, and the gradients of hidden and weight (empty where not needed).

    The gradients are made here, chunk by chunk, while the chunk's logits are at hand.
    """
    token_loss, token_nll, grad_hidden, grad_weight = _outputs(hidden, weight, needs_hidden, needs_weight)
    if not is_fused and needs_weight and _are_few(hidden):
        grad_weight[vocabulary_size:].zero_()
        used = slice(_num_labelled(labels))
        for behind in (token_loss, token_nll, grad_hidden):
            behind[used.stop :].zero_()
        vocabulary_blocks.losses_and_gradients_(
            hidden[used],
            weight[:vocabulary_size],
            labels[used],
            *smoothing(label_smoothing, vocabulary_size),
            token_loss[used],
            token_nll[used],
            grad_hidden[used] if needs_hidden else None,
            grad_weight[:vocabulary_size],
        )
        return token_loss.sum(), token_loss, token_nll, grad_hidden, grad_weight
    if is_fused:  # the kernel masks padding columns by itself: whole rows keep its loads aligned
        used_weight, losses_and_grad = weight, _losses_and_grad_fused
    else:
        used_weight, losses_and_grad = weight[:vocabulary_size], _losses_and_grad
    num_tokens = _chunk_tokens(weight)
    grad_weight[len(used_weight) if len(hidden) else 0 :].zero_()  # the other rows are written by the first chunk
    for start in range(0, len(hidden), num_tokens):
        chunk = slice(start, start + num_tokens)
        grad_logits = losses_and_grad(
            linear(hidden[chunk], used_weight),
            labels[chunk],
            vocabulary_size,
            label_smoothing,
            token_loss[chunk],
            token_nll[chunk],
        )
        if needs_hidden:
            input_gradient(grad_logits, used_weight, out=grad_hidden[chunk])
        if needs_weight:
            add_product_(grad_weight[: len(used_weight)], grad_logits.T, hidden[chunk], is_first=start == 0)
        del grad_logits  # before the next chunk's are made
    return token_loss.sum(), token_loss, token_nll, grad_hidden, grad_weight


def _forward_shapes(hidden, weight, labels, vocabulary_size, label_smoothing, is_fused, needs_hidden, needs_weight):
    token_loss, *others = _outputs(hidden, weight, needs_hidden, needs_weight)
    return token_loss.new_empty(()), token_loss, *others


def _outputs(hidden: Tensor, weight: Tensor, needs_hidden: bool, needs_weight: bool) -> tuple[Tensor, ...]:
    """Token losses, token nll and the two gradients, not filled yet.

    Losses, and sums over several chunks, are float32 even where the weight is 16 bits wide.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    token_loss = hidden.new_empty(len(hidden), dtype=wide)
    grad_hidden = torch.empty_like(hidden) if needs_hidden else hidden.new_empty(0)
    dtype = wide if len(hidden) > _chunk_tokens(weight) else weight.dtype
    grad_weight = torch.empty_like(weight, dtype=dtype) if needs_weight else weight.new_empty(0)
    return token_loss, torch.empty_like(token_loss), grad_hidden, grad_weight


def _chunk_tokens(weight: Tensor) -> int:
    return chunk_tokens(len(weight), weight.element_size(), weight.device.type == "cpu")


def _are_few(hidden: Tensor) -> bool:
    """Whether the tokens are one chunk of a CPU whose logits find room in the weight's gradient."""
    return hidden.device.type == "cpu" and 0 < len(hidden) <= min(CPU_CHUNK_TOKENS, hidden.shape[1])


def _num_labelled(labels: Tensor) -> int:
    """Tokens up to the last one with a label, to a multiple of 8; what pads a batch at its end has none."""
    with_label = (labels != IGNORED_LABEL).nonzero()
    return min(len(labels), (int(with_label[-1]) // 8 + 1) * 8) if len(with_label) else 0


def add_product_(total: Tensor, a: Tensor, b: Tensor, is_first: bool) -> None:
    """total += a b, or = a b if it is the first; without a temporary of that size where there is a product for it.

    Args:
        total: [V, M], the dtype of a and b, or float32.
        a: [V, C].
        b: [C, M].
        is_first: whether what is in total does not count.
    """
    beta = 0 if is_first else 1  # 0 does not read total
    if total.dtype == a.dtype:
        total.addmm_(a, b, beta=beta)
    elif adds_products_in_float32(total.device, a.dtype):
        torch.addmm(total, a, b, beta=beta, out_dtype=total.dtype, out=total)
    else:
        num_rows = CPU_BLOCK_ROWS if total.device.type == "cpu" else len(total)
        for rows in (slice(start, start + num_rows) for start in range(0, len(total), num_rows)):
            if is_first:
                total[rows] = a[rows] @ b
            else:
                total[rows] += a[rows] @ b


def _setup_context(ctx, inputs, output):
    *_, grad_hidden, grad_weight = output
    _, weight, *_, ctx.needs_hidden, ctx.needs_weight = inputs
    ctx.save_for_backward(grad_hidden, grad_weight)
    ctx.weight_dtype = weight.dtype


def _gradients(ctx, grad_loss, *_):
    if grad_loss is None:
        return (None,) * 8
    grad_hidden, grad_weight = ctx.saved_tensors
    grad_hidden = scaled(grad_hidden, grad_loss, grad_hidden.dtype) if ctx.needs_hidden else None
    grad_weight = scaled(grad_weight, grad_loss, ctx.weight_dtype) if ctx.needs_weight else None
    return grad_hidden, grad_weight, None, None, None, None, None, None


def scaled(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """x, a gradient that the forward made, times factor, a scalar tensor, in `dtype`.

    x is overwritten, as the weight is often the largest tensor there is; but not if the graph is to be used once more,
    nor under a tracer, whose tensors are of other classes. On a GPU one pass reads, multiplies in float32 and rounds,
    for which the factor must have an axis; a CPU would make temporaries of mixed types.
    """
    factor = factor if x.device.type == "cpu" else factor.view(1)
    if type(x) is not Tensor or graph_is_kept():
        return (x * factor).to(dtype)
    if x.device.type == "cpu":
        return x.mul_(factor).to(dtype)
    return torch.mul(x, factor, out=x if x.dtype == dtype else torch.empty_like(x, dtype=dtype))


_FORWARD = CustomOp("linear_cross_entropy", _forward, _forward_shapes, _setup_context, _gradients)


def smoothing(label_smoothing: float, vocabulary_size: int) -> tuple[float, float]:
    """What the target distribution gives to the label (beside the second), and to every token."""
    each = label_smoothing / (vocabulary_size - 1)
    return 1.0 - label_smoothing - each, each


def _losses_and_grad_fused(
    logits: Tensor, labels: Tensor, vocabulary_size: int, label_smoothing: float, token_loss: Tensor, token_nll: Tensor
) -> Tensor:
    """See `_losses_and_grad`; logits [C, rows of the weight] of the weight's dtype become the gradient in place."""
    from deltalm_ds.kernels.fused.linear_cross_entropy import losses_and_grad_

    target_weight, each = smoothing(label_smoothing, vocabulary_size)
    losses_and_grad_(logits, labels, vocabulary_size, target_weight, each, IGNORED_LABEL, token_loss, token_nll)
    return logits


def _losses_and_grad(
    logits: Tensor, labels: Tensor, vocabulary_size: int, label_smoothing: float, token_loss: Tensor, token_nll: Tensor
) -> Tensor:
    """Fill token_loss and token_nll [C], and turn logits [C, V] in place into d loss / d logits.

    The gradient is p - q, q the smoothed target distribution. A few rows at a time, in float32 at least: they stay in
    the processor's cache through all passes, which is four times as fast as one pass after the other over all.
    """
    target_weight, each = smoothing(label_smoothing, vocabulary_size)
    label_of_row = labels.clamp(min=0)[:, None]
    num_rows = max(1, CPU_BLOCK_LOGITS // vocabulary_size)
    for rows in (slice(start, start + num_rows) for start in range(0, len(logits), num_rows)):
        part, label = logits[rows], label_of_row[rows]
        x = part.to(token_loss.dtype)
        label_logit = x.gather(1, label)
        logit_sum = x.sum(dim=1, keepdim=True) if label_smoothing else 0.0
        highest = x.amax(dim=1, keepdim=True)
        x = x.softmax(dim=1)
        log_total = highest - x.amax(dim=1, keepdim=True).log()  # the largest probability is exp(0) / total
        nll = log_total - label_logit
        loss = target_weight * nll + each * (vocabulary_size * log_total - logit_sum)
        token_nll[rows] = nll.squeeze(1)
        token_loss[rows] = loss.squeeze(1)
        x -= each
        part.copy_(x.scatter_add_(1, label, torch.full_like(nll, -target_weight)))
    ignored = (labels == IGNORED_LABEL).nonzero().squeeze(1)
    for result in (logits, token_loss, token_nll):
        result.index_fill_(0, ignored, 0.0)
    return logits

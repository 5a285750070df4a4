"""R-Drop: two passes with dropout masks of their own, and the divergence of what they predict as a part of the loss.

Legend: T target tokens, C tokens of a chunk, M model dim, V vocabulary; a 2 before them is of the two passes.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deltalm_ds.errors import InputError
from deltalm_ds.kernels.linear import input_gradient, linear
from deltalm_ds.kernels.linear_cross_entropy import (
    CPU_BLOCK_LOGITS,
    IGNORED_LABEL,
    CrossEntropy,
    add_product_,
    chunk_tokens,
    scaled,
    smoothing,
)
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.packing import PackedSequences, Places

GPU_BLOCK_LOGITS = 1 << 24  # that the element-wise part has at a time: enough to keep a GPU busy
LOGIT_BYTES = 16  # what that part holds of a logit at most: four numbers in float32


def check_r_drop(alpha: float, config: DeltaLMConfig) -> None:
    """InputError where two passes of a model could not differ."""
    if alpha and not (config.dropout or config.attention_dropout or config.activation_dropout):
        raise InputError(
            "training.r_drop: the model has no dropout, so its two passes would be the same: set model.dropout, or "
            "leave out r_drop."
        )


def r_drop_loss_bytes(config: DeltaLMConfig, weight_bytes: int, num_target_tokens: int, on_cpu: bool) -> int:
    """The most that the loss holds of a micro-batch.

    That is a chunk of both passes' logits, what is made of some of them, and the table's gradient, summed up in float32
    and rounded beside it.

    Args:
        config: of the model.
        weight_bytes: of an element of its weights.
        num_target_tokens: of the largest micro-batch, in one pass.
        on_cpu: whether a CPU computes.
    """
    vocabulary_size = config.vocabulary_size
    tokens = min(num_target_tokens, chunk_tokens(vocabulary_size, 2 * weight_bytes, on_cpu))
    block = 2 * vocabulary_size * min(tokens, _block_tokens(vocabulary_size, on_cpu))
    of_table = 4 + (weight_bytes if weight_bytes < 4 else 0)
    table = config.num_embedding_rows * config.hidden_size
    return 2 * tokens * vocabulary_size * weight_bytes + block * LOGIT_BYTES + table * of_table


class RDropForward:
    """What takes the place of a model's `forward` in training: a micro-batch beside itself, in one pass.

    Half the paper's sum [Wu+21 §2.1], so that a loss is that of a token as without: the mean of both losses, and
    alpha / 2 times that of both divergences, KL(P₁ ‖ P₂) and KL(P₂ ‖ P₁).
    """

    def __init__(self, model: DeltaLM, alpha: float) -> None:
        self._model, self._alpha = model, alpha

    def __call__(
        self, source: PackedSequences, target_input: PackedSequences, labels: Tensor, label_smoothing: float = 0.0
    ) -> CrossEntropy:
        """See `DeltaLM.forward`; token losses are those of the whole sum."""
        model = self._model
        if not model.training:
            return DeltaLM.forward(model, source, target_input, labels, label_smoothing)
        hidden, table = model.hidden_and_table(_twice(source), _twice(target_input))
        loss, token_loss, token_nll = _RDropLoss.apply(
            hidden.unflatten(0, (2, len(labels))),
            table,
            labels,
            model.config.vocabulary_size,
            self._alpha,
            label_smoothing,
        )
        return CrossEntropy(loss, token_loss, token_nll)


def _twice(sequences: PackedSequences) -> PackedSequences:
    """A batch and itself, one behind the other."""
    cu_seqlens, places = sequences.cu_seqlens, sequences.known_places
    if places is not None:
        number, positions = places
        places = Places(torch.cat([number, number + sequences.num_sequences]), positions.repeat(2))
    second = cu_seqlens[1:] + len(sequences.tokens)
    return PackedSequences(sequences.tokens.repeat(2), torch.cat([cu_seqlens, second]), sequences.max_seqlen, places)


class _RDropLoss(torch.autograd.Function):
    """The sum over the tokens that have a label; loss and nll of each; gradients are made beside, chunk by chunk.

    So the logits of all tokens never exist at once, as in `linear_cross_entropy`, and the backward needs no weight, of
    which ZeRO stage 3 has let go by then.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        table: Tensor,
        labels: Tensor,
        vocabulary_size: int,
        alpha: float,
        label_smoothing: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """hidden: [2, T, M]; table: [rows ≥ V, M]; labels: [T]."""
        weight = table[:vocabulary_size]
        wide, on_cpu = torch.promote_types(weight.dtype, torch.float32), weight.device.type == "cpu"
        token_loss, token_nll = torch.empty(2, len(labels), dtype=wide, device=hidden.device)
        grad_hidden, grad_table = torch.empty_like(hidden), torch.zeros_like(table, dtype=wide)
        num_tokens = chunk_tokens(vocabulary_size, 2 * weight.element_size(), on_cpu)
        for tokens in _slices(len(labels), num_tokens):
            both = hidden[:, tokens].flatten(0, 1)  # [2C, M]
            logits = linear(both, weight).unflatten(0, (2, -1))  # [2, C, V]
            for rows in _slices(logits.shape[1], _block_tokens(vocabulary_size, on_cpu)):
                at = slice(tokens.start + rows.start, tokens.start + rows.stop)
                part = logits[:, rows]
                token_loss[at], token_nll[at] = _losses_and_gradient_(part, labels[at], alpha, label_smoothing, wide)
            grad_logits = logits.flatten(0, 1)
            grad_hidden[:, tokens] = input_gradient(grad_logits, weight).unflatten(0, (2, -1))
            add_product_(grad_table[:vocabulary_size], grad_logits.T, both, is_first=tokens.start == 0)
        ctx.save_for_backward(grad_hidden, grad_table)
        ctx.dtype = table.dtype
        ctx.mark_non_differentiable(token_loss, token_nll)
        return token_loss.sum(), token_loss, token_nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_table = (scaled(gradient, grad_loss, ctx.dtype) for gradient in ctx.saved_tensors)
        return of_hidden, of_table, None, None, None, None


def _block_tokens(vocabulary_size: int, on_cpu: bool) -> int:
    """Of how many tokens the element-wise part has the logits of both passes at a time."""
    return max(1, (CPU_BLOCK_LOGITS if on_cpu else GPU_BLOCK_LOGITS) // (2 * vocabulary_size))


def _losses_and_gradient_(
    logits: Tensor, labels: Tensor, alpha: float, label_smoothing: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Loss and nll [C] of each token, in dtype; logits [2, C, V] become d loss / d logits in place.

    The divergence ½ [KL(P ‖ Q) + KL(Q ‖ P)] has the gradient ½ [P (log P - log Q - KL(P ‖ Q)) + P - Q] by P's logits,
    and by Q's the same with both exchanged.
    """
    target_weight, each = smoothing(label_smoothing, logits.shape[2])
    ignored = labels == IGNORED_LABEL
    label = labels.clamp(min=0).expand(2, -1)[..., None]  # [2, C, 1]
    log_p = logits.to(dtype).log_softmax(2)
    p = log_p.exp()
    nll = -log_p.gather(2, label)
    loss = target_weight * nll - each * log_p.sum(2, keepdim=True)
    log_ratio = log_p.sub_(log_p.flip(0))  # log P - log Q, log Q - log P
    divergence = (p * log_ratio).sum(2, keepdim=True)  # [2, C, 1]
    weight = alpha / 2
    gradient = p * log_ratio.sub_(divergence - 1).mul_(weight).add_(1)
    gradient.sub_(p.flip(0), alpha=weight).sub_(each).scatter_add_(2, label, torch.full_like(nll, -target_weight))
    logits.copy_(gradient.div_(2).masked_fill_(ignored[:, None], 0.0))
    by_token = torch.stack([loss + weight * divergence, nll]).mean(1).squeeze(2)  # [2, C]
    return tuple(by_token.masked_fill_(ignored, 0.0))


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))

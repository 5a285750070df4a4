"""R-Drop: two passes with dropout masks of their own, and the divergence of what they predict as a part of the loss.

Legend: T target tokens, C tokens of a chunk, M model dim, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deltalm_ds.errors import InputError
from deltalm_ds.kernels.linear import linear
from deltalm_ds.kernels.linear_cross_entropy import IGNORED_LABEL, CrossEntropy, chunk_tokens, linear_cross_entropy
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.packing import PackedSequences, Places

LOGIT_BYTES = 24  # of a token and an element of the vocabulary: two logits with all that is made of them, in float32


def check_r_drop(alpha: float, config: DeltaLMConfig) -> None:
    """InputError where two passes of a model could not differ."""
    if alpha and not (config.dropout or config.attention_dropout or config.activation_dropout):
        raise InputError(
            "training.r_drop: the model has no dropout, so its two passes would be the same: set model.dropout, or "
            "leave out r_drop."
        )


def divergence_bytes(config: DeltaLMConfig, num_target_tokens: int) -> int:
    """The most that the divergence holds of a micro-batch: a chunk of logits and, in float32, the table's gradient."""
    tokens = min(num_target_tokens, chunk_tokens(config.vocabulary_size, LOGIT_BYTES))
    return tokens * config.vocabulary_size * LOGIT_BYTES + 4 * config.vocabulary_size * config.hidden_size


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
        vocabulary_size = model.config.vocabulary_size
        both = linear_cross_entropy(hidden, table, labels.repeat(2), vocabulary_size, label_smoothing)
        total, by_token = _Divergence.apply(*hidden.chunk(2), table[:vocabulary_size], labels)
        token_loss, token_nll = (of_both.view(2, -1).mean(0) for of_both in both[1:])
        weight = self._alpha / 2
        return CrossEntropy(both.loss / 2 + weight * total, token_loss + weight * by_token, token_nll)


def _twice(sequences: PackedSequences) -> PackedSequences:
    """A batch and itself, one behind the other."""
    cu_seqlens, places = sequences.cu_seqlens, sequences.known_places
    if places is not None:
        number, positions = places
        places = Places(torch.cat([number, number + sequences.num_sequences]), positions.repeat(2))
    second = cu_seqlens[1:] + len(sequences.tokens)
    return PackedSequences(sequences.tokens.repeat(2), torch.cat([cu_seqlens, second]), sequences.max_seqlen, places)


def _divergence(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """½ [KL(P ‖ Q) + KL(Q ‖ P)] of each token in nats. a, b: [C, M]; weight: [V, M] -> [C], float32 at least."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    log_p, log_q = (linear(x, weight).to(wide).log_softmax(1) for x in (a, b))
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(1) / 2


class _Divergence(torch.autograd.Function):
    """The sum over the tokens that have a label, and each of them; gradients are made beside, chunk by chunk.

    So the logits of all tokens never exist at once, as in `linear_cross_entropy`, and the backward needs no weight, of
    which ZeRO stage 3 has let go by then.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(weight.dtype, torch.float32)
        by_token = torch.empty(len(a), dtype=wide, device=a.device)
        grads = torch.empty_like(a), torch.empty_like(b), torch.zeros_like(weight, dtype=wide)
        num_tokens = chunk_tokens(len(weight), LOGIT_BYTES)
        for chunk in (slice(start, start + num_tokens) for start in range(0, len(a), num_tokens)):
            leaves = [x.detach().requires_grad_() for x in (a[chunk], b[chunk], weight)]
            with torch.enable_grad():
                divergence = _divergence(*leaves) * (labels[chunk] != IGNORED_LABEL)
                of_a, of_b, of_weight = torch.autograd.grad(divergence.sum(), leaves)
            by_token[chunk] = divergence.detach()
            grads[0][chunk], grads[1][chunk] = of_a, of_b
            grads[2].add_(of_weight)
        ctx.save_for_backward(*grads)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(by_token)
        return by_token.sum(), by_token

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        of_a, of_b, of_weight = ctx.saved_tensors
        return of_a * grad_total, of_b * grad_total, (of_weight * grad_total).to(ctx.weight_dtype), None

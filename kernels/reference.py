"""Every op as its plain definition, in float32 or, for float64 inputs, in float64: what the other backends must equal.

Legend: T tokens, B sequences, H heads, D head dim, M model dim, F ffn dim, V vocabulary, K beams. Gradients are
autograd's. A seed (see `dropout_mask`) is given exactly where something is dropped.
"""

import math

import torch
from torch import Tensor

from deltalm_ds.kernels.dropout_mask import keep_mask, scale

IGNORED_LABEL = -100  # torch's own: such a token has no loss and no gradient


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors)


def dropout(x: Tensor, p: float, seed: Tensor | None) -> Tensor:
    """x: [..., M]; rows are counted through all leading dimensions."""
    if seed is None:
        return x
    rows = torch.arange(x.numel() // max(x.shape[-1], 1), device=x.device)
    return x * keep_mask(seed, p, rows, x.shape[-1]).view(x.shape) * scale(p)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(x - mean) / √(variance + eps) · weight + bias over the last axis.

    Args:
        x: [..., M].
        weight: [M].
        bias: [M].
        eps: added to the variance.
    """
    wide, wide_weight, wide_bias = _wide(x, weight, bias)
    centred = wide - wide.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return (centred / (variance + eps).sqrt() * wide_weight + wide_bias).to(x.dtype)


def dropout_add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, p: float, seed: Tensor | None
) -> Tensor:
    """LayerNorm(residual + dropout(x)).

    Args:
        x: [T, M].
        residual: [T, M].
        weight: [M].
        bias: [M].
        eps: added to the variance.
        p: rate of dropout on x.
        seed: [1] int64 or None.
    """
    wide, wide_residual = _wide(x, residual)
    return layer_norm(wide_residual + dropout(wide, p, seed), weight, bias, eps).to(x.dtype)


def feed_forward(
    x: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, bias_out: Tensor, p: float, seed: Tensor | None
) -> Tensor:
    """dropout(GELU(x W_inᵀ + b_in)) W_outᵀ + b_out; GELU(h) = h · Φ(h), Φ the normal distribution function.

    Args:
        x: [T, M].
        weight_in: [F, M].
        bias_in: [F].
        weight_out: [M, F].
        bias_out: [M].
        p: rate of dropout on the activation.
        seed: [1] int64 or None.
    """
    wide, wide_in, wide_bias_in, wide_out, wide_bias_out = _wide(x, weight_in, bias_in, weight_out, bias_out)
    hidden = wide @ wide_in.T + wide_bias_in
    activation = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return (dropout(activation, p, seed) @ wide_out.T + wide_bias_out).to(x.dtype)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, vocabulary_size: int, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (a scalar), token losses and token nll ([T] each); see `deltalm_ds.kernels.linear_cross_entropy`.

    Args:
        hidden: [T, M].
        weight: [rows ≥ V, M].
        labels: [T] int64 in [0, V), or IGNORED_LABEL.
        vocabulary_size: V.
        label_smoothing: from 0 to 1.
    """
    wide, wide_weight = _wide(hidden, weight)
    log_p = (wide @ wide_weight[:vocabulary_size].T).log_softmax(-1)  # [T, V]
    counted = (labels != IGNORED_LABEL).to(log_p.dtype)
    smoothing_each = label_smoothing / (vocabulary_size - 1)
    token_nll = -log_p.gather(1, labels.clamp(min=0)[:, None]).squeeze(1) * counted
    smoothing = -log_p.sum(1) * counted
    token_loss = (1 - label_smoothing - smoothing_each) * token_nll + smoothing_each * smoothing
    return token_loss.sum(), token_loss.detach(), token_nll.detach()


def shared_embedding(table: Tensor, *tokens: Tensor) -> tuple[Tensor, ...]:
    """The table and its rows of each of `tokens`.

    Args:
        table: [V, M]. tokens: [T] int64 each.
    """
    (wide,) = _wide(table)
    return tuple(x.to(table.dtype) for x in (wide, *(wide[part] for part in tokens)))


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    causal: bool,
    p: float,
    seed: Tensor | None,
) -> Tensor:
    """softmax(q kᵀ / √D) v, one sequence after the other.

    The probabilities are dropped out; the row of a mask is the query's number in the batch, its column the key's number
    in the sequence, its plane the head.

    Args:
        q: [Tq, H, D].
        k: [Tk, H, D].
        v: [Tk, H, D].
        cu_seqlens_q: [B + 1] int32, cumulative lengths from 0.
        cu_seqlens_k: [B + 1] int32.
        causal: query i sees keys 0…i.
        p: rate of dropout on the probabilities.
        seed: [1] int64 or None.
    """
    wide_q, wide_k, wide_v = (x.transpose(0, 1) for x in _wide(q, k, v))  # [H, T, D]
    spans = zip(cu_seqlens_q.tolist()[:-1], cu_seqlens_q.tolist()[1:], cu_seqlens_k.tolist()[:-1], strict=True)
    pieces = []
    for (start_q, end_q, start_k), end_k in zip(spans, cu_seqlens_k.tolist()[1:], strict=True):
        num_queries, num_keys = end_q - start_q, end_k - start_k
        keys, values = wide_k[:, start_k:end_k], wide_v[:, start_k:end_k]
        if not num_keys:
            pieces.append(wide_q[:, start_q:end_q] * 0)
            continue
        scores = wide_q[:, start_q:end_q] @ keys.transpose(1, 2) / math.sqrt(q.shape[2])
        if causal:
            hidden = torch.ones(num_queries, num_keys, dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(hidden, -math.inf)
        probabilities = scores.softmax(-1)
        if seed is not None:
            rows = torch.arange(start_q, end_q, device=q.device)
            kept = torch.stack([keep_mask(seed, p, rows, num_keys, head) for head in range(q.shape[1])])
            probabilities = probabilities * kept * scale(p)
        pieces.append(probabilities @ values)
    return torch.cat(pieces, 1).transpose(0, 1).to(q.dtype)


def top_k(
    logits: Tensor, beam_scores: Tensor, num: int, banned: Tensor, only: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Beams, tokens, token scores and scores of the best continuations; see `deltalm_ds.kernels.top_k`.

    Args:
        logits: [B · K, V].
        beam_scores: [B, K].
        num: how many of each sentence.
        banned: [B · K, any number] int64.
        only: [B · K] int64, -1 where any token may come, or None.
    """
    (wide,) = _wide(logits)
    num_columns = wide.shape[1]
    columns = torch.arange(num_columns, device=logits.device)
    allowed = torch.ones_like(wide, dtype=torch.bool).scatter(1, banned, value=False)
    if only is not None:
        allowed = torch.where(only[:, None] >= 0, columns == only[:, None], allowed)
    log_p = wide.log_softmax(1).masked_fill(~allowed, -math.inf)
    totals = (beam_scores.view(-1, 1) + log_p).view(len(beam_scores), -1)  # [B, K · V]
    best, places = (x[:, :num] for x in totals.sort(dim=1, descending=True, stable=True))
    return places // num_columns, places % num_columns, log_p.view(totals.shape).gather(1, places), best

"""The best continuations of beams, out of the logits of a whole vocabulary, in one pass over them.

Legend: B ≥ 1 sentences, K beams, N = B · K rows (the beams of a sentence side by side), V vocabulary, C candidates.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from deltalm_ds.kernels import reference
from deltalm_ds.kernels.dispatch import Op, implementation

BLOCK = 128  # logits that stand for each other by their largest
LOGITS_OF_THREAD = 2**19  # that the torch path has in float32 at a time: they stay in the cache of a CPU's core
NEVER = float("-inf")


class Continuations(NamedTuple):
    """Each [B, C], best first.

    beams: int64, the beam (0…K-1) that is continued. tokens: int64, what is added. token_scores: float32, log p of
    that. scores: float32, log p of the beam and the token.
    """

    beams: Tensor
    tokens: Tensor
    token_scores: Tensor
    scores: Tensor


def top_k(logits: Tensor, beam_scores: Tensor, num: int, banned: Tensor, only: Tensor | None = None) -> Continuations:
    """The `num` best continuations of every sentence, or all K · V if they are fewer.

    Probabilities are those of all V tokens: a ban does not raise the score of the rest. Among the continuations of a
    beam that are equal, the lower token comes first; among those of several beams, the lower beam.

    Args:
        logits: [N, V], any floating dtype; computed with in float32. No gradient.
        beam_scores: [B, K] float32.
        num: how many of each sentence.
        banned: [N, any number] int64, tokens that a row must not go on with (score -inf); one may be named twice.
        only: [N] int64, the one token that a row may go on with, even a banned one; -1 where it is free.
    """
    return implementation(OP, logits)(logits, beam_scores, num, banned, only)


def _torch(logits: Tensor, beam_scores: Tensor, num: int, banned: Tensor, only: Tensor | None) -> Continuations:
    of_rows = _row_top_k(logits, min(num, logits.shape[1]), banned, only)
    return _best_of_beams(beam_scores, num, *of_rows)


def _triton(logits: Tensor, beam_scores: Tensor, num: int, banned: Tensor, only: Tensor | None) -> Continuations:
    from deltalm_ds.kernels.fused.top_k import row_top_k

    of_rows = row_top_k(logits, min(num, logits.shape[1]), banned, only)
    return _best_of_beams(beam_scores, num, *of_rows)


def _reference(logits: Tensor, beam_scores: Tensor, num: int, banned: Tensor, only: Tensor | None) -> Continuations:
    return Continuations(*reference.top_k(logits, beam_scores, num, banned, only))


OP = Op(torch=_torch, triton=_triton, reference=_reference)


def _best_of_beams(beam_scores: Tensor, num: int, token_scores: Tensor, tokens: Tensor) -> Continuations:
    """The `num` best of each sentence, out of as many of each beam (or all): no sort over K · V.

    token_scores, tokens: [N, C of a row], best first.
    """
    num_sentences, num_of_row = len(beam_scores), tokens.shape[1]
    totals = (beam_scores.view(-1, 1) + token_scores).view(num_sentences, -1)
    totals, places = (x[:, :num] for x in totals.sort(dim=1, descending=True, stable=True))
    return Continuations(
        places // num_of_row,
        tokens.view(num_sentences, -1).gather(1, places),
        token_scores.view(num_sentences, -1).gather(1, places),
        totals,
    )


def _row_top_k(logits: Tensor, num: int, banned: Tensor, only: Tensor | None) -> tuple[Tensor, Tensor]:
    """log p [N, C] and tokens [N, C] of the `num` best of each row; a few rows at a time."""
    num_columns = logits.shape[1]
    width = -(-num_columns // BLOCK) * BLOCK
    num_rows = max(1, LOGITS_OF_THREAD * torch.get_num_threads() // width)
    buffer = logits.new_full((min(num_rows, len(logits)), width), NEVER, dtype=torch.float32)
    scores, tokens = [], []
    for start in range(0, len(logits), num_rows):
        part = slice(start, start + num_rows)
        rows = buffer[: len(logits[part])]
        rows[:, :num_columns] = logits[part]
        log_p = rows.log_softmax(1)
        allowed = _allow_(rows, banned[part], None if only is None else only[part])
        tokens.append(_largest(allowed, num))
        is_allowed = allowed.gather(1, tokens[-1]) != NEVER
        scores.append(log_p.gather(1, tokens[-1]).where(is_allowed, NEVER))
    return torch.cat(scores), torch.cat(tokens)


def _allow_(rows: Tensor, banned: Tensor, only: Tensor | None) -> Tensor:
    """Set what must not come to -inf, in place."""
    if only is None:
        return rows.scatter_(1, banned, NEVER)
    forced = torch.nonzero(only >= 0).flatten()
    values = rows[forced, only[forced]]
    rows.scatter_(1, banned, NEVER)
    rows[forced] = NEVER
    rows[forced, only[forced]] = values
    return rows


def _largest(rows: Tensor, num: int) -> Tensor:
    """Columns [n, num] of the largest values of each row, largest first. rows: [n, whole blocks], -inf as padding.

    They are all in the `num` blocks with the largest maxima: memory is read once, and little is compared.
    """
    blocks = rows.unflatten(1, (-1, BLOCK))
    numbers = torch.arange(blocks.shape[1], device=rows.device)
    best = _sort_keys(blocks.amax(2), numbers).topk(min(num, len(numbers)), dim=1).values
    first_columns = _index_of(best) * BLOCK
    columns = (first_columns[:, :, None] + torch.arange(BLOCK, device=rows.device)).flatten(1)
    return _index_of(_sort_keys(rows.gather(1, columns), columns).topk(num, dim=1).values)


def _sort_keys(x: Tensor, index: Tensor) -> Tensor:
    """int64, all different: ordered by value and, among equal ones, by falling index. x: float32; index: < 2^31."""
    bits = (x + 0.0).view(torch.int32)  # the sum makes -0 into 0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # negative floats are ordered the wrong way round
    return (ordered.long() << 32) | (0x7FFFFFFF - index)


def _index_of(keys: Tensor) -> Tensor:
    return 0x7FFFFFFF - (keys & 0x7FFFFFFF)

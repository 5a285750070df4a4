"""Drawing outputs from a model's probabilities instead of searching for the best.

Legend: B sentences, K samples of each, N = B · K rows (the samples of a sentence side by side), V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deltalm_ds.arrays.counter_rng import hash_counters, mix_in, name_key
from deltalm_ds.generation.beam_search import StepModel
from deltalm_ds.generation.exclusions import Exclusions
from deltalm_ds.generation.interface import Hypothesis, SearchOptions
from deltalm_ds.model.packing import PackedSequences
from deltalm_ds.token_ids import EOS_ID, PAD_ID

NEVER = float("-inf")


@torch.inference_mode()
def sample(model: StepModel, source: PackedSequences, options: SearchOptions) -> list[list[Hypothesis]]:
    """`n_best` outputs of each of B sentences, drawn independently; best first.

    A draw depends on the seed, the sentence's tokens, the number of the sample and the position alone: not on the batch
    or the order of sentences. Scores are log p of the model, whatever the temperature.

    Args:
        model: what is drawn from.
        source: whole inputs: language tag if any, tokens, `</s>`; on the model's device.
        options: with a temperature.
    """
    if not source.num_sequences:
        return []
    lengths = source.lengths.tolist()
    sources = [tokens.tolist() for tokens in source.tokens.cpu().split(lengths)]
    found: list[list[Hypothesis]] = [[] for _ in sources]
    bounds = [options.bounds(length - 1, model.max_positions) for length in lengths]
    device, num = source.tokens.device, options.n_best
    sentences = torch.arange(len(sources), device=device)
    cache = model.start_decoding(source)
    state, exclusions = _states(options, sources), Exclusions(options, device)
    least, most = torch.tensor(bounds, device=device).view(-1, 2).repeat_interleave(num, dim=0).unbind(1)
    tokens = torch.full((len(least), 1 + max(high for _, high in bounds)), PAD_ID, device=device)
    scores = torch.zeros(tokens.shape, device=device)
    last = torch.full_like(least, EOS_ID)
    has_ended = torch.zeros_like(last, dtype=torch.bool)
    for position in range(tokens.shape[1]):
        cache.reserve(position + 1)
        log_p = model.decode_step(last, cache).float().log_softmax(1)
        allowed = _allowed(log_p, tokens[:, :position], position, least, most, options, exclusions)
        draws = torch.from_numpy((mix_in(state, position) >> np.uint64(11)) * 2.0**-53).to(device)
        last = draw(allowed, draws, options)
        tokens[:, position] = last.masked_fill(has_ended, PAD_ID)
        scores[:, position] = log_p.gather(1, last[:, None])[:, 0].masked_fill(has_ended, 0.0)
        has_ended |= last == EOS_ID
        done = has_ended.view(-1, num).all(1)
        for place in torch.nonzero(done).flatten().tolist():
            its = slice(place * num, (place + 1) * num)
            found[sentences[place]] = _hypotheses(tokens[its].tolist(), scores[its].tolist(), options)
        if done.all():
            break
        if done.any():
            kept = torch.nonzero(~done).flatten()
            rows = (kept[:, None] * num + torch.arange(num, device=device)).flatten()
            cache.select_sentences(kept)
            cache.select_rows(rows)
            sentences, state = sentences[kept], state[rows.cpu().numpy()]
            least, most, tokens, scores, last, has_ended = (
                x[rows] for x in (least, most, tokens, scores, last, has_ended)
            )
    return found


def draw(log_p: Tensor, draws: Tensor, options: SearchOptions) -> Tensor:
    """[N] int64, the token of each row at a place of its distribution.

    Args:
        log_p: [N, V] float32, -inf for what is not allowed.
        draws: [N] float64 in [0, 1).
        options: temperature, top_k and top_p; tokens that are as probable as the last of `top_k` are left out.
    """
    size = min(options.top_k or log_p.shape[1], log_p.shape[1])
    values, columns = (
        log_p.topk(size, dim=1) if size < log_p.shape[1] else log_p.sort(dim=1, descending=True, stable=True)
    )
    shares = (values.double() / options.temperature).softmax(1)
    cumulated = shares.cumsum(1)
    kept = shares.masked_fill(cumulated - shares >= options.top_p, 0.0)  # the first is kept in any case
    ends = kept.cumsum(1)
    places = (ends <= draws[:, None] * ends[:, -1:]).sum(1, keepdim=True)
    return columns.gather(1, places.clamp(max=size - 1))[:, 0]


def _states(options: SearchOptions, sources: Sequence[Sequence[int]]) -> np.ndarray:
    """[N] uint64, what the draws of each row come from."""
    keys = np.array([name_key(" ".join(map(str, ids))) for ids in sources], dtype=np.uint64)
    return hash_counters(options.seed, keys[:, None], np.arange(options.n_best)).reshape(-1)


def _allowed(
    log_p: Tensor,
    tokens: Tensor,
    position: int,
    least: Tensor,
    most: Tensor,
    options: SearchOptions,
    exclusions: Exclusions,
) -> Tensor:
    """[N, V], log p with -inf for what must not come."""
    if position < len(options.prefix):
        only = torch.full_like(least, options.prefix[position])
    else:
        only = torch.where(most <= position, EOS_ID, -1)
    banned = torch.where(least[:, None] > position, EOS_ID, PAD_ID).expand(-1, 1)
    banned = torch.cat([banned, torch.full_like(banned, PAD_ID)], dim=1)
    excluded = exclusions.next(tokens, torch.tensor([position], device=tokens.device))
    banned = torch.cat([banned, excluded], dim=1)
    allowed = log_p.scatter(1, banned, NEVER)
    forced = torch.full_like(log_p, NEVER).scatter(1, only.clamp(min=0)[:, None], 0.0)
    return torch.where(only[:, None] >= 0, forced, allowed)


def _hypotheses(tokens: list[list[int]], scores: list[list[float]], options: SearchOptions) -> list[Hypothesis]:
    """The samples of a sentence, best first."""
    found = []
    for ids, log_p in zip(tokens, scores, strict=True):
        length = ids.index(EOS_ID) + 1
        score = sum(log_p[:length]) / length**options.length_penalty
        found.append(Hypothesis(tuple(ids[: length - 1]), score, tuple(log_p[:length])))
    return sorted(found, key=lambda hypothesis: -hypothesis.score)

"""Beam search by fairseq's rules [facts: beam search].

Legend: B sentences, K beams, N = B · K rows (the beams of a sentence side by side), V vocabulary, L tokens so far.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from deltalm_ds.errors import DataError
from deltalm_ds.generation.interface import Hypothesis, SearchOptions
from deltalm_ds.kernels.top_k import top_k
from deltalm_ds.model.cache import DecoderCache
from deltalm_ds.model.packing import PackedSequences
from deltalm_ds.token_ids import EOS_ID, PAD_ID

NEVER = float("-inf")


class StepModel(Protocol):
    """What a search needs of a model; `DeltaLM` is one.

    max_positions: longest source and longest target, `</s>` included.
    """

    @property
    def max_positions(self) -> int: ...

    def start_decoding(self, source: PackedSequences) -> DecoderCache:
        """Encode the source and prepare step-by-step decoding."""
        ...

    def decode_step(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """Logits [N, V] after one more token a row. tokens: [N] int64, the beams of a sentence side by side."""
        ...


@dataclass
class _Beams:
    """The live beams of the sentences that are not finished.

    sentences: [B] int64, each one's number in the batch. tokens: [N, L] int64. token_scores: [N, L] float32.
    scores: [B, K] float32, Σ log p; -inf marks a beam that holds nothing.
    """

    sentences: Tensor
    tokens: Tensor
    token_scores: Tensor
    scores: Tensor

    @classmethod
    def start(cls, num_sentences: int, beam: int, device: torch.device) -> "_Beams":
        """Only the first beam of a sentence is live: else all of them would hold the same."""
        scores = torch.full((num_sentences, beam), NEVER, device=device)
        scores[:, 0] = 0.0
        nothing = torch.empty(num_sentences * beam, 0, device=device)
        return cls(torch.arange(num_sentences, device=device), nothing.long(), nothing, scores)

    def extended(self, kept: Tensor, rows: Tensor, candidates: "_Candidates") -> "_Beams":
        """The beams of the next step; kept: [B'] sentences that go on, rows: [B', K] beams they go on from."""
        flat = rows.flatten()
        tokens = torch.cat([self.tokens[flat], candidates.tokens.reshape(-1, 1)], dim=1)
        token_scores = torch.cat([self.token_scores[flat], candidates.token_scores.reshape(-1, 1)], dim=1)
        return _Beams(self.sentences[kept], tokens, token_scores, candidates.scores)


@dataclass
class _Candidates:
    """Continuations of a sentence's beams, best first; each [B, C].

    beams: the beam it continues. tokens: what it adds. token_scores: log p of that. scores: Σ log p.
    """

    beams: Tensor
    tokens: Tensor
    token_scores: Tensor
    scores: Tensor

    def take(self, columns: Tensor, sentences: Tensor | slice = slice(None)) -> "_Candidates":
        """Choose columns [B', C'] of the given sentences."""
        parts = (self.beams, self.tokens, self.token_scores, self.scores)
        return _Candidates(*(part[sentences].gather(1, columns) for part in parts))


@dataclass
class _Finished:
    """Hypotheses that ended, by sentence."""

    options: SearchOptions
    of_sentence: list[list[Hypothesis]] = field(default_factory=list)

    def add(self, sentences: list[int], tokens: Tensor, token_scores: Tensor, scores: Tensor) -> None:
        """tokens, token_scores: [n, L + 1], `</s>` last; scores: [n]. What comes after the beam is full is dropped."""
        length_term = tokens.shape[1] ** self.options.length_penalty
        rows = zip(sentences, tokens.tolist(), token_scores.tolist(), (scores / length_term).tolist(), strict=True)
        for sentence, ids, logs, score in rows:
            if len(self.of_sentence[sentence]) < self.options.beam:
                self.of_sentence[sentence].append(Hypothesis(tuple(ids[:-1]), score, tuple(logs)))

    def best(self) -> list[list[Hypothesis]]:
        """The n best of each sentence, best first; DataError if one has none."""
        if not all(self.of_sentence):
            raise DataError("The model gives no output a probability above 0: its weights are damaged (NaN?).")
        ranked = (sorted(found, key=lambda hypothesis: -hypothesis.score) for found in self.of_sentence)
        return [found[: self.options.n_best] for found in ranked]


@torch.inference_mode()
def beam_search(model: StepModel, source: PackedSequences, options: SearchOptions) -> list[list[Hypothesis]]:
    """The best translations of B sentences: up to n_best hypotheses each, best first.

    Of the 2K best continuations of a sentence's beams, those that end and are among the first K are finished
    hypotheses; the first K that do not end go on. A sentence is done when it has K finished hypotheses, or at the
    maximum length, where every beam ends. `<pad>` is never produced. The result of a sentence does not depend on
    the others of the batch.

    Args:
        source: whole inputs: language tag if any, tokens, `</s>`; on the model's device.
    """
    num_sentences, beam = source.num_sequences, options.beam
    if not num_sentences:
        return []
    device = source.tokens.device
    max_length = options.limit(model.max_positions)
    cache = model.start_decoding(source)
    beams = _Beams.start(num_sentences, beam, device)
    finished = _Finished(options, [[] for _ in range(num_sentences)])
    last = torch.full((num_sentences * beam,), EOS_ID, device=device)
    for step in range(max_length + 1):
        logits = model.decode_step(last, cache)
        banned = _banned_tokens(beams.tokens, step < options.min_length, options.no_repeat_ngram_size)
        only = torch.full_like(last, EOS_ID) if step == max_length else None  # even if it is banned
        candidates = _Candidates(*top_k(logits, beams.scores, 2 * beam, banned, only))
        _finish(candidates, beams, finished)
        counts = torch.tensor([len(finished.of_sentence[s]) for s in beams.sentences.tolist()], device=device)
        kept = torch.nonzero(counts < beam).flatten()
        if step == max_length or not len(kept):
            break
        # candidates that do not end, in order; a sentence has at most K that end, so K of the 2K always remain
        columns = (candidates.tokens[kept] == EOS_ID).long().sort(dim=1, stable=True).indices[:, :beam]
        going_on = candidates.take(columns, kept)
        rows = kept[:, None] * beam + going_on.beams
        if len(kept) < len(counts):
            cache.select_sentences(kept)
        if beam > 1 or len(kept) < len(counts):
            cache.select_rows(rows.flatten())
        beams = beams.extended(kept, rows, going_on)
        last = beams.tokens[:, -1]
    return finished.best()


def _banned_tokens(tokens: Tensor, min_length_holds: bool, ngram_size: int) -> Tensor:
    """[N, any number] int64, tokens that a row must not go on with. tokens: [N, L], those so far.

    With an `ngram_size`, every token that followed an earlier occurrence of the last ngram_size - 1 tokens.
    """
    banned = tokens.new_tensor([PAD_ID, EOS_ID] if min_length_holds else [PAD_ID]).expand(len(tokens), -1)
    if not ngram_size or tokens.shape[1] < ngram_size:
        return banned
    ngrams = tokens.unfold(1, ngram_size, 1)  # [N, L - size + 1, size]
    ending = tokens[:, tokens.shape[1] - ngram_size + 1 :]  # [N, size - 1]
    occurs = (ngrams[:, :, :-1] == ending[:, None]).all(dim=2)
    return torch.cat([banned, ngrams[:, :, -1].where(occurs, PAD_ID)], dim=1)


def _finish(candidates: _Candidates, beams: _Beams, finished: _Finished) -> None:
    """Collect the candidates that end with `</s>` and are among the first K of their sentence."""
    beam = beams.scores.shape[1]
    ends = (candidates.tokens == EOS_ID) & (candidates.scores > NEVER)
    sentence, column = torch.nonzero(ends[:, :beam], as_tuple=True)
    if not len(sentence):
        return
    rows = sentence * beam + candidates.beams[sentence, column]
    eos = candidates.tokens[sentence, column, None]
    finished.add(
        beams.sentences[sentence].tolist(),
        torch.cat([beams.tokens[rows], eos], dim=1),
        torch.cat([beams.token_scores[rows], candidates.token_scores[sentence, column, None]], dim=1),
        candidates.scores[sentence, column],
    )

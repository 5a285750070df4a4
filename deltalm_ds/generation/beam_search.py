"""Beam search by fairseq's rules [facts: beam search].

Legend: B sentences, K beams, N = B · K rows (the beams of a sentence side by side), V vocabulary, W longest output with
`</s>`.
"""

from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from deltalm_ds.errors import DataError
from deltalm_ds.generation.exclusions import Exclusions
from deltalm_ds.generation.interface import Hypothesis, SearchOptions
from deltalm_ds.generation.steps import StepRunner
from deltalm_ds.kernels.top_k import Continuations, top_k
from deltalm_ds.model.cuda_graph import GraphRecorder
from deltalm_ds.model.packing import PackedSequences
from deltalm_ds.token_ids import EOS_ID, PAD_ID

NEVER = float("-inf")


class StepCache(Protocol):
    """What a model remembers between steps; `DecoderCache` is one."""

    def reserve(self, length: int) -> None:
        """To be called before every step: it may attend to `length` positions, its own and, masked, such after it."""
        ...

    def select_rows(self, rows: Tensor) -> None:
        """Row n goes on from what was row rows[n] ([N'] int64)."""
        ...

    def select_sentences(self, sentences: Tensor) -> None:
        """Keep these sentences [B'] int64 (their rows are given to select_rows)."""
        ...


Cache = TypeVar("Cache", bound=StepCache)


class StepModel(Protocol[Cache]):
    """What a search needs of a model; `DeltaLM` is one.

    max_positions: longest source and longest target, `</s>` included.
    """

    @property
    def max_positions(self) -> int: ...

    def start_decoding(self, source: PackedSequences) -> Cache:
        """Encode the source and prepare step-by-step decoding."""
        ...

    def decode_step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Logits [N, V] after one more token a row. tokens: [N] int64, the beams of a sentence side by side."""
        ...


class _Finished:
    """Hypotheses that ended, by sentence, in the order in which they did.

    Each has K places and one that is not read, for all that is none or comes after the beam is full.

    Attributes:
        counts: [B] int64, hypotheses that ended.
        lengths: [B, K + 1] int64, tokens without `</s>`.
        tokens: [B, K + 1, W] int64.
        token_scores: [B, K + 1, W] float32, log p of each token and of `</s>`.
        scores: [B, K + 1] float32, their sum.
    """

    def __init__(self, num_sentences: int, beam: int, width: int, device: torch.device) -> None:
        self.beam = beam
        self.counts = torch.zeros(num_sentences, dtype=torch.int64, device=device)
        self.lengths = self.counts[:, None].repeat(1, beam + 1)
        self.tokens = self.lengths[:, :, None].repeat(1, 1, width)
        self.token_scores = self.tokens.float()
        self.scores = self.lengths.float()

    def add(
        self, sentences: Tensor, ends: Tensor, length: Tensor, tokens: Tensor, token_scores: Tensor, scores: Tensor
    ) -> None:
        """Take what has ended in a step.

        Args:
            sentences: [B'] int64, the numbers of those looked at.
            ends: [B', K] bool, which of the following are hypotheses.
            length: [1] int64, their tokens without `</s>`.
            tokens: [B', K, W] int64.
            token_scores: [B', K, W] float32.
            scores: [B', K] float32.
        """
        counts = self.counts[sentences]
        places = (counts[:, None] + ends.cumsum(1) - 1).masked_fill(~ends, self.beam).clamp(max=self.beam)
        where = (sentences[:, None], places)
        self.counts.index_copy_(0, sentences, counts + ends.sum(1))
        self.lengths[where] = length
        self.tokens[where], self.token_scores[where], self.scores[where] = tokens, token_scores, scores

    def best(self, options: SearchOptions, sentences: Tensor | slice = slice(None)) -> list[list[Hypothesis]]:
        """The n best of each of these sentences, best first; DataError if one has none."""
        counts, lengths, scores = (x[sentences].cpu() for x in (self.counts, self.lengths, self.scores))
        tokens, token_scores = (x[sentences].cpu().numpy() for x in (self.tokens, self.token_scores))
        normalised = (scores / (lengths + 1).double().pow(options.length_penalty).float()).tolist()
        found = []
        for sentence, (count, ends) in enumerate(zip(counts.tolist(), lengths.tolist(), strict=True)):
            if not count:
                raise DataError(
                    "The model gives no output a probability above 0: its weights are damaged (NaN?), or too large for "
                    "16 bits (--dtype float32)."
                )
            hypotheses = [
                Hypothesis(
                    tuple(tokens[sentence, place, : ends[place]].tolist()),
                    normalised[sentence][place],
                    tuple(token_scores[sentence, place, : ends[place] + 1].tolist()),
                )
                for place in range(min(count, self.beam))
            ]
            found.append(sorted(hypotheses, key=lambda hypothesis: -hypothesis.score)[: options.n_best])
        return found


class Search(Generic[Cache]):
    """The beams of the sentences that are looked at, in tensors that a step reads and writes where they are.

    Args:
        model, source, options: see `beam_search`.
        may_wait: whether a step may look at what it has computed, to do nothing in vain.

    Attributes:
        sentences: [B] int64, each one's number in the batch.
        position: [1] int64, tokens so far.
        last: [N] int64, the last of them; `</s>` to begin with.
        tokens: [N, W] int64, `<pad>` after those so far. token_scores: [N, W] float32, log p of each.
        scores: [B, K] float32, Σ log p; -inf marks a beam that holds nothing.
        max_length: of a hypothesis; the step after as many is the last.
    """

    def __init__(
        self, model: StepModel[Cache], source: PackedSequences, options: SearchOptions, may_wait: bool
    ) -> None:
        device, num_sentences, self.beam = source.tokens.device, source.num_sequences, options.beam
        self.model, self.options, self.may_wait = model, options, may_wait
        self.cache = model.start_decoding(source)
        self.max_length = options.limit(model.max_positions)
        width = self.max_length + 1
        self.sentences = torch.arange(num_sentences, device=device)
        self._first_rows = self.sentences[:, None] * self.beam
        self._ban_until = torch.tensor([0, options.min_length], device=device)  # `</s>` before, `<pad>` after
        self._exclusions = Exclusions(options, device)
        self._bounds = self._bounds_of(source) if options.is_of_source else None
        self._prefix = torch.tensor([*options.prefix, -1], device=device) if options.prefix else None
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.last = torch.full((num_sentences * self.beam,), EOS_ID, device=device)
        self.tokens = torch.full((num_sentences * self.beam, width), PAD_ID, device=device)
        self.token_scores = torch.zeros(self.tokens.shape, device=device)
        self.scores = torch.full((num_sentences, self.beam), NEVER, device=device)
        self.scores[:, 0] = 0.0  # only the first beam of a sentence is live: else all of them would hold the same
        self.finished = _Finished(num_sentences, self.beam, width, device)

    def step(self, length: int, is_last: bool = False) -> None:
        """One more token for every beam; see `take`."""
        self.take(self.model.decode_step(self.last, self.cache), length, is_last)

    def take(self, logits: Tensor, length: int, is_last: bool) -> None:
        """Go on by the logits [N, V] after `last`; at the last step all beams end.

        It leaves alone what has finished, and it never waits for the device unless it may, so that it can be recorded.

        Args:
            logits: of the model.
            length: positions that are looked at, those so far and, without effect, such after them.
            is_last: whether the maximum length is reached.
        """
        ban_until = self._ban_until if self._bounds is None else self._bounds[:, :2]
        banned = torch.where(self.position < ban_until, EOS_ID, PAD_ID).expand(len(logits), -1)
        banned = torch.cat([banned, self._exclusions.next(self.tokens[:, :length], self.position)], dim=1)
        only = torch.full_like(self.last, EOS_ID) if is_last else self._forced()  # even if it is banned
        candidates = top_k(logits, self.scores, 2 * self.beam, banned, only)
        self._finish(Continuations(*(part[:, : self.beam] for part in candidates)))
        # candidates that do not end, in order; a sentence has at most K that end, so K of the 2K always remain
        columns = (candidates.tokens == EOS_ID).long().sort(dim=1, stable=True).indices[:, : self.beam]
        self._go_on(Continuations(*(part.gather(1, columns) for part in candidates)))

    def unfinished(self) -> Tensor:
        """[B'] int64, the places in `sentences` of those that have fewer than K hypotheses; waits for the device."""
        return torch.nonzero(self.finished.counts[self.sentences] < self.beam).flatten()

    def keep(self, places: Tensor) -> None:
        """Look only at these [B'] of the sentences from now on."""
        rows = (self._first_rows[places] + torch.arange(self.beam, device=places.device)).flatten()
        self.sentences, self.scores = self.sentences[places], self.scores[places]
        self.last, self.tokens, self.token_scores = (x[rows] for x in (self.last, self.tokens, self.token_scores))
        self._first_rows = self._first_rows[: len(places)]
        self._bounds = None if self._bounds is None else self._bounds[rows]
        self.cache.select_sentences(places)
        self.cache.select_rows(rows)

    def _bounds_of(self, source: PackedSequences) -> Tensor:
        """[N, 3] int64: as `_ban_until` of each row, and the most tokens."""
        lengths = source.lengths.tolist()  # with </s>
        bounds = [(0, *self.options.bounds(length - 1, self.model.max_positions)) for length in lengths]
        return torch.tensor(bounds, device=source.tokens.device).repeat_interleave(self.beam, dim=0)

    def _forced(self) -> Tensor | None:
        """[N] int64, the one token that a row may go on with, -1 where it is free; None where all are."""
        if self._bounds is None and self._prefix is None:
            return None
        forced = torch.full_like(self.last, -1)
        if self._bounds is not None:
            forced = torch.where(self.position >= self._bounds[:, 2], EOS_ID, forced)
        if self._prefix is not None:
            token = self._prefix[self.position.clamp(max=len(self._prefix) - 1)]
            forced = torch.where(token >= 0, token, forced)
        return forced

    def _rows_of(self, candidates: Continuations) -> Tensor:
        """[B, C] int64, the rows that candidates continue."""
        return self._first_rows + candidates.beams

    def _finish(self, candidates: Continuations) -> None:
        """Collect those of the first K candidates [B, K] that end."""
        ends = (candidates.tokens == EOS_ID) & (candidates.scores > NEVER)
        if self.may_wait and not ends.any():
            return
        rows = self._rows_of(candidates)
        token_scores = self.token_scores[rows].index_copy(2, self.position, candidates.token_scores[:, :, None])
        self.finished.add(self.sentences, ends, self.position, self.tokens[rows], token_scores, candidates.scores)

    def _go_on(self, candidates: Continuations) -> None:
        """The beams continue with these candidates [B, K]."""
        if self.beam > 1:
            rows = self._rows_of(candidates).flatten()
            self.cache.select_rows(rows)
            self.tokens.copy_(self.tokens[rows])
            self.token_scores.copy_(self.token_scores[rows])
        self.last.copy_(candidates.tokens.flatten())
        self.tokens.index_copy_(1, self.position, self.last[:, None])
        self.token_scores.index_copy_(1, self.position, candidates.token_scores.view(-1, 1))
        self.scores.copy_(candidates.scores)
        self.position += 1


@torch.inference_mode()
def beam_search(
    model: StepModel[Cache], source: PackedSequences, options: SearchOptions, recorder: GraphRecorder | None = None
) -> list[list[Hypothesis]]:
    """The best translations of B sentences: up to n_best hypotheses each, best first.

    Of the 2K best continuations of a sentence's beams, those that end and are among the first K are finished
    hypotheses; the first K that do not end go on. A sentence is done when it has K finished hypotheses, or at its
    maximum length, where every beam ends. `<pad>` is never produced. The result of a sentence does not depend on
    the others of the batch.

    Args:
        model: what is searched.
        source: whole inputs: language tag if any, tokens, `</s>`; on the model's device.
        options: how.
        recorder: for a device that works while the host goes on: see `StepRunner`.
    """
    if not source.num_sequences:
        return []
    search, runner = Search(model, source, options, may_wait=recorder is None), StepRunner(recorder)
    max_length = search.max_length
    for number in range(max_length):
        length = runner.length(number + 1, max_length + 1)
        search.cache.reserve(length)
        runner.run(search.step, length, len(search.sentences))
        if not runner.looks_after(number + 1):
            continue
        unfinished = search.unfinished()
        if not len(unfinished):
            break
        if runner.drops(len(unfinished), len(search.sentences)):
            search.keep(unfinished)
    else:
        search.cache.reserve(max_length + 1)
        search.step(max_length + 1, is_last=True)
    return search.finished.best(options)

"""What can run a model, what it is asked and what it answers: ids without `</s>`. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from deltalm_ds.errors import InputError

Ids = Sequence[int]


@dataclass(frozen=True)
class SearchOptions:
    """How to search. Lengths are in tokens and, as in fairseq, do not count the final `</s>`.

    Attributes:
        beam: hypotheses kept at each step; 1 is greedy search.
        n_best: hypotheses returned, at most `beam`.
        length_penalty: a hypothesis scores Σ log p / length**length_penalty, the length with `</s>`; 0 is the sum.
        min_length, max_length: bounds of a hypothesis; the model's positions bound it too.
        no_repeat_ngram_size: an n-gram of this size occurs at most once in a hypothesis; 0 allows all.
    """

    beam: int = 5
    n_best: int = 1
    length_penalty: float = 1.0
    min_length: int = 1
    max_length: int = 200
    no_repeat_ngram_size: int = 0

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise InputError(f"The beam is {self.beam}; it must be at least 1.")
        if not 1 <= self.n_best <= self.beam:
            raise InputError(f"{self.n_best} hypotheses are asked for; the beam of {self.beam} gives 1 to {self.beam}.")
        if not 0 <= self.min_length <= self.max_length:
            raise InputError(f"Lengths from {self.min_length} to {self.max_length} contain no valid length.")
        if self.no_repeat_ngram_size < 0:
            raise InputError(f"The n-gram size is {self.no_repeat_ngram_size}; it must be 0 (off) or more.")

    def limit(self, max_positions: int) -> int:
        """The length at which a hypothesis must end: `max_length`, or what the positions leave beside `</s>`."""
        return min(self.max_length, max_positions - 1)


@dataclass(frozen=True)
class Hypothesis:
    """One output of a search.

    Attributes:
        ids: the tokens, without `</s>`.
        score: Σ log p / length**length_penalty in nats, over the tokens and `</s>`.
        token_scores: log p of each token and of `</s>`, or None where the engine does not give them.
        is_cut: it has as many tokens as it may have (`SearchOptions.limit`): where it ends was not the model's choice.
            Set by `generate`, not by engines.
    """

    ids: tuple[int, ...]
    score: float
    token_scores: tuple[float, ...] | None = None
    is_cut: bool = False


class Engine(Protocol):
    """Searches and scores batches.

    vocabulary_size: ids are below it. max_positions: longest source and longest target, `</s>` included.
    """

    vocabulary_size: int
    max_positions: int

    def generate(self, sources: Sequence[Ids], options: SearchOptions) -> list[list[Hypothesis]]:
        """Up to n_best hypotheses for each source (language tag included), best first."""
        ...

    def score(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        """Log p in nats of each target's tokens and of its `</s>`."""
        ...

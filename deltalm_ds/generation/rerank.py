"""Ranking candidates anew, by what a search does not look at.

A reranker takes the candidates of sentences and gives each a score; the highest is the best.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from deltalm_ds.errors import InputError, nearest
from deltalm_ds.generation.alignment import attention
from deltalm_ds.generation.interface import RERANKERS, Engine, Hypothesis, Ids, ModelVocabulary
from deltalm_ds.generation.loading import load_engine, load_vocabulary
from deltalm_ds.generation.score import score
from deltalm_ds.generation.translate import encoder_for

LEAST_COVERAGE = 1e-6  # of a token that nothing looks at: its logarithm is finite


class Candidates(NamedTuple):
    """Those of one sentence: the line, its ids with the language tag, its candidates, and their texts."""

    line: str
    source: Ids
    hypotheses: Sequence[Hypothesis]
    texts: Sequence[str]


class Reranker(Protocol):
    """See the head of this file."""

    def scores(self, engine: Engine, sentences: Sequence[Candidates]) -> list[list[float]]:
        """Of each sentence the score of each candidate. engine: that made them."""
        ...


class MinimumBayesRisk:
    """The mean chrF (sacreBLEU's chrF2 of a sentence) against all candidates, itself included: expected quality.

    Each candidate counts alike. Made for samples; of a beam's hypotheses it takes the one that the others agree with
    [Eikema+22].
    """

    def scores(self, engine: Engine, sentences: Sequence[Candidates]) -> list[list[float]]:
        """See `Reranker`."""
        return [self._scores_of(one.texts) for one in sentences]

    def _scores_of(self, texts: Sequence[str]) -> list[float]:
        from sacrebleu.metrics import CHRF  # only here: it takes a while to load

        chrf, counts = CHRF(), Counter(texts)

        def agreement(text: str) -> float:  # summed exactly: what is equal stays so, and goes by its own score
            return fsum(chrf.sentence_score(text, [other]).score * count for other, count in counts.items())

        expected = {text: agreement(text) / len(texts) for text in counts}
        return [expected[text] for text in texts]


@dataclass(frozen=True)
class ReverseModel:
    """Score + weight · (mean log p a token of the source, given the output, by a model the other way).

    Attributes:
        engine: that model. vocabulary: its own.
        source_lang: the language of the sources, if that vocabulary has tags.
        weight: of the reverse score.
    """

    engine: Engine
    vocabulary: ModelVocabulary
    source_lang: str | None = None
    weight: float = 1.0

    def scores(self, engine: Engine, sentences: Sequence[Candidates]) -> list[list[float]]:
        """See `Reranker`; what is too long for the model is cut."""
        longest = self.engine.max_positions - 1
        encode = encoder_for(self.vocabulary, self.source_lang)
        pairs = [(text, one.line) for one in sentences for text in one.texts]
        outputs = [list(encode(text))[:longest] for text, _ in pairs]
        lines = [self.vocabulary.encode_output(line).tolist()[:longest] for _, line in pairs]
        means = iter([sum(log_p) / len(log_p) for log_p in score(self.engine, outputs, lines)])
        return [[found.score + self.weight * next(means) for found in one.hypotheses] for one in sentences]


@dataclass(frozen=True)
class Coverage:
    """Score + weight · Σ over the source's tokens of log min(attention that it got in all, 1) [Wu+16 eq. 14].

    As there it ranks finished hypotheses, so that no step of the search needs attention.

    weight: β.
    """

    weight: float = 0.2

    def scores(self, engine: Engine, sentences: Sequence[Candidates]) -> list[list[float]]:
        """See `Reranker`."""
        sources = [one.source for one in sentences for _ in one.hypotheses]
        outputs = [found.ids for one in sentences for found in one.hypotheses]
        weights = iter(attention(engine, sources, outputs))
        return [[found.score + self.weight * _coverage(next(weights)) for found in one.hypotheses] for one in sentences]


def _coverage(weights: np.ndarray) -> float:
    """At most 0. weights: see `AttentionEngine`."""
    return float(np.log(weights.sum(axis=0, dtype=np.float64).clip(LEAST_COVERAGE, 1.0)).sum())


def reranker_of(
    name: str,
    weight: float | None = None,
    reverse_model: str | Path | None = None,
    source_lang: str | None = None,
) -> Reranker:
    """The reranker of a name.

    Args:
        name: one of `RERANKERS`.
        weight: see `ReverseModel` and `Coverage`; None takes theirs.
        reverse_model: a directory, for `reverse`; opened with the engine that it is for.
        source_lang: see `ReverseModel`.

    Raises:
        InputError: there is no such reranker, or what it needs is not given, or what is given is not for it.
    """
    if name not in RERANKERS:
        raise InputError(
            f"There is no reranker {name!r}: the nearest is {nearest(name, RERANKERS)!r}; there are "
            f"{', '.join(RERANKERS)}."
        )
    if (name == "reverse") != (reverse_model is not None):
        raise InputError("--rerank reverse needs a model the other way (--reverse-model), and nothing else takes one.")
    weights = {} if weight is None else {"weight": weight}
    if name == "mbr":
        if weights:
            raise InputError("--rerank mbr mixes nothing: leave --rerank-weight out.")
        return MinimumBayesRisk()
    if name == "coverage":
        return Coverage(**weights)
    assert reverse_model is not None
    vocabulary = load_vocabulary(reverse_model)
    if vocabulary.needs_source_lang:
        raise InputError("--reverse-model: this one must be told both languages; take one that is told the target's.")
    if vocabulary.languages and source_lang is None:
        raise InputError(
            f"The reverse model has tags: name the language of the sources (--source-lang): "
            f"{', '.join(vocabulary.languages)}."
        )
    encoder_for(vocabulary, source_lang)  # a wrong language is said before anything is translated
    return ReverseModel(load_engine(reverse_model), vocabulary, source_lang, **weights)

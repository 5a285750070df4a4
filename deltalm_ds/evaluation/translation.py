"""Translating test sets and scoring the result, direction by direction."""

import time
from collections.abc import Iterable, Sequence

from deltalm_ds.evaluation.metrics import DEFAULT_METRICS
from deltalm_ds.evaluation.metrics.interface import References
from deltalm_ds.evaluation.scores import DirectionScore, DirectionScorer
from deltalm_ds.evaluation.test_sets import TestSet
from deltalm_ds.generation.interface import Engine, ModelVocabulary, SearchOptions
from deltalm_ds.generation.translate import encoder_for, translate


def make_scorer(test: TestSet, metrics: Iterable[str], tokenizer: str | None = None) -> DirectionScorer:
    """What scores outputs for a test set; errors as `DirectionScorer`."""
    return DirectionScorer(test.direction, References(test.references, test.target_lang, tokenizer), metrics)


def evaluate_directions(
    engine: Engine,
    vocabulary: ModelVocabulary,
    test_sets: Sequence[TestSet],
    options: SearchOptions,
    metrics: Iterable[str] = DEFAULT_METRICS,
    tokenizer: str | None = None,
) -> list[DirectionScore]:
    """Translate each test set (the best hypothesis) and score it.

    Args:
        engine: of a model with this vocabulary.
        options: of the search.
        metrics: names from `METRICS`.
        tokenizer: one of sacreBLEU's, for metrics of words; None takes that of the target language.

    Raises:
        InputError: a target language has no tag in a vocabulary that has tags, or a metric lacks something; before
            anything is translated.
    """
    metrics = tuple(metrics)
    scorers = [make_scorer(test, metrics, tokenizer) for test in test_sets]
    has_languages = bool(vocabulary.languages)
    encoders = [
        encoder_for(vocabulary, test.target_lang if has_languages else None, test.source_lang) for test in test_sets
    ]
    scores = []
    for test, encode, scorer in zip(test_sets, encoders, scorers, strict=True):
        start = time.perf_counter()
        outputs = translate(engine, test.sources, encode, options, what=f"translate {test.direction}")
        hypotheses = [vocabulary.decode(found[0].ids) for found in outputs]
        scores.append(scorer.score(hypotheses, time.perf_counter() - start))
    return scores

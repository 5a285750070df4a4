"""Translating test sets and scoring the result, direction by direction."""

import time
from collections.abc import Callable, Iterable, Sequence

from deltalm_ds.evaluation.metrics import DEFAULT_METRICS
from deltalm_ds.evaluation.scores import DirectionScore, DirectionScorer
from deltalm_ds.evaluation.test_sets import TestSet
from deltalm_ds.generation.interface import Engine, Ids, ModelVocabulary, SearchOptions
from deltalm_ds.generation.translate import chunks_of, encoder_for, no_progress, translate_chunks
from deltalm_ds.progress import Advance, progress


def make_scorer(
    test: TestSet, metrics: Iterable[str], languages: Sequence[str] = (), tokenizer: str | None = None
) -> DirectionScorer:
    """What scores outputs for a test set; errors as `DirectionScorer`.

    Args:
        test: the references, and what else metrics may need.
        metrics: names from `METRICS`.
        languages: those that an output may be in by mistake, such as the vocabulary's; none for any.
        tokenizer: for metrics of words; None takes that of the target language.
    """
    return DirectionScorer(test.direction, test.as_references(tokenizer, languages), metrics)


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
        tokenizer: for metrics of words; None takes that of the target language.

    Raises:
        InputError: a target language has no tag in a vocabulary that has tags, or a metric lacks something; before
            anything is translated.
    """
    metrics = tuple(metrics)
    scorers = [make_scorer(test, metrics, vocabulary.languages, tokenizer) for test in test_sets]
    for test in test_sets:
        check_languages(vocabulary, test)
    scores = []
    for test, scorer in zip(test_sets, scorers, strict=True):
        start = time.perf_counter()
        with progress(f"translate {test.direction}", len(test.sources)) as advance:
            hypotheses = translate_test_set(engine, vocabulary, test, options, advance)
        scores.append(scorer.score(hypotheses, time.perf_counter() - start))
    return scores


def translate_test_set(
    engine: Engine,
    vocabulary: ModelVocabulary,
    test: TestSet,
    options: SearchOptions,
    advance: Advance = no_progress,
) -> list[str]:
    """The best hypothesis for each source.

    Args:
        engine: of a model with this vocabulary.
        test: what to translate.
        options: of the search.
        advance: told how many more are done.

    Raises:
        InputError: the target language has no tag in a vocabulary that has tags.
    """
    encode, what = _encoder(vocabulary, test), f"translate {test.direction}"
    chunks = translate_chunks(engine, chunks_of(test.sources), encode, options, what=what, advance=advance)
    return [vocabulary.decode(found[0].ids) for _, of_chunk in chunks for found in of_chunk]


def check_languages(vocabulary: ModelVocabulary, test: TestSet) -> None:
    """InputError where the vocabulary has no tag for a language that it must be told."""
    _encoder(vocabulary, test)


def _encoder(vocabulary: ModelVocabulary, test: TestSet) -> Callable[[str], Ids]:
    return encoder_for(vocabulary, test.target_lang if vocabulary.languages else None, test.source_lang)

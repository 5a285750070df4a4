"""From lines of text or ids to hypotheses, in batches of sentences of similar length."""

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np

from deltalm_ds.errors import InputError
from deltalm_ds.generation.interface import Engine, Hypothesis, Ids, SearchOptions
from deltalm_ds.progress import Advance, progress
from deltalm_ds.vocabulary import Vocabulary

BATCH_TOKENS = 4096  # source tokens of a batch, times the beam
SENTENCE_COST_TOKENS = 16  # what a sentence costs beside its tokens: logits over the vocabulary for every beam
CHUNK_LINES = 20_000  # lines sorted and translated together: output starts early, memory stays bounded


def translate(
    engine: Engine,
    lines: Sequence[str],
    encode: Callable[[str], Ids],
    options: SearchOptions,
    token_scores: bool = False,
    what: str = "translate",
) -> Iterator[list[Hypothesis]]:
    """The hypotheses of each line, in order, with progress on stderr; an empty line has one empty hypothesis.

    Sources over the model's maximum are cut; how many is said once, on stderr.

    Args:
        encode: line -> ids with the language tag, without `</s>` (see `encoder_for`, `parse_ids`).
        token_scores: every hypothesis has token scores, whatever the engine.
        what: the progress line's name.
    """
    num_cut = 0
    limit = engine.max_positions - 1
    with progress(what, len(lines)) as advance:
        for start in range(0, len(lines), CHUNK_LINES):
            chunk = lines[start : start + CHUNK_LINES]
            sources = [encode(line) if line.strip() else [] for line in chunk]
            num_cut += sum(len(source) > limit for source in sources)
            yield from generate(engine, [source[:limit] for source in sources], options, token_scores, advance)
    if num_cut:
        print(
            f"{what}: {num_cut} of {len(lines)} sources were longer than {limit} tokens and were cut.", file=sys.stderr
        )


def generate(
    engine: Engine,
    sources: Sequence[Ids],
    options: SearchOptions,
    token_scores: bool = False,
    advance: Advance = lambda count: None,
) -> list[list[Hypothesis]]:
    """The hypotheses of each source, in order; an empty source has one empty hypothesis. See `translate`."""
    found: list[list[Hypothesis]] = [[Hypothesis((), 0.0, ())] for _ in sources]
    present = [index for index, source in enumerate(sources) if len(source)]
    advance(len(sources) - len(present))
    costs = [(SENTENCE_COST_TOKENS + len(sources[index])) * options.beam for index in present]
    for batch in batches_by_cost(costs, BATCH_TOKENS):
        members = [present[place] for place in batch]
        batch_sources = [sources[index] for index in members]
        results = engine.generate(batch_sources, options)
        if token_scores:
            results = _with_token_scores(engine, batch_sources, results, options)
        for index, hypotheses in zip(members, results, strict=True):
            found[index] = hypotheses
        advance(len(members))
    return found


def _with_token_scores(
    engine: Engine, sources: Sequence[Ids], results: list[list[Hypothesis]], options: SearchOptions
) -> list[list[Hypothesis]]:
    """Score the hypotheses of an engine whose search gives no token scores, and rank them by that."""
    if all(hypothesis.token_scores is not None for found in results for hypothesis in found):
        return results
    repeated = [source for source, found in zip(sources, results, strict=True) for _ in found]
    outputs = [hypothesis.ids for found in results for hypothesis in found]
    scored = iter(zip(outputs, engine.score(repeated, outputs), strict=True))
    exact = [
        [
            Hypothesis(ids, sum(scores) / len(scores) ** options.length_penalty, tuple(scores))
            for ids, scores in islice(scored, len(found))
        ]
        for found in results
    ]
    return [sorted(found, key=lambda hypothesis: -hypothesis.score) for found in exact]


def batches_by_cost(costs: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of `costs` in batches, dearest first, each of at least one item and at most `budget` when padded."""
    order = np.argsort(-np.asarray(costs, dtype=np.int64), kind="stable").tolist()
    start = 0
    while start < len(order):
        size = max(1, budget // costs[order[start]])
        yield order[start : start + size]
        start += size


def encoder_for(vocabulary: Vocabulary, target_lang: str | None) -> Callable[[str], Ids]:
    """Text -> ids, the target language's tag in front where the vocabulary has tags [FACTS §1].

    Raises:
        InputError: the language is unknown, or none is given where the vocabulary has tags.
    """
    if target_lang is None and vocabulary.languages:
        raise InputError(f"Name the language to translate into (--target-lang): {', '.join(vocabulary.languages)}.")
    tag = [] if target_lang is None else [vocabulary.language_id(target_lang)]
    return lambda line: [*tag, *vocabulary.encode(line).tolist()]


def parse_ids(line: str, vocabulary_size: int) -> list[int]:
    """Space-separated ids -> list; InputError if one is not a number below the vocabulary's size."""
    ids = [int(word) if word.isdecimal() else -1 for word in line.split()]
    if any(not 0 <= token_id < vocabulary_size for token_id in ids):
        raise InputError(f"{line.strip()[:80]!r} are not ids: give numbers from 0 to {vocabulary_size - 1}.")
    return ids

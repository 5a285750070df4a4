"""From lines of text or ids to hypotheses, in batches of sentences of similar length."""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice

import numpy as np

from deltalm_ds.errors import InputError
from deltalm_ds.generation.interface import Engine, Hypothesis, Ids, ModelVocabulary, SearchOptions
from deltalm_ds.progress import Advance, progress
from deltalm_ds.streams import say

SENTENCE_COST_TOKENS = 16  # what a sentence costs beside its tokens: logits over the vocabulary for every beam
CHUNK_LINES = 20_000  # lines sorted and translated together: output starts early, memory stays bounded
NOTHING = Hypothesis((), 0.0, ())  # the translation of nothing
# Letters, marks and symbols by their Unicode category that show nothing: SentencePiece's space, the fillers of Hangul
# and Khmer, the blank of Braille, joiners and variation selectors.
FILLERS = frozenset(
    "\u2581\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
    + "".join(map(chr, [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]))
)


def no_progress(count: int) -> None:
    """An `advance` that shows nothing."""


def translate(
    engine: Engine,
    lines: Sequence[str],
    encode: Callable[[str], Ids],
    options: SearchOptions,
    token_scores: bool = False,
    shows_progress: bool = True,
) -> Iterator[list[Hypothesis]]:
    """The hypotheses of each line, in order; see `translate_chunks`.

    Args:
        encode: line -> ids with the language tag, without `</s>` (see `encoder_for`, `parse_ids`).
        token_scores: see `generate`.
        shows_progress: on stderr.
    """
    with progress("translate", len(lines)) if shows_progress else nullcontext(no_progress) as advance:
        for _, found in translate_chunks(engine, chunks_of(lines), encode, options, token_scores, advance=advance):
            yield from found


def chunks_of(lines: Sequence[str]) -> Iterator[Sequence[str]]:
    """Lines in chunks for `translate_chunks`."""
    return (lines[start : start + CHUNK_LINES] for start in range(0, len(lines), CHUNK_LINES))


def translate_chunks(
    engine: Engine,
    chunks: Iterable[Sequence[str]],
    encode: Callable[[str], Ids],
    options: SearchOptions,
    token_scores: bool = False,
    what: str = "translate",
    advance: Advance = no_progress,
) -> Iterator[tuple[Sequence[str], list[list[Hypothesis]]]]:
    """Each chunk of lines with the hypotheses of each line; a line with nothing to translate has one, which is empty.

    Sources over the model's maximum are cut, and outputs end at the longest that is allowed: how many did is said once,
    at the end, on stderr. The lines of a chunk are sorted by length, and a chunk is translated when it has come.

    Args:
        chunks: lines in order; taken one chunk at a time.
        encode: see `translate`.
        token_scores: see `generate`.
        what: begins the sentences on stderr.
        advance: told how many more lines are translated.
    """
    num_lines = num_cut_sources = num_cut_outputs = 0
    longest = engine.max_positions - 1
    for lines in chunks:
        sources = [encode(line) for line in lines]
        found = generate(engine, [source[:longest] for source in sources], options, token_scores, advance)
        num_lines += len(lines)
        num_cut_sources += sum(len(source) > longest for source in sources)
        num_cut_outputs += sum(hypotheses[0].is_cut for hypotheses in found)
        yield lines, found
    if num_cut_sources:
        message = f"{num_cut_sources} of {num_lines} sources were longer than {longest} tokens and were cut"
        say(f"{message}.", what)
    if num_cut_outputs:
        limit = options.limit(engine.max_positions)
        most = f"{options.max_length_ratio} times their source's" if options.max_length_ratio else limit
        message = f"{num_cut_outputs} of {num_lines} outputs reached the maximum of {most} tokens and were cut"
        hint = f"; the model allows {longest}" if limit < longest else ""
        say(f"{message}{hint}.", what)


def generate(
    engine: Engine,
    sources: Sequence[Ids],
    options: SearchOptions,
    token_scores: bool = False,
    advance: Advance = no_progress,
) -> list[list[Hypothesis]]:
    """The hypotheses of each source, in order; an empty source has one empty hypothesis.

    Args:
        sources: ids with the language tag, without `</s>`, that the model's positions allow.
        token_scores: every hypothesis has token scores, whatever the engine.
        advance: told how many more sources are done.
    """
    found = [[NOTHING] for _ in sources]
    present = [index for index, source in enumerate(sources) if len(source)]
    advance(len(sources) - len(present))
    costs = search_costs([sources[index] for index in present], options)
    for batch in batches_by_cost(costs, engine.batch_tokens):
        members = [present[place] for place in batch]
        batch_sources = [sources[index] for index in members]
        results = engine.generate(batch_sources, options)
        if token_scores:
            results = _with_token_scores(engine, batch_sources, results, options)
        for index, hypotheses in zip(members, results, strict=True):
            found[index] = mark_cuts(hypotheses, options.bounds(len(sources[index]), engine.max_positions)[1])
        advance(len(members))
    return found


def mark_cuts(hypotheses: list[Hypothesis], limit: int) -> list[Hypothesis]:
    """With `is_cut` set, for outputs of at most `limit` tokens."""
    return [replace(one, is_cut=len(one.ids) >= limit) for one in hypotheses]


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


def search_costs(sources: Sequence[Ids], options: SearchOptions) -> list[int]:
    """What to search each source costs, in the unit of `Engine.batch_tokens`."""
    return [(SENTENCE_COST_TOKENS + len(source)) * options.rows for source in sources]


def batches_by_cost(costs: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of `costs` in batches, dearest first, each of at least one item and at most `budget` when padded."""
    order = np.argsort(-np.asarray(costs, dtype=np.int64), kind="stable").tolist()
    start = 0
    while start < len(order):
        size = max(1, budget // costs[order[start]])
        yield order[start : start + size]
        start += size


def encoder_for(
    vocabulary: ModelVocabulary, target_lang: str | None, source_lang: str | None = None
) -> Callable[[str], Ids]:
    """Text -> ids, the tag of the languages in front where the vocabulary has such; no ids for no text.

    There is nothing to translate in a line without tokens of its own, and in one that shows nothing
    (`has_visible_text`): a model would make something up.

    Raises:
        InputError: as `ModelVocabulary.source_tag`.
    """
    tag = vocabulary.source_tag(target_lang, source_lang)

    def encode(line: str) -> Ids:
        ids = vocabulary.encode(line).tolist() if has_visible_text(line) else []
        return [*tag, *ids] if ids else []

    return encode


def has_visible_text(line: str) -> bool:
    """Whether anything is seen of a line: separators, control and format characters and fillers alone do not show."""
    return any(unicodedata.category(character)[0] not in "ZC" and character not in FILLERS for character in line)


def parse_ids(line: str, vocabulary_size: int) -> list[int]:
    """Space-separated ids -> list; InputError if one is not a number below the vocabulary's size."""
    try:
        ids = [int(word) if word.isdecimal() else -1 for word in line.split()]
    except ValueError:  # Python reads no number of thousands of digits
        ids = [-1]
    if any(not 0 <= token_id < vocabulary_size for token_id in ids):
        raise InputError(f"{line.strip()[:80]!r} are not ids: give numbers from 0 to {vocabulary_size - 1}.")
    return ids

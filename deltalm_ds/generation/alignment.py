"""Which part of a source each part of an output is about: the model's own attention, of finished outputs.

An output is given to the model once more, as `score` does it, so that the search stays as it is. What counts is the
last block's cross-attention, the mean of its heads, at the step that predicts a token, as in fairseq and CTranslate2.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltalm_ds.errors import InputError
from deltalm_ds.generation.interface import UNITS, AttentionEngine, Engine, Ids, ModelVocabulary
from deltalm_ds.generation.translate import batches_by_cost
from deltalm_ds.languages import is_within_word
from deltalm_ds.token_ids import EOS_ID, UNK_ID
from deltalm_ds.vocabulary import Vocabulary

COVERED = 0.1  # of what an output's token looks at: a source word that none gives so much is not translated
LINKED = 0.05  # of what a unit of an output looks at: less than this is no link
DIGITS = 4  # of weights in JSON
SPACE = "\u2581"  # what SentencePiece writes for it
_BYTE = re.compile("<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Alignment:
    """What each unit of an output looks at.

    Attributes:
        source: the source's units: words with the white space before them, or pieces; language tag and `</s>` too.
        target: the output's, and `</s>`.
        weights: [target, source] float32; rows add up to 1.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    weights: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        weights = [[round(weight, DIGITS) for weight in row] for row in self.weights.tolist()]
        return {"source": list(self.source), "target": list(self.target), "weights": weights}

    def as_links(self) -> dict[str, Any]:
        """For JSON, as short as the text: [unit of the output, of the source, weight], weights from `LINKED` on."""
        places = np.argwhere(self.weights >= LINKED).tolist()
        links = [[row, column, round(float(self.weights[row, column]), DIGITS)] for row, column in places]
        return {"source": list(self.source), "target": list(self.target), "links": links}


def attention(engine: Engine, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[np.ndarray]:
    """See `AttentionEngine`, in batches of similar length.

    Raises:
        InputError: the engine does not show it.
    """
    if not isinstance(engine, AttentionEngine):
        raise InputError(f"--alignments: {type(engine).__name__} does not show what its outputs look at; leave it out.")
    found = [np.empty(0)] * len(sources)
    costs = [len(source) + len(target) + 2 for source, target in zip(sources, targets, strict=True)]
    for batch in batches_by_cost(costs, engine.batch_tokens):
        weights = engine.attention([sources[i] for i in batch], [targets[i] for i in batch])
        for index, of_pair in zip(batch, weights, strict=True):
            found[index] = of_pair
    return found


def check_unit(name: str) -> None:
    """Refuse what is none of `UNITS`.

    Raises:
        InputError: it is none.
    """
    if name not in UNITS:
        raise InputError(f"Alignments are between {' or '.join(UNITS)}, not {name!r}.")


def with_units(vocabulary: ModelVocabulary) -> Vocabulary:
    """The same, if it can say which units tokens are of.

    Raises:
        InputError: it is of a model that is not ours.
    """
    if not isinstance(vocabulary, Vocabulary):
        raise InputError("--alignments are shown of our own models only, and this one is not: leave it out.")
    return vocabulary


def alignment(vocabulary: Vocabulary, source: Ids, target: Ids, weights: np.ndarray, unit: str) -> Alignment:
    """Attention with the units that it is between.

    Of a word's pieces, a source's share is the sum and an output's the mean.

    Args:
        source, target: ids without `</s>`.
        weights: see `AttentionEngine`.
        unit: one of `UNITS`.
    """
    find = words if unit == "words" else pieces
    sides = [find(vocabulary, [*ids, EOS_ID]) for ids in (source, target)]
    columns, rows = ([place.start for _, place in units] for units in sides)
    summed = np.add.reduceat(weights, columns, axis=1)
    lengths = np.array([place.stop - place.start for _, place in sides[1]], dtype=np.float32)
    merged = np.add.reduceat(summed, rows, axis=0) / lengths[:, None]
    names = [tuple(text for text, _ in units) for units in sides]
    return Alignment(names[0], names[1], merged)


def uncovered(vocabulary: Vocabulary, source: Ids, weights: np.ndarray) -> list[str]:
    """Words of the source to which no token of the output gives `COVERED` of its attention."""
    if len(weights) <= 1:  # nothing but `</s>`
        return []
    found = []
    for text, place in words(vocabulary, source):
        is_text = all(map(vocabulary.is_piece, source[place])) and UNK_ID not in source[place]
        if is_text and any(map(str.isalnum, text)) and weights[:, place].sum(axis=1).max() < COVERED:
            found.append(text.strip())
    return found


Unit = tuple[str, slice]  # a text, and which tokens it is of


def pieces(vocabulary: Vocabulary, ids: Ids) -> list[Unit]:
    """Each token by its name."""
    return [(vocabulary.token(token), slice(place, place + 1)) for place, token in enumerate(ids)]


def words(vocabulary: Vocabulary, ids: Ids) -> list[Unit]:
    """The tokens in words, as far as a word's ends are those of pieces, with the white space before each.

    A punctuation mark is a word, and so is, in scripts without spaces, a piece; what is no piece of text stands alone.
    """
    found: list[Unit] = []
    last = ""  # the text that the next piece may go on with
    for text, place in _texts(vocabulary, ids):
        if last.isspace() or is_within_word(last[-1:], text[:1]):
            before, begun = found.pop()
            found.append((before + text, slice(begun.start, place.stop)))
        else:
            found.append((text, place))
        last = text if vocabulary.is_piece(ids[place.start]) else ""
    return found


def _texts(vocabulary: Vocabulary, ids: Ids) -> list[Unit]:
    """Each token's own text, but of pieces of single bytes that of all that follow each other."""
    found: list[Unit] = []
    run = bytearray()
    for place, token in enumerate(ids):
        name = vocabulary.token(token)
        byte = _BYTE.fullmatch(name)
        if byte and run:
            run.append(int(byte[1], 16))
            found[-1] = (run.decode(errors="replace"), slice(found[-1][1].start, place + 1))
            continue
        run = bytearray([int(byte[1], 16)]) if byte else bytearray()
        text = run.decode(errors="replace") if byte else name
        is_text = vocabulary.is_piece(token) and token != UNK_ID
        found.append((text.replace(SPACE, " ") if is_text else text, slice(place, place + 1)))
    return found

"""Sentences whose markup, or what is protected in them, finds no place in the whole translation: piece by piece."""

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

from deltalm_ds.generation.documents.markup import Stretch
from deltalm_ds.generation.documents.passages import KEPT

Candidates = Callable[[Sequence[str]], Sequence[Sequence[str]]]
"""Translations of each of some texts, best first; texts are not empty and none comes twice."""


def translations(candidates: Candidates, texts: Iterable[str]) -> Mapping[str, Sequence[str]]:
    """The candidates of each text; none where the model gives nothing that is seen."""
    different = list(dict.fromkeys(texts))
    found = candidates(different) if different else []
    return {
        text: [candidate.strip() for candidate in of_text if candidate.strip()]
        for text, of_text in zip(different, found, strict=True)
    }


def written_in_pieces(sentences: Sequence[Stretch], candidates: Candidates) -> tuple[dict[Stretch, str], int]:
    """Each sentence as its document writes it, and how many pieces got no translation and stand as they were.

    What is between markup is translated alone, and what is kept is copied.
    """
    pieces = {sentence: [part for piece in sentence.parts() for part in _trimmed(piece)] for sentence in sentences}
    texts = (piece.text for parts in pieces.values() for piece in parts if has_letters(piece))
    found = translations(candidates, texts)
    num_untranslated = 0

    def written(piece: Stretch) -> str:
        nonlocal num_untranslated
        translation = next(iter(found.get(piece.text, ())), None)
        if translation is None:
            num_untranslated += has_letters(piece)
            return piece.same()
        whole = piece.written_as(translation, {})
        assert whole is not None  # nothing in it has to be found
        return whole

    return {sentence: "".join(map(written, parts)) for sentence, parts in pieces.items()}, num_untranslated


def has_letters(stretch: Stretch) -> bool:
    """Whether there is something to translate: a letter that is not part of what is kept."""
    kept = [stretch.passage.marks[number] for number in stretch.numbers]
    hidden = {place for mark in kept if mark.kind == KEPT for place in range(mark.start, mark.end)}
    return any(
        unicodedata.category(character)[0] == "L"
        for place, character in enumerate(stretch.text, start=stretch.start)
        if place not in hidden
    )


def _trimmed(piece: Stretch) -> list[Stretch]:
    """A piece without the white space around it, and that white space; what is kept is whole."""
    if piece.is_kept:
        return [piece]
    core = piece.text.strip()
    start = piece.start + len(piece.text) - len(piece.text.lstrip())
    places = {start, start + len(core)} - {piece.start, piece.end} if core else set()
    return piece.divided(sorted(places))

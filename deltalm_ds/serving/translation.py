"""The texts of a request to their translations, sentence by sentence, in a thread of its own."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deltalm_ds.generation.alignment import alignment, with_units
from deltalm_ds.generation.documents import FORMATS
from deltalm_ds.generation.documents.translate import Counts, TranslatedDocument
from deltalm_ds.generation.interface import Hypothesis, Ids
from deltalm_ds.generation.translate import encoder_for
from deltalm_ds.generation.translator import longest_part
from deltalm_ds.serving.batching import How, Ticket
from deltalm_ds.serving.models import Model


@dataclass(frozen=True)
class Sentence:
    """A sentence, or a part of one that is too long, without its markup, and its hypotheses, best first.

    Attributes:
        source: what was translated.
        hypotheses, texts: as many as the beam.
        alignments: of the first of these, for JSON, if they are wished for and all sentences are found.
    """

    source: str
    hypotheses: list[Hypothesis]
    texts: list[str]
    alignments: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Translation:
    """A text in another language.

    Attributes:
        texts: the translation and its alternatives: each has the next best hypothesis of each sentence that has one.
        sentences: each different one, in order.
        counts: what was done.
    """

    texts: list[str]
    sentences: list[Sentence]
    counts: Counts


@dataclass(frozen=True)
class Wish:
    """How texts are to be translated.

    Attributes:
        target: the model's code of the language to translate into; None where it has no tags.
        source: a code, by whose rules sentences end; None goes by the script.
        format: one of `FORMATS` that is text.
        num_texts: translations of each text, at most as many as the beam.
        how: to search, with as many hypotheses as the beam.
        alignments: what they are between, one of `UNITS`; None: there are none.
    """

    target: str | None
    source: str | None
    format: str
    num_texts: int
    how: How
    alignments: str | None = None


Heard = Callable[[int, Sentence], None]


def translate_texts(
    model: Model,
    texts: Sequence[str],
    wish: Wish,
    ticket: Ticket,
    on_sentence: Heard = lambda number, sentence: None,
) -> list[Translation]:
    """Translate texts of any length; layout and markup are kept (see `TranslatedDocument`).

    Args:
        model: in use.
        texts: to translate.
        wish: how.
        ticket: by which the request can be given up.
        on_sentence: told each text's number and each of its sentences in order, when its hypotheses are there.

    Raises:
        InputError: a text is not in that format, or the source is no language code.
        CancelledError: the ticket was.
    """
    sentences = _Sentences(model, wish, ticket)
    documents = [sentences.document(text, 0) for text in texts]
    names = [document.sentences for document in documents]
    coming = sentences.find(list(dict.fromkeys(name for of_text in names for name in of_text)))
    for number, of_text in enumerate(names):
        for name in of_text:
            while name not in sentences.found:
                next(coming)
            on_sentence(number, sentences.found[name])
    if wish.alignments:
        sentences.align(wish.alignments)
    translations = []
    for text, document, of_text in zip(texts, documents, names, strict=True):
        others = (sentences.document(text, place) for place in range(1, wish.num_texts))
        written = [one.write().decode() for one in (document, *others)]
        translations.append(Translation(written, [sentences.found[name] for name in of_text], document.counts))
    return translations


class _Sentences:
    """What a request has translated so far, by source."""

    def __init__(self, model: Model, wish: Wish, ticket: Ticket) -> None:
        self.found: dict[str, Sentence] = {}
        self._model, self._wish, self._ticket = model, wish, ticket
        self._encode = encoder_for(model.vocabulary, wish.target, wish.source)
        self._most = longest_part(model.engine, wish.how.options)

    def find(self, sources: Sequence[str]) -> Iterator[None]:
        """Translate those that are not found yet, one at each step."""
        new = [source for source in sources if source not in self.found]
        ids = [self._encode(source) for source in new]
        for source, hypotheses in zip(new, self._model.hypotheses(ids, self._wish.how, self._ticket), strict=True):
            outputs = [self._model.vocabulary.decode(hypothesis.ids) for hypothesis in hypotheses]
            self.found[source] = Sentence(source, hypotheses, outputs)
            yield

    def align(self, unit: str) -> None:
        """Align as many hypotheses of each sentence that is found as there are to be translations of a text."""
        vocabulary, num = self._model.vocabulary, self._wish.num_texts
        sources = {name: self._model.cut(self._encode(name)) for name in self.found}
        pairs = [(name, one.ids) for name, sentence in self.found.items() for one in sentence.hypotheses[:num]]
        found: dict[tuple[str, Ids], dict[str, Any]] = {}
        all_sources, targets = [sources[name] for name, _ in pairs], [ids for _, ids in pairs]
        for index, weights in self._model.attention(all_sources, targets, self._ticket):
            name, ids = pairs[index]
            found[name, ids] = alignment(with_units(vocabulary), sources[name], ids, weights, unit).as_links()
        for name, sentence in self.found.items():
            alignments = tuple(found[name, one.ids] for one in sentence.hypotheses[:num])
            self.found[name] = replace(sentence, alignments=alignments)

    def document(self, text: str, place: int) -> TranslatedDocument:
        """The text to be translated, in which the hypothesis at this place comes first."""

        def candidates(sources: Sequence[str]) -> list[list[str]]:
            for _ in self.find(sources):
                pass
            return [_moved(self.found[source].texts, place) for source in sources]

        def fits(part: str) -> bool:
            return len(self._encode(part)) <= self._most

        document = FORMATS[self._wish.format].read(text.encode())
        return TranslatedDocument(document, candidates, fits, self._wish.source, self._wish.target)


def _moved(texts: Sequence[str], place: int) -> list[str]:
    """The texts, that at the place first, or the last where there are fewer."""
    place = min(place, len(texts) - 1)
    return [texts[place], *texts[:place], *texts[place + 1 :]]

"""Translating a document: its passages sentence by sentence, in batches over all of it, nothing lost."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from deltalm_ds.generation.documents.markup import Stretch
from deltalm_ds.generation.documents.passages import KEPT, Document, Passage
from deltalm_ds.generation.documents.pieces import Candidates, has_letters, translations, written_in_pieces
from deltalm_ds.generation.documents.protected import IN_DOCUMENTS, pattern_of, protect
from deltalm_ds.generation.documents.sentences import cut, language_of, sentence_space, split_sentences


@dataclass
class Counts:
    """What was done with a document.

    Attributes:
        passages: paragraphs, headings, cells and the like with something to translate.
        sentences: in them.
        cut: of these, those that were too long for the model. parts: what these were cut into.
        divided: sentences, or such parts, that were translated in pieces, as their markup found no place in the whole.
        untranslated: that the model gave nothing for: they stand as they were.
        faulty: translations that have not all that a glossary asks for, or something banned.
    """

    passages: int = 0
    sentences: int = 0
    cut: int = 0
    parts: int = 0
    divided: int = 0
    untranslated: int = 0
    faulty: int = 0

    def __str__(self) -> str:
        counted = (self.passages, "passage"), (self.sentences, "sentence")
        text = ", ".join(f"{number} {name}{'' if number == 1 else 's'}" for number, name in counted)
        if self.cut:
            text += f"; {self.cut} too long for the model, cut into {self.parts} parts"
        if self.divided:
            text += f"; {self.divided} translated in pieces, to keep what is marked up in them"
        if self.untranslated:
            text += f"; {self.untranslated} left as in the source, for want of a translation"
        if self.faulty:
            text += f"; {self.faulty} without all that was asked for"
        return f"{text}."


class TranslatedDocument:
    """A document as it is translated.

    Args:
        document: what is translated.
        candidates: translations of each of some texts, best first; texts are not empty and none comes twice.
        fits: whether a text is short enough to be translated whole.
        source_lang: a language code, to split into sentences by; None takes one that is written in this script.
        target_lang: a language code, by which sentences are joined; None joins them as the source does.
        protected: what is copied as it is: names from `protected.PATTERNS`.

    Raises:
        InputError: a code is none, or there is no such kind of text to protect.
    """

    def __init__(
        self,
        document: Document,
        candidates: Candidates,
        fits: Callable[[str], bool],
        source_lang: str | None = None,
        target_lang: str | None = None,
        protected: Iterable[str] = IN_DOCUMENTS,
    ) -> None:
        self.counts = Counts()
        self._document, self._candidates, self._fits = document, candidates, fits
        self._protected = pattern_of(protected)
        self._language = source_lang or language_of([passage.text for passage in document.passages])
        self._space = sentence_space(self._language)
        self._target_space = sentence_space(target_lang) if target_lang else self._space

    def write(self) -> bytes:
        """The translated document; see `counts` afterwards."""
        written = self._translated(self._sentences)
        return self._document.write([self._joined(stretches, written) for stretches in self._stretches])

    @property
    def sentences(self) -> list[str]:
        """The different sentences, or parts of such, in order: what `candidates` is asked for first."""
        return list(dict.fromkeys(sentence.text for sentence in self._sentences))

    @cached_property
    def _stretches(self) -> list[list[Stretch]]:
        return [self._divided(protect(passage, self._protected)) for passage in self._document.passages]

    @cached_property
    def _sentences(self) -> list[Stretch]:
        return [stretch for stretches in self._stretches for stretch in stretches if has_letters(stretch)]

    def _divided(self, passage: Passage) -> list[Stretch]:
        """A passage in sentences, or parts of such, and the white space between."""
        whole = [(mark.start, mark.end) for mark in passage.marks if mark.kind == KEPT]
        all_of_it = Stretch(passage, 0, len(passage.text), tuple(range(len(passage.marks))))
        if not has_letters(all_of_it):
            return [all_of_it]
        self.counts.passages += 1
        parts = []
        for span in split_sentences(passage.text, self._language, whole):
            found = cut(passage.text, span, self._fits, whole)
            self.counts.sentences += 1
            self.counts.cut += len(found) > 1
            self.counts.parts += len(found) if len(found) > 1 else 0
            parts += found
        places = {place for part in parts for place in part} - {0, len(passage.text)}
        return all_of_it.divided(sorted(places))

    def _translated(self, sentences: Sequence[Stretch]) -> dict[Stretch, str]:
        """Each sentence as the document writes its translation: in one piece if its markup finds its places there."""
        found = translations(self._candidates, (sentence.text for sentence in sentences))
        spans = [text.strip() for sentence in sentences for text in sentence.spans.values()]
        of_spans = translations(self._candidates, filter(None, spans))
        written, others = {}, []
        for sentence in sentences:
            if not found[sentence.text]:
                self.counts.untranslated += 1
                written[sentence] = sentence.same()
                continue
            named = {
                number: next(iter(of_spans.get(text.strip(), ())), text) for number, text in sentence.spans.items()
            }
            attempts = (sentence.written_as(text, named) for text in found[sentence.text])
            whole = next((attempt for attempt in attempts if attempt is not None), None)
            if whole is None:
                others.append(sentence)
            else:
                written[sentence] = whole
        self.counts.divided += len(others)
        in_pieces, num_untranslated = written_in_pieces(others, self._candidates)
        self.counts.untranslated += num_untranslated
        return written | in_pieces

    def _joined(self, stretches: Sequence[Stretch], written: Mapping[Stretch, str]) -> str:
        """A passage again: what the source language has between sentences becomes what the target language has."""
        parts, after_sentence = [""], False
        for stretch in stretches:
            is_sentence = bool(stretch.text.strip())
            raw = written[stretch] if stretch in written else stretch.same()
            if not is_sentence and raw == self._space:
                raw = self._target_space
            elif is_sentence and after_sentence and not self._space and not parts[-1][-1:].isspace():
                raw = self._target_space + raw
            parts.append(raw)
            after_sentence = is_sentence
        return "".join(parts)

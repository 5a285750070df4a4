"""Terms and the forms that they must have in the target language."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deltalm_ds.errors import InputError
from deltalm_ds.generation.interface import Engine, Hypothesis, Ids, SearchOptions
from deltalm_ds.generation.phrases import Phrase, normal, read_phrase
from deltalm_ds.generation.score import score
from deltalm_ds.generation.translate import generate
from deltalm_ds.languages import is_unspaced, is_within_word, is_word_character
from deltalm_ds.lines import numbered_lines

CLOSING = ".!?…。！？।"  # what ends a sentence


class Glossary:
    """Terms with the form that each must have in an output whose source has the term.

    Args:
        forms: by term.
    """

    def __init__(self, forms: dict[Phrase, Phrase]) -> None:
        longest_first = sorted(forms, key=lambda term: (-len(term.text), not term.has_capitals))
        self._rows = [(term, term.text.lower(), forms[term]) for term in longest_first]

    @classmethod
    def read(cls, path: Path) -> "Glossary":
        """A file of lines `term<TAB>form`.

        Raises:
            InputError: a line has another number of columns or an empty one, or a term has two forms.
        """
        forms: dict[Phrase, Phrase] = {}
        line_of: dict[Phrase, int] = {}
        for number, line in numbered_lines(path):
            columns = line.split("\t")
            if len(columns) != 2:
                raise InputError(
                    f"{path}, line {number}: found {len(columns)} columns, expected 2: a term, a tab and its form."
                )
            term, form = map(read_phrase, columns)
            if term is None or form is None:
                raise InputError(f"{path}, line {number}: the {'form' if term else 'term'} is empty.")
            if forms.setdefault(term, form) != form:
                raise InputError(
                    f"{path}, line {number}: the term {term.written!r} has the form {form.written!r}, and in line "
                    f"{line_of[term]} {forms[term].written!r}: leave one of them out."
                )
            line_of.setdefault(term, number)
        return cls(forms)

    def forms_of(self, source: str) -> list[Phrase]:
        """The forms that an output must have: of the terms in its source, the longest where several overlap."""
        source = normal(source)
        small = source.lower()
        taken: list[tuple[int, int]] = []
        found: dict[Phrase, int] = {}
        for term, text, form in self._rows:
            if text not in small:  # most are not: looked at before words are
                continue
            for start, end in term.spans(source):
                if all(end <= begin or stop <= start for begin, stop in taken):
                    taken.append((start, end))
                    found[form] = min(start, found.get(form, start))
        return sorted(found, key=lambda form: found[form])


def missing(forms: Sequence[Phrase], output: str) -> list[Phrase]:
    """Those of the forms that an output has not got."""
    output = normal(output)
    return [form for form in forms if not form.occurs(output)]


@dataclass(frozen=True)
class Forcing:
    """Outputs that are made to have what they lack, with any engine.

    Where it is most probable, a form is put in place of how the output went on there; that is a prefix, from which the
    model searches on. A form that should come before one that is forced already cannot be: they are taken from left to
    right.

    Attributes:
        encode: text of the target language -> ids. decode: the reverse.
        options: of the search.
    """

    engine: Engine
    encode: Callable[[str], Ids]
    decode: Callable[[Ids], str]
    options: SearchOptions

    def force(self, source: Ids, output: str, forms: Sequence[Phrase]) -> Hypothesis | None:
        """An output with as many of the forms as can be forced; None if none can.

        Args:
            source: with its language tag.
            output: that lacks at least one of them.
            forms: see `Glossary.forms_of`.
        """
        begin = len(self.decode(self.options.prefix)) if self.options.prefix else 0
        best, lacking = None, missing(forms, output)
        while lacking:
            prefix = self._prefix(source, output, begin, lacking)
            if prefix is None:
                break
            text, ids = prefix
            options = replace(self.options, prefix=ids, n_best=1)
            ((found,),) = generate(self.engine, [source], options, token_scores=True)
            output = self.decode(found.ids)
            still = missing(forms, output)
            if len(still) >= len(lacking):
                break
            best, lacking, begin = found, still, len(text)
        return best

    def _prefix(
        self, source: Ids, output: str, begin: int, forms: Sequence[Phrase]
    ) -> tuple[str, tuple[int, ...]] | None:
        """Of each form its most probable place behind `begin`, and of these the first, as text and ids."""
        limit = self.options.limit(self.engine.max_positions)
        befores = [output[:place].rstrip() for place in _places(output, begin)]
        tried = []
        for form in forms:
            texts = [(before, _joined(before, form.text)) for before in befores]
            encoded = [(before, text, tuple(self.encode(text))) for before, text in texts]
            fitting = [one for one in encoded if len(one[2]) < limit]
            scores = score(self.engine, [source] * len(fitting), [ids for *_, ids in fitting])
            of_form = [
                sum(log_p[len(self.encode(before)) : -1]) for (before, *_), log_p in zip(fitting, scores, strict=True)
            ]
            if of_form:
                tried.append(fitting[of_form.index(max(of_form))])
        if not tried:
            return None
        _, text, ids = min(tried, key=lambda one: len(one[0]))
        return text, ids


def _places(text: str, begin: int) -> list[int]:
    """Where a word can begin in a text from `begin` on: before each, and at the end, but for what ends a sentence."""
    end = len(text.rstrip(CLOSING))
    starts = [
        place
        for place in range(begin, len(text))
        if is_word_character(text[place]) and not is_within_word(text[place - 1 : place] if place else "", text[place])
    ]
    return [*starts, max(end, begin)]


def _joined(before: str, form: str) -> str:
    """A text that goes on with a form: with a space between words that have such."""
    opens = unicodedata.category(before[-1:] or "(") in ("Ps", "Pi")
    bare = opens or is_unspaced(before[-1]) or is_unspaced(form[0])
    return before + form if bare else f"{before} {form}"

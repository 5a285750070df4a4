"""Terms and the forms that they must have in the target language."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from deltalm_ds.errors import InputError
from deltalm_ds.generation.interface import Engine, Hypothesis, Ids, SearchOptions
from deltalm_ds.generation.phrases import Phrase, normal, read_phrase
from deltalm_ds.generation.score import score
from deltalm_ds.generation.translate import generate
from deltalm_ds.languages import is_unspaced, is_within_word, is_word_character
from deltalm_ds.lines import numbered_lines

PLACES = 4  # for a form that are tried
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
    model searches on. Of `PLACES` such places the one whose output scores best is taken. Forms are taken from left to
    right, each behind the one before.

    Attributes:
        engine: what runs the model.
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
            found = [self._forced(source, prefix) for prefix in self._prefixes(source, output, begin, lacking)]
            better = [one for one in found if len(missing(forms, one.text)) < len(lacking)]
            if not better:
                break
            best = max(better, key=lambda one: one.hypothesis.score)
            output, lacking, begin = best.text, missing(forms, best.text), len(best.prefix)
        return best.hypothesis if best else None

    def _forced(self, source: Ids, prefix: str) -> "_Forced":
        options = replace(self.options, prefix=tuple(self.encode(prefix)), n_best=1)
        ((hypothesis,),) = generate(self.engine, [source], options, token_scores=True)
        return _Forced(prefix, hypothesis, self.decode(hypothesis.ids))

    def _prefixes(self, source: Ids, output: str, begin: int, forms: Sequence[Phrase]) -> list[str]:
        """The output up to the most probable places, behind `begin`, of the form that comes first, and that form."""
        befores = [output[:place].rstrip() for place in _places(output, begin)]
        ranked = [found for form in forms if (found := self._ranked(source, befores, form))]
        return [_joined(*one) for one in min(ranked, key=lambda found: len(found[0][0]), default=[])]

    def _ranked(self, source: Ids, befores: Sequence[str], form: Phrase) -> list[tuple[str, str]]:
        """What comes before a form, and the form, at its most probable places, the best first."""
        limit = self.options.limit(self.engine.max_positions)
        with_form = [tuple(self.encode(_joined(before, form.text))) for before in befores]
        fitting = [number for number, ids in enumerate(with_form) if len(ids) < limit]
        scores = score(self.engine, [source] * len(fitting), [with_form[number] for number in fitting])
        log_p = {
            number: sum(token_scores[len(self.encode(befores[number])) : -1])
            for number, token_scores in zip(fitting, scores, strict=True)
        }
        return [(befores[number], form.text) for number in sorted(fitting, key=lambda number: -log_p[number])][:PLACES]


class _Forced(NamedTuple):
    """A hypothesis that was searched for from a prefix, and its text."""

    prefix: str
    hypothesis: Hypothesis
    text: str


def _places(text: str, begin: int) -> list[int]:
    """Where a word can go in a text: at `begin`, before each word behind it, and at the end, before its full stop."""
    starts = {
        place
        for place in range(begin + 1, len(text))
        if is_word_character(text[place]) and not is_within_word(text[place - 1], text[place])
    }
    return sorted({begin, *starts, max(begin, len(text.rstrip(CLOSING)))})


def _joined(before: str, form: str) -> str:
    """A text that goes on with a form: with a space between words that have such."""
    opens = unicodedata.category(before[-1:] or "(") in ("Ps", "Pi")
    bare = opens or is_unspaced(before[-1]) or is_unspaced(form[0])
    return before + form if bare else f"{before} {form}"

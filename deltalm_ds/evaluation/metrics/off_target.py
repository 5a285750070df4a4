"""Off-target rate: outputs that are in another language than the one asked for."""

import unicodedata
from collections.abc import Callable, Collection, Sequence
from copy import copy
from functools import cache
from importlib.metadata import version
from typing import Any

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics.interface import (
    LANGUAGE,
    Metric,
    References,
    Score,
    Scorer,
    package_for,
    share_score,
)
from deltalm_ds.languages import read_code, scripts_of

CALIBRATED = 1_000  # references that are looked at for the rate of mistakes
NO_LANGUAGE = "zxx"  # a label of py3langid


def scorer(references: References) -> Scorer:
    """The share in percent of outputs in another script or, by py3langid, another of the languages than the target's.

    An output without letters is in none. Of a language that py3langid does not know only the script is looked at. What
    the same test says of references is its own rate of mistakes, which the note tells.

    Raises:
        InputError: the package is missing, or neither it nor the table of scripts knows the language.
    """
    assert references.language is not None
    package_for("off_target", "py3langid")
    target = references.language
    wanted = read_code(target).language
    others = frozenset(read_code(code).language for code in references.languages if code != target) - {wanted}
    is_known = any(read_code(label).language == wanted for label in _labels())
    is_foreign = _by_script(target, is_known)
    candidates = frozenset(x for x in _labels() if not others or read_code(x).language in {wanted, *others})
    identifier = _identifier_among(candidates) if is_known else None

    def is_off(text: str) -> bool:
        if not any(map(str.isalpha, text)):
            return False
        if is_foreign(text) or identifier is None:
            return is_foreign(text)
        return read_code(identifier.classify(text)[0]).language != wanted

    means = f"py3langid-{version('py3langid')}+script" if is_known else "script"
    signature = f"lang:{target}|among:{len(candidates) if is_known else 'scripts'}|by:{means}"

    def score(outputs: Sequence[str]) -> Score:
        return share_score([is_off(output) for output in outputs], signature)

    return Scorer(score, _note(references.texts[:CALIBRATED], is_off, target, is_known))


def _note(texts: Sequence[str], is_off: Callable[[str], bool], target: str, is_known: bool) -> str:
    notes = []
    if not is_known:
        notes.append(f"py3langid does not know {target}: off-target is what is written in another script.")
    if count := sum(map(is_off, texts)):
        notes.append(f"{count} of {len(texts)} references count as off-target, the test's own rate of mistakes.")
    return " ".join(notes)


def _by_script(target: str, is_known: bool) -> Callable[[str], bool]:
    """Whether most letters of a text are of no script of the language; never, where its script is not known."""
    try:
        scripts = frozenset(scripts_of(target))
    except InputError as error:
        if is_known:
            return lambda text: False
        raise InputError(f"off_target cannot tell {target!r} from other languages: {error}") from None
    return lambda text: _share_of(text, scripts) < 0.5


def _share_of(text: str, scripts: Collection[str]) -> float:
    """Of a text's letters, those of the scripts; 1 without any."""
    letters = [_script(character) for character in text if character.isalpha()]
    return sum(script in scripts for script in letters) / len(letters) if letters else 1.0


@cache
def _script(letter: str) -> str:
    """The first word of the letter's Unicode name."""
    return unicodedata.name(letter, "UNKNOWN").replace("-", " ").split()[0]


@cache
def _identifier() -> Any:
    """py3langid with all of its labels; loading takes a second."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)


def _identifier_among(labels: Collection[str]) -> Any:
    """py3langid with some of its labels."""
    identifier = copy(_identifier())
    identifier.set_languages(labels)
    return identifier


@cache
def _labels() -> tuple[str, ...]:
    """The languages that py3langid knows."""
    return tuple(label for label in _identifier().labels if label != NO_LANGUAGE)


METRIC = Metric("off_target", "off-target", higher_is_better=False, scorer=scorer, needs=(LANGUAGE,))

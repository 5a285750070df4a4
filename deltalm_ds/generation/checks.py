"""What looks wrong in an output beside its source, without a reference: hints for whoever reads them, not verdicts."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from deltalm_ds.errors import InputError
from deltalm_ds.generation.interface import Ids
from deltalm_ds.languages import LETTERS_OF_SCRIPT, main_script, scripts_of

LENGTH_RATIOS = (0.4, 2.5)  # tokens out to tokens in; a vocabulary of many languages cuts them alike
SHORT_TOKENS = 8  # a difference up to this says nothing, whatever the ratio
LONGEST_PERIOD = 8  # tokens of what repeats
REPEATS = 3  # times in a row
REPEATED_TOKENS = 6  # together, at least
COPIED_TOKENS = 4  # shorter outputs may well be their source, or in another script: names
UNKNOWN_SHARE = 0.25  # of a source's tokens; some sign or other may be unknown in any text
_DIGITS = re.compile(r"\d+")


def findings(
    source: str,
    output: str,
    source_ids: Ids,
    output_ids: Ids,
    uncovered: Sequence[str] = (),
    languages: tuple[str | None, str | None] = (None, None),
    num_unknown: int = 0,
) -> list[str]:
    """What looks wrong, in a few words each; empty where nothing does.

    Looked at are the scripts and what the model cannot read, the length, what repeats, outputs that are their source,
    sentences and numbers that are missing.

    Args:
        source: a line.
        output: its translation.
        source_ids: tokens of the line; whether the language tag is one of them does not matter.
        output_ids: tokens of the translation.
        uncovered: words of the source that no token of the translation looks at (`alignment.uncovered`).
        languages: codes of the output's and the source's, as far as they are known.
        num_unknown: tokens of the source that are `<unk>`.
    """
    target_lang, source_lang = languages
    checks = (
        _script("source", source, len(source_ids), source_lang),
        _unknown(num_unknown, len(source_ids)),
        _script("output", output, len(output_ids), target_lang),
        _length(len(source_ids), len(output_ids)),
        _repetition(source_ids, output_ids),
        "copied" if len(source_ids) >= COPIED_TOKENS and output.split() == source.split() else None,
        _sentences(source, output),
        _numbers(source, output),
        f"uncovered: {' '.join(uncovered)}" if uncovered else None,
    )
    return [check for check in checks if check]


def _script(side: str, text: str, num_tokens: int, language: str | None) -> str | None:
    """Whether most letters are of a script that the language is not written in; nothing where either is unclear."""
    script = main_script([text]) if language and num_tokens >= COPIED_TOKENS else None
    if script is None or language is None:
        return None
    try:
        is_usual = not set(LETTERS_OF_SCRIPT[script]).isdisjoint(scripts_of(language))
    except InputError:  # its script is not known
        return None
    return None if is_usual else f"{side} in the script {script}, not that of {language}"


def _unknown(num_unknown: int, num_source: int) -> str | None:
    return f"unknown {num_unknown} of {num_source} tokens" if num_unknown > UNKNOWN_SHARE * num_source else None


def _length(num_source: int, num_output: int) -> str | None:
    ratio = num_output / max(num_source, 1)
    is_usual = LENGTH_RATIOS[0] <= ratio <= LENGTH_RATIOS[1] or abs(num_output - num_source) <= SHORT_TOKENS
    return None if is_usual else f"length {num_source} to {num_output} tokens"


def _repetition(source_ids: Ids, output_ids: Ids) -> str | None:
    count = _longest_run(output_ids)
    return f"repeats {count} tokens" if count and not _longest_run(source_ids) else None


def _longest_run(ids: Ids) -> int:
    """The most tokens that are one thing, of up to `LONGEST_PERIOD` tokens, several times in a row; else 0."""
    longest = 0
    for period in range(1, LONGEST_PERIOD + 1):
        same = 0
        for place in range(period, len(ids)):
            same = same + 1 if ids[place] == ids[place - period] else 0
            length = same + period if same else 0
            if length >= max(REPEATS * period, REPEATED_TOKENS):
                longest = max(longest, length)
    return longest


def _sentences(source: str, output: str) -> str | None:
    """Models that were trained on sentences may leave all but the first out."""
    num_source, num_output = _num_sentences(source), _num_sentences(output)
    return f"sentences {num_source} to {num_output}" if max(num_output, 1) < num_source else None


def _num_sentences(text: str) -> int:
    import sentencex  # only here: lines are translated without it

    return sum(any(map(str.isalpha, sentence)) for sentence in sentencex.segment("en", text))


def _numbers(source: str, output: str) -> str | None:
    missing = _numbers_of(source) - _numbers_of(output)
    return f"numbers missing: {' '.join(sorted(missing.elements()))}" if missing else None


def _numbers_of(text: str) -> Counter[str]:
    """Runs of digits, of any script; what divides thousands and fractions differs between languages."""
    digits: Sequence[str] = ["".join(str(unicodedata.digit(digit)) for digit in run) for run in _DIGITS.findall(text)]
    return Counter(digits)

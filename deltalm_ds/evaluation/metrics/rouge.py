"""ROUGE: the words, pairs of words, or longest common subsequence that outputs share with references [Lin04]."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics.interface import Metric, References, Score, Scorer, package_for, share_score
from deltalm_ds.evaluation.metrics.words import UNICODE, script_of, words_of
from deltalm_ds.languages import read_code

OWN = "rouge_score"  # the package's tokenizer: runs of a-z and 0-9, whatever else there is
TOKENIZERS = (OWN, UNICODE)


class _UnicodeTokenizer:
    """In the form that rouge_score takes tokenizers in."""

    tokenize = staticmethod(words_of)


def scorer(references: References, kind: str) -> Scorer:
    """The mean F1 of the sentences, without stemming; of several references the one that gives the highest.

    Words are those of the package's own tokenizer in English, which published numbers are made with in other languages
    of Latin script too, and those of any script elsewhere.

    Args:
        references: the language decides on the tokenizer, if none is asked for.
        kind: by rouge_score's name.

    Raises:
        InputError: the package is missing, or the tokenizer asked for would see nothing of the text.
    """
    package_for("ROUGE", "rouge_score")
    from importlib.metadata import version

    from rouge_score.rouge_scorer import RougeScorer

    tokenizer = references.tokenizer or _tokenizer_of(references.language)
    if tokenizer not in TOKENIZERS:
        raise InputError(f"There is no tokenizer {tokenizer!r} for ROUGE: it has {', '.join(TOKENIZERS)}.")
    if tokenizer == OWN and (script := script_of(references)) not in ("Latn", None):
        raise InputError(
            f"ROUGE's tokenizer {OWN} sees Latin letters and digits only, and the references are written in {script}: "
            f"take --tokenizer {UNICODE}."
        )
    own = RougeScorer([kind], tokenizer=None if tokenizer == OWN else _UnicodeTokenizer())
    settings = f"nrefs:{references.number}|case:lc|tok:{tokenizer}|stem:no|version:rouge_score-{version('rouge_score')}"
    divide = partial(_sentences, language=read_code(references.language or "en").language)
    if kind == "rougeLsum":
        settings = settings.replace("|version", "|sentences:sentencex|version")

    def score(outputs: Sequence[str]) -> Score:
        of_each = references.of_each
        if kind == "rougeLsum":
            of_each = [tuple(map(divide, texts)) for texts in of_each]
            outputs = [divide(output) for output in outputs]
        return share_score([_f1(own, kind, *pair) for pair in zip(of_each, outputs, strict=True)], settings)

    return Scorer(score)


def _tokenizer_of(language: str | None) -> str:
    return OWN if language is not None and read_code(language).language == "en" else UNICODE


def _f1(own: Any, kind: str, references: tuple[str, ...], output: str) -> float:
    return max(own.score(reference, output)[kind].fmeasure for reference in references)


def _sentences(text: str, language: str) -> str:
    """One a line, as ROUGE-Lsum takes a summary."""
    import sentencex

    return "\n".join(sentencex.segment(language, text))


METRICS = tuple(
    Metric(
        kind.lower(),
        kind.replace("rouge", "ROUGE-"),
        higher_is_better=True,
        scorer=partial(scorer, kind=kind),
        tokenizers=TOKENIZERS,
    )
    for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum")
)

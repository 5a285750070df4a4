"""METEOR: words of the reference found again as they are, by their stem or as a synonym, in few runs [Lavie+07]."""

import os
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics.bleu import make_bleu
from deltalm_ds.evaluation.metrics.interface import Metric, References, Score, Scorer, package_for, share_score
from deltalm_ds.evaluation.metrics.words import tokenizer_for
from deltalm_ds.languages import read_code

WORDNET = "WNSEARCHDIR"  # where WordNet's own programs look for its files, too
WORDNET_FILES = tuple(f"{kind}.{part}" for part in ("adj", "adv", "noun", "verb") for kind in ("index", "data"))
LEXICOGRAPHER_FILES = 45
# nltk's Snowball stemmers; English has Porter's, as nltk's METEOR takes by default
SNOWBALL = {
    "ar": "arabic", "da": "danish", "nl": "dutch", "fi": "finnish", "fr": "french", "de": "german", "hu": "hungarian",
    "it": "italian", "nb": "norwegian", "pt": "portuguese", "ro": "romanian", "ru": "russian", "es": "spanish",
    "sv": "swedish",
}  # fmt: skip


def scorer(references: References) -> Scorer:
    """The mean of nltk's METEOR in percent; of several references the one that gives the highest.

    Words are those of sacreBLEU's tokenizer for the language. Stems exist in the languages of nltk's stemmers, synonyms
    in English, where the environment names the directory of WordNet's files (`WNSEARCHDIR`); nltk looks for them by
    stems. METEOR 1.5 weighs other things: see `meteor_1_5.py`.

    Raises:
        InputError: nltk or the tokenizer is missing, or what the environment names is not WordNet.
    """
    package_for("METEOR", "nltk")
    from nltk.translate.meteor_score import meteor_score

    language = read_code(references.language).language if references.language else None
    tokenizer, _ = tokenizer_for(references)
    split = make_bleu(tokenizer).tokenizer
    stemmer, stems = _stemmer(language)
    wordnet, synonyms = _wordnet(language)

    def words(text: str) -> list[str]:
        return split(text.rstrip()).split()

    def score(outputs: Sequence[str]) -> Score:
        values = [
            meteor_score(list(map(words, texts)), words(output), stemmer=stemmer, wordnet=wordnet)
            for texts, output in zip(references.of_each, outputs, strict=True)
        ]
        settings = f"case:lc|tok:{tokenizer}|stem:{stems}|synonyms:{synonyms}"
        return share_score(values, f"nrefs:{references.number}|{settings}|version:nltk-{version('nltk')}")

    return Scorer(score, _note(references.language, stems, synonyms))


def _note(language: str | None, stems: str, synonyms: str) -> str:
    if synonyms != "none":
        return ""
    found = "exact words only" if stems == "none" else "exact words and stems"
    if language is not None and read_code(language).language == "en":
        return f"METEOR matches {found}: for synonyms name the directory of WordNet's files as {WORDNET}."
    return f"METEOR matches {found} in {language or 'a language that is not named'}."


class _NoStems:
    stem = staticmethod(lambda word: word)


class _NoSynonyms:
    synsets = staticmethod(lambda word: ())


def _stemmer(language: str | None) -> tuple[Any, str]:
    """What nltk takes for a stemmer, and its name."""
    from nltk.stem.porter import PorterStemmer
    from nltk.stem.snowball import SnowballStemmer

    if language == "en":
        return _Remembering(PorterStemmer().stem), "porter"
    if language in SNOWBALL:
        return _Remembering(SnowballStemmer(SNOWBALL[language]).stem), "snowball"
    return _NoStems, "none"


class _Remembering:
    """A stemmer that finds each word's stem once: METEOR asks for all words of every sentence."""

    def __init__(self, stem: Callable[[str], str]) -> None:
        self.stem = cache(stem)


def _wordnet(language: str | None) -> tuple[Any, str]:
    """What nltk takes for a WordNet, and its name."""
    directory = os.environ.get(WORDNET)
    if language != "en" or not directory:
        return _NoSynonyms, "none"
    missing = [name for name in WORDNET_FILES if not (Path(directory) / name).is_file()]
    if missing:
        raise InputError(
            f"{WORDNET}={directory} lacks {', '.join(missing)}: name the directory of WordNet's files, as Debian's "
            f"package wordnet-base has them in /usr/share/wordnet, or unset {WORDNET} for METEOR without synonyms."
        )
    wordnet = _open_wordnet(directory)
    return wordnet, f"wordnet-{wordnet.get_version()}"


@cache
def _open_wordnet(directory: str) -> Any:
    import nltk.data
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    nltk.data.path.append(directory)  # nltk reads files nowhere else

    class Reader(WordNetCorpusReader):
        """nltk's, for a directory alone; also without `lexnames` (as Debian's), a list of names that METEOR ignores."""

        def open(self, file: str) -> Any:
            if file == "lexnames" and not (Path(directory) / file).exists():
                return StringIO("".join(f"{number} file{number} 1\n" for number in range(LEXICOGRAPHER_FILES)))
            return super().open(file)

        def map_wn(self, version: str = "wordnet") -> None:
            """Of other versions, for wordnets of other languages: there are none here."""

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that other languages have no synonyms
        return Reader(directory, omw_reader=None)


METRIC = Metric("meteor", "METEOR", higher_is_better=True, scorer=scorer)

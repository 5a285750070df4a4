"""Whether the first record of a table is the names of its columns, and whether they are the wanted ones."""

import re
from collections.abc import Sequence

from deltalm_ds.languages import names_of

WORDS = re.compile(r"[^\W\d_]+")
NAMES_OF_COLUMNS = {
    *("source", "src", "target", "tgt", "trg", "text", "segment", "sentence", "utterance", "input", "output"),
    *("translation", "translated", "reference", "ref", "hypothesis", "mt", "language", "lang"),
    *("document", "article", "context", "passage", "question", "answer"),
    *("summary", "title", "headline", "description"),
}


def is_header(texts: Sequence[str], languages: Sequence[str]) -> bool:
    """Whether a record is a header: each text is of usual names of columns and those of its side's language alone.

    `source` and `target` are, or for `en` and `de` also `text_en` and `text_de`, `eng_Latn` and `deu_Latn`, `English`
    and `German`; a sentence that happens to be so is taken for one.

    Args:
        texts: of the record.
        languages: of the sides; none if they are not known.
    """
    names = [_words(" ".join(names_of(language, languages))) for language in languages] or [set()] * len(texts)
    return all(words and words <= NAMES_OF_COLUMNS | own for words, own in zip(map(_words, texts), names, strict=True))


def is_reversed(texts: Sequence[str], languages: Sequence[str]) -> bool:
    """Whether a record is the header of the same pair the other way round, such as `de` and `en` for `en` and `de`."""
    return len(set(languages)) == 2 and not is_header(texts, languages) and is_header(texts, languages[::-1])


def _words(text: str) -> set[str]:
    return set(WORDS.findall(text.casefold()))

"""Whether the first record of a table is the names of its columns."""

import re
from collections.abc import Sequence

WORDS = re.compile(r"[^\W\d_]+")
NAMES_OF_COLUMNS = {
    *("source", "src", "target", "tgt", "trg", "text", "segment", "sentence", "utterance", "input", "output"),
    *("translation", "translated", "reference", "ref", "hypothesis", "mt", "language", "lang"),
    *("document", "article", "context", "passage", "question", "answer"),
    *("summary", "title", "headline", "description"),
}


def is_header(texts: Sequence[str], languages: Sequence[str]) -> bool:
    """Whether a record is a header: all words are usual names of columns, or codes of the corpus's languages.

    `source` and `target` are, or `text_en` and `text_de` for `en` and `de`; a sentence that happens to be so is taken
    for one.
    """
    codes = {part for language in languages for part in WORDS.findall(language.casefold())}
    found = [WORDS.findall(text.casefold()) for text in texts]
    return all(words and all(word in codes or word in NAMES_OF_COLUMNS for word in words) for words in found)

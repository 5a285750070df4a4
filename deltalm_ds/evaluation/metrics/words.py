"""What splits text into words: sacreBLEU's tokenizers by language, and words of any script."""

import re
import unicodedata

from deltalm_ds.evaluation.metrics.interface import References
from deltalm_ds.languages import (
    TOKENIZER_OF_SCRIPT,
    WORD_TOKENIZER,
    is_unspaced,
    is_word_character,
    main_script,
    read_code,
)

CHARACTERS = "char"
UNICODE = "unicode"
"""The name of `words_of` in signatures and options."""


def tokenizer_for(references: References) -> tuple[str, str]:
    """sacreBLEU's tokenizer for the references' language, and a note where the choice is not a matter of course.

    Where no language is named it follows from the script that the references are written in.
    """
    language, script = references.language, script_of(references)
    tokenizer = TOKENIZER_OF_SCRIPT.get(script or "", WORD_TOKENIZER)
    note = ""
    if tokenizer == CHARACTERS:
        note = (
            f"{language or 'The text'} is written without spaces ({script}), and sacreBLEU finds words there with its "
            "flores200 only: BLEU is that of characters (--tokenizer flores200 for words)."
        )
    elif language is None and tokenizer != WORD_TOKENIZER:
        note = f"No language is named; as the references are written in {script}, BLEU's tokenizer is {tokenizer}."
    return tokenizer, note


def script_of(references: References) -> str | None:
    """The script of the references' language; where none is named, the one that they are written in."""
    return main_script(references.texts) if references.language is None else read_code(references.language).script


class _Kinds(dict[int, str]):
    """A character's kind by its code, looked up when it first occurs.

    `w` is part of a word, `m` a mark on what is before it, `u` a letter that spaces do not divide from the next word,
    and a space is none of these.
    """

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind = " "
        if is_word_character(character):
            is_mark = unicodedata.category(character).startswith("M")
            kind = "m" if is_mark else "u" if is_unspaced(character) else "w"
        self[code] = kind
        return kind


_KINDS = _Kinds()
_WORD = re.compile("um*|[wm]+")


def words_of(text: str) -> list[str]:
    """Words in small letters: runs of letters, marks and digits; each letter of scripts without spaces by itself.

    Unlike `\\w+` it leaves the vowel signs of Indic scripts in their words.
    """
    text = text.lower()
    return [text[slice(*found.span())] for found in _WORD.finditer(text.translate(_KINDS))]

"""What splits the text of a language into words, by the names of sacreBLEU's tokenizers."""

from deltalm_ds.evaluation.metrics.interface import References
from deltalm_ds.languages import TOKENIZER_OF_SCRIPT, WORD_TOKENIZER, main_script, read_code

CHARACTERS = "char"


def tokenizer_for(references: References) -> tuple[str, str]:
    """The tokenizer for the references' language, and a note where the choice is not a matter of course.

    Where no language is named it follows from the script that the references are written in.
    """
    language = references.language
    script = main_script(references.texts) if language is None else read_code(language).script
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

"""Families of models that are not ours, one row each: how a model is told the languages.

A source begins, as everywhere here, with the tokens of languages that the model needs: the target's, then the
source's. Where each of them goes is a row's matter, so that engines read rows and know no model by name. A further
family is a row of `FAMILIES`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from deltalm_ds.errors import InputError
from deltalm_ds.generation.interface import Ids


class Divided(NamedTuple):
    """A source by who reads it: what the decoder begins with, the encoder's tokens, and such behind their `</s>`."""

    decoder: Ids
    encoder: Ids
    behind: Ids


@dataclass(frozen=True)
class Family:
    """A row of `FAMILIES`.

    Attributes:
        title: for people.
        model_types: of a config.json of transformers.
        tokenizers: its classes, without `Fast` at the end.
        language: a regular expression of the tokens of languages, whose group is the code; empty: there are none.
        target: where the target's token goes; to the decoder in place of its start token (`start`), after that, or
            first in what the encoder reads.
        source: where the source's token goes in what the encoder reads; None if it is not told.
        first: the token that goes there in place of a language's, of models that are told none.
        adds_end: the encoder wants `</s>` at the end.
    """

    title: str
    model_types: tuple[str, ...] = ()
    tokenizers: tuple[str, ...] = ()
    language: str = ""
    target: Literal["decoder", "start", "encoder"] = "encoder"
    source: Literal["first", "behind"] | None = None
    first: str = ""
    adds_end: bool = True

    def divided(self, source: Ids) -> Divided:
        """What each side of the model gets of a source, its tokens of languages in front.

        Raises:
            InputError: there are no such tokens, as ids of a user may have none.
        """
        num_decoder = self.target != "encoder"
        if len(source) < num_decoder + (self.source is not None):
            raise InputError(
                f"The ids of a source for {self.title} begin with those of its languages, the target's first."
            )
        decoder, encoder = source[:num_decoder], source[num_decoder:]
        return Divided(decoder, encoder[1:], encoder[:1]) if self.source == "behind" else Divided(decoder, encoder, ())

    def languages(self, tokens: Iterable[str]) -> dict[str, str]:
        """Code -> token, of those tokens that are languages."""
        if not self.language:
            return {}
        pattern = re.compile(self.language)
        return {_code(match[1]): token for token in tokens if (match := pattern.fullmatch(token))}


_FLORES, _LOCALE = r"([a-z]{3}_[A-Z][a-z]{3})", r"([a-z]{2}_[A-Z]{2})"
FAMILIES = (
    Family("NLLB", ("m2m_100",), ("NllbTokenizer",), _FLORES, "decoder", "first"),
    Family("M2M-100", ("m2m_100",), ("M2M100Tokenizer",), r"__([a-z]{2,3})__", "decoder", "first"),
    Family("mBART", ("mbart",), ("MBartTokenizer",), _LOCALE, "start", "behind"),
    Family("mBART-50", ("mbart",), ("MBart50Tokenizer",), _LOCALE, "decoder", "first"),
    Family("Marian", ("marian",), ("MarianTokenizer",), r">>([A-Za-z0-9_-]+)<<"),
    Family("T5", ("t5", "mt5", "umt5"), ("T5Tokenizer",), r"<2([a-z]{2,3}(?:_[A-Za-z]+)?)>"),
    Family("BART", ("bart",), ("BartTokenizer", "RobertaTokenizer"), target="decoder", first="<s>"),
)
OWN = Family("DeltaLM")  # a vocabulary of ours gives tags for the encoder
PLAIN = Family("sequence-to-sequence", adds_end=False)  # pieces alone, as OpenNMT trains
MODEL_TYPES = tuple(dict.fromkeys(name for family in FAMILIES for name in family.model_types))
POSITIONS = 512  # of models without a table of positions, such as T5: what they are trained on
SEVERAL = 2  # tokens of the form of languages, at least, that make a vocabulary one with languages


def family_of_model(config: Mapping[str, Any], tokenizer_class: str) -> Family | None:
    """The row of a config.json of transformers; None if there is none.

    Args:
        config: its content.
        tokenizer_class: of tokenizer_config.json; tells rows of one model type apart, the first of them if it does not.
    """
    rows = [family for family in FAMILIES if config.get("model_type") in family.model_types]
    named = [family for family in rows if _is_of(family, tokenizer_class)]
    return next(iter([*named, *rows]), None)


def family_of_tokens(tokens: Sequence[str], tokenizer_class: str, decoder_start: str | None, has_two: bool) -> Family:
    """The row of a model of which only the tokens are known, as in a directory of CTranslate2.

    Args:
        tokens: of its target side.
        tokenizer_class: if a tokenizer of transformers is there; else empty.
        decoder_start: the token that its decoder starts with; None if that is the target's token.
        has_two: each side has a SentencePiece model of its own.
    """
    for family in FAMILIES:
        if _is_of(family, tokenizer_class):
            return family
    with_languages = [family for family in FAMILIES if len(family.languages(tokens)) >= SEVERAL]
    for family in with_languages:
        if family.target != "start" or decoder_start is None:
            return family
    if decoder_start == "<pad>":
        return next(family for family in FAMILIES if family.title == "T5")
    return next(family for family in FAMILIES if family.title == "Marian") if has_two else PLAIN


def _code(written: str) -> str:
    """A region in capital letters: Marian's `zh_cn` is zh_CN."""
    language, _, region = written.partition("_")
    return f"{language}_{region.upper()}" if len(region) == 2 else written


def _is_of(family: Family, tokenizer_class: str) -> bool:
    return tokenizer_class.removesuffix("Fast") in family.tokenizers

"""One-call translation: `deltalm_ds.Translator("model")("Some text.", target_lang="fr")`."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import overload

from deltalm_ds.generation.alignment import Alignment, alignment, attention, check_unit, with_units
from deltalm_ds.generation.choosing import Chooser, Wishes
from deltalm_ds.generation.documents import format_of
from deltalm_ds.generation.documents.protected import IN_DOCUMENTS
from deltalm_ds.generation.documents.translate import Counts, TranslatedDocument
from deltalm_ds.generation.interface import Engine, SearchOptions
from deltalm_ds.generation.loading import load_engine, load_vocabulary
from deltalm_ds.generation.score import check_lengths
from deltalm_ds.generation.translate import encoder_for
from deltalm_ds.lines import STDIN

Many = list[str] | tuple[str, ...]


class Translator:
    """A model that is loaded once and translates texts and documents, sentence by sentence; none is left out.

    Example:
        translator = deltalm_ds.Translator("models/cldr")
        translator("Good morning. How are you?", target_lang="fr")
        translator(["one text", "another"], target_lang="de")
        translator("<p>Some <b>markup</b>.</p>", target_lang="fr", format="html")

    Args:
        directory: a model directory, a checkpoint of a run, an export that an engine runs, or a model of transformers
            or CTranslate2 that is not ours.
        engine: a name from `ENGINES`; None takes what the model is for.
        device: `cpu`, `cuda` or `cuda:N`; None takes a GPU if there is one that the engine can use.
        dtype: what is computed in: float32, bfloat16, float16; None leaves it to the engine.
        threads: CPU threads; 0: all cores, fewer on a busy machine.
        options: of the search.
        wishes: glossary, banned phrases, how candidates are ranked.
        shows_progress: on stderr.

    Raises:
        InputError: the directory holds no model with a vocabulary, or the engine cannot compute there or so.
        DataError: its files are damaged.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        engine: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        threads: int = 0,
        options: SearchOptions | None = None,
        wishes: Wishes | None = None,
        shows_progress: bool = False,
    ) -> None:
        self.options, self.wishes = options or SearchOptions(), wishes or Wishes()
        self.shows_progress = shows_progress
        self.engine = load_engine(directory, engine, threads, device, dtype)  # it knows best what is no model
        self.vocabulary = load_vocabulary(directory)

    @property
    def languages(self) -> tuple[str, ...]:
        """The codes of the languages that the model has a tag for; empty if it needs none."""
        return self.vocabulary.languages

    @overload
    def __call__(
        self, text: str, target_lang: str | None = None, source_lang: str | None = None, format: str = "text"
    ) -> str: ...

    @overload
    def __call__(
        self, text: Many, target_lang: str | None = None, source_lang: str | None = None, format: str = "text"
    ) -> list[str]: ...

    def __call__(
        self,
        text: str | Many,
        target_lang: str | None = None,
        source_lang: str | None = None,
        format: str = "text",
    ) -> str | list[str]:
        """The translation of a text of any length, or of each of several.

        Paragraphs and line breaks stay; URLs, e-mail addresses and placeholders are copied.

        Args:
            text: one or several.
            target_lang: the language to translate into, where the vocabulary has tags.
            source_lang: the language of the text, by whose rules sentences end; None goes by the script. Models such as
                NLLB need it.
            format: one of `FORMATS` that is text: text, markdown, html, subtitles.

        Raises:
            InputError: the language or the format is unknown, or none is given where the vocabulary has tags.
        """
        if not isinstance(text, str):
            return [self(one, target_lang, source_lang, format) for one in text]
        found, _ = self.document(text.encode(), format, target_lang, source_lang)
        return found.decode()

    def document(
        self,
        data: bytes,
        format: str | None = None,
        target_lang: str | None = None,
        source_lang: str | None = None,
        protect: Iterable[str] = IN_DOCUMENTS,
        path: Path = STDIN,
    ) -> tuple[bytes, Counts]:
        """A document in the same layout, in another language, and what was done.

        Args:
            data: a file's content.
            format: one of `FORMATS`; None goes by the suffix of `path`, and is text without one.
            target_lang: see `__call__`.
            source_lang: see `__call__`.
            protect: what is copied as it is: names from `PATTERNS`.
            path: the file, which errors name.

        Raises:
            InputError: see `__call__`; or the data is not in that format.
        """
        kind = format_of(path, format)
        encode = encoder_for(self.vocabulary, target_lang, source_lang)
        most = longest_part(self.engine, self.options)
        chooser = Chooser(self.engine, self.vocabulary, encode, self.options, self.wishes, self.shows_progress)

        def fits(text: str) -> bool:
            return len(encode(text)) <= most

        translated = TranslatedDocument(kind.read(data, path), chooser.texts, fits, source_lang, target_lang, protect)
        written = translated.write()
        return written, replace(translated.counts, faulty=chooser.num_faulty)

    def align(self, text: str, output: str, target_lang: str | None = None, unit: str = "words") -> Alignment:
        """What each word or piece of an output looks at in its source: see `alignment`.

        Args:
            text: a sentence.
            output: its translation, whoever made it.
            target_lang: see `__call__`.
            unit: one of `UNITS`.

        Raises:
            InputError: see `__call__`; or the engine does not show attention, or a side is too long for the model.
        """
        check_unit(unit)
        vocabulary = with_units(self.vocabulary)
        source, target = encoder_for(vocabulary, target_lang)(text), vocabulary.encode(output).tolist()
        check_lengths(self.engine, [source], [target])
        (weights,) = attention(self.engine, [source], [target])
        return alignment(vocabulary, source, target, weights, unit)


def longest_part(engine: Engine, options: SearchOptions) -> int:
    """The most tokens of what is translated in one piece: outputs may be longer, and must not be cut."""
    return max(1, min(engine.max_positions - 1, options.limit(engine.max_positions) // 2))

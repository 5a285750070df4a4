"""Lines to outputs with all that can be asked of them, chunk by chunk."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from deltalm_ds.generation.choosing import Chooser, Output, Wishes
from deltalm_ds.generation.interface import Engine, Hypothesis, Ids, ModelVocabulary, SearchOptions
from deltalm_ds.generation.translate import no_progress, translate_chunks
from deltalm_ds.generation.verbatim import copying
from deltalm_ds.progress import Advance


class LineTranslator:
    """Translates lines.

    Args:
        engine: what runs the model.
        encode: line -> ids with the language tag (`encoder_for`).
        decode: ids -> line.
        options: of the search.

    Attributes:
        num_divided: lines so far that were translated in pieces, to copy what is protected in them.
    """

    def __init__(
        self,
        engine: Engine,
        encode: Callable[[str], Ids],
        decode: Callable[[Iterable[int]], str],
        options: SearchOptions,
    ) -> None:
        self._engine, self._encode, self._decode, self._options = engine, encode, decode, options
        self._chooser: Chooser | None = None
        self._protected: re.Pattern[str] | None = None
        self.num_divided = 0

    def choose(self, vocabulary: ModelVocabulary, wishes: Wishes, protected: re.Pattern[str] | None) -> None:
        """Choose among as many candidates as the beam from now on.

        Args:
            vocabulary: of the model.
            wishes: what is asked of outputs.
            protected: finds what is copied (`pattern_of`); None copies nothing.
        """
        self._chooser = Chooser(self._engine, vocabulary, self._encode, self._options, wishes)
        self._protected = protected

    def translate(
        self, chunks: Iterable[Sequence[str]], token_scores: bool = False, advance: Advance = no_progress
    ) -> Iterator[tuple[Sequence[str], list[list[Output]]]]:
        """Each chunk of lines with the `n_best` outputs of each line; see `translate_chunks`."""
        chooser = self._chooser
        options = chooser.options if chooser else self._options
        has_scores = token_scores or chooser is not None
        for lines, found in translate_chunks(self._engine, chunks, self._encode, options, has_scores, advance=advance):
            outputs = chooser.choose(lines, found) if chooser else [self._plain(of_line) for of_line in found]
            if chooser and self._protected:
                outputs, num = copying(self._protected, chooser, lines, outputs)
                self.num_divided += num
            yield lines, [of_line[: self._options.n_best] for of_line in outputs]

    def _plain(self, found: Sequence[Hypothesis]) -> list[Output]:
        return [Output(self._decode(hypothesis.ids), hypothesis) for hypothesis in found]

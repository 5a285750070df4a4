"""SentencePiece at work: text to its pieces and back."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, AnyStr

import numpy as np
import sentencepiece

from deltalm_ds.errors import InputError

NBEST_SEGMENTATIONS = 64
SENTENCEPIECE_VERSION = "0.2.3"  # of which `segment` knows an inner function


class Segmenter:
    """A SentencePiece model. Its ids are not a vocabulary's.

    Args:
        model: the content of the model's file.
        name: of the file, for messages.

    Raises:
        InputError: it is no SentencePiece model.
    """

    def __init__(self, model: bytes, name: str | Path = "spm.model") -> None:
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError):
            raise InputError(f"{name} is not a SentencePiece model.") from None

    @cached_property
    def pieces(self) -> tuple[str, ...]:
        """The piece of each id."""
        processor = self._processor
        return tuple(processor.id_to_piece(spm_id) for spm_id in range(processor.get_piece_size()))

    def segment(self, texts: list[AnyStr]) -> list[np.ndarray]:
        """Of each text (str or UTF-8) the best segmentation: ids in an array (or another buffer) of int32."""
        if sentencepiece.__version__ == SENTENCEPIECE_VERSION:
            # What `encode` makes the arrays from: to make one for each line takes a sixth of the time of encoding it.
            inner: Any = self._processor.__dict__["_processor"]
            return inner._EncodeAsBufferBatch(texts, 1, None, False, 0, 0.0, False, False, False)
        return self._processor.encode(texts, num_threads=1, return_type="numpy")

    def sample(self, text: AnyStr, alpha: float, u: float) -> np.ndarray:
        """The ids [pieces] of one of the 64 best segmentations, drawn with probability ∝ P^alpha [Kudo18 §3.2].

        Args:
            text: str or UTF-8.
            alpha: the smaller, the more alike the probabilities.
            u: where in the distribution, in [0, 1); SentencePiece's own sampling cannot be seeded.
        """
        candidates = self._processor.nbest_encode(text, nbest_size=NBEST_SEGMENTATIONS, return_type="numpy")
        log_p = np.array([self._scores[candidate].sum() for candidate in candidates])
        weights = np.exp(alpha * (log_p - log_p.max())).cumsum()
        return candidates[int(np.searchsorted(weights, u * weights[-1], side="right"))]

    @cached_property
    def _scores(self) -> np.ndarray:
        """[SentencePiece ids] float64: log p of each piece in the unigram model."""
        return np.array([self._processor.get_score(spm_id) for spm_id in range(len(self.pieces))])

    def normalize(self, texts: Sequence[AnyStr]) -> list[AnyStr]:
        """Texts (str or UTF-8) as the model sees them: as a rule NFKC, "▁" for a run of white space."""
        return self._processor.normalize(list(texts))

    def join(self, pieces: list[str]) -> str:
        """The text that pieces make."""
        return self._processor.decode(pieces)

"""Task tokens written out in texts: `answer [S] passage` is two texts with one token between them."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, AnyStr

import numpy as np

from deltalm_ds.arrays.ragged import RaggedRows

EncodeSegments = Callable[[list[Any], np.ndarray, np.ndarray], RaggedRows]
"""Segments of texts, of each the number of its text and its place in it, [segments] -> their ids."""


class TaskTokens:
    """The ids of task tokens, and how texts are encoded that have them. The longest token wins where several begin.

    Args:
        ids: token -> id.
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        pattern = f" *({'|'.join(map(re.escape, sorted(ids, key=len, reverse=True)))}) *"
        self._in_str, self._in_utf8 = re.compile(pattern), re.compile(pattern.encode())
        self._ids: dict[str | bytes, int] = {}
        for token, token_id in ids.items():
            self._ids[token] = self._ids[token.encode()] = token_id

    def encode(self, texts: Sequence[AnyStr], encode_segments: EncodeSegments) -> RaggedRows:
        """The ids of texts: of what stands between task tokens, blanks beside them left out, and theirs between."""
        parts = [self._divide(text) for text in texts]  # of each text segments and tokens by turns
        num_segments = np.fromiter((len(of_text) // 2 + 1 for of_text in parts), np.int64, len(parts))
        firsts = np.cumsum(num_segments) - num_segments
        text_of_segment = np.repeat(np.arange(len(parts)), num_segments)
        place = np.arange(len(text_of_segment)) - firsts[text_of_segment]
        segments = encode_segments([part for of_text in parts for part in of_text[::2]], text_of_segment, place)
        follows_token = place > 0
        token_ids = [self._ids[token] for of_text in parts for token in of_text[1::2]]
        values = np.insert(segments.values, segments.starts[follows_token], token_ids)
        lengths = np.zeros(len(parts), np.int64)
        np.add.at(lengths, text_of_segment, segments.lengths + follows_token)
        return RaggedRows(values, lengths)

    def _divide(self, text: AnyStr) -> list[AnyStr]:
        pattern: Any = self._in_str if isinstance(text, str) else self._in_utf8
        return pattern.split(text)

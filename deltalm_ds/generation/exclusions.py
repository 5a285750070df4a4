"""What must not come next in an output: n-grams that were there, and sequences that are banned."""

import torch
from torch import Tensor

from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.token_ids import PAD_ID

ANY = -1  # stands for every token


class Exclusions:
    """What options exclude by what has come so far; its tensors stay where they are, so that a step can be recorded.

    Args:
        options: their `no_repeat_ngram_size` and `banned`.
        device: of the search.
    """

    def __init__(self, options: SearchOptions, device: torch.device) -> None:
        self._ngram_size = options.no_repeat_ngram_size
        width = max((len(sequence) for sequence in options.banned), default=1) - 1
        before = [[ANY] * (width + 1 - len(sequence)) + list(sequence[:-1]) for sequence in options.banned]
        self._before = torch.tensor(before, dtype=torch.int64, device=device).view(len(before), width)
        self._last = torch.tensor([sequence[-1] for sequence in options.banned], dtype=torch.int64, device=device)
        self._columns = torch.arange(-width, 0, device=device)

    def next(self, tokens: Tensor, position: Tensor) -> Tensor:
        """[N, any number] int64, tokens that a row must not go on with, or `<pad>`.

        Args:
            tokens: [N, L] int64, those so far and then `<pad>`.
            position: [1] int64, how many they are.
        """
        found = [tokens[:, :0]]
        if self._ngram_size:
            found.append(repeats(tokens, position, self._ngram_size))
        if len(self._last):
            found.append(self._ends_of_banned(tokens, position))
        return torch.cat(found, dim=1)

    def _ends_of_banned(self, tokens: Tensor, position: Tensor) -> Tensor:
        """[N, P] int64, the last token of each of P sequences whose others are a row's last, or `<pad>`."""
        columns = position + self._columns
        ending = torch.nn.functional.pad(tokens, (0, 1), value=PAD_ID).index_select(1, columns.clamp(min=0))
        ending = torch.where(columns >= 0, ending, PAD_ID)  # no sequence has it
        matches = ((ending[:, None] == self._before) | (self._before == ANY)).all(dim=2)
        return torch.where(matches, self._last, PAD_ID)


def repeats(tokens: Tensor, position: Tensor, size: int) -> Tensor:
    """[N, any number] int64, tokens that followed an earlier occurrence of a row's last size - 1 tokens, or `<pad>`.

    Args:
        tokens: [N, L], those so far and then `<pad>`.
        position: [1], how many they are.
        size: of the n-grams that must not repeat.
    """
    if tokens.shape[1] < size:
        return tokens[:, :0]
    ngrams = tokens.unfold(1, size, 1)  # [N, L - size + 1, size]
    begin = position - size + 1
    columns = begin + torch.arange(size - 1, device=tokens.device)
    ending = tokens.index_select(1, columns.clamp(min=0))  # [N, size - 1]
    occurs = (ngrams[:, :, :-1] == ending[:, None]).all(dim=2) & (begin >= 0)
    return ngrams[:, :, -1].where(occurs, PAD_ID)

"""Sentences in one search though they did not begin together: continuous batching.

Those that enter together are a group, a search of its own with its own options. Of a step, groups share what costs
most on a CPU, the products of all their rows with the weights, which are read from memory once; each attends to its
own past and chooses its own continuations, as it does alone. Files do without: to refill batches of sentences that are
sorted by length saves next to nothing, as these end nearly together.
"""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from deltalm_ds.generation.beam_search import Search
from deltalm_ds.generation.interface import Hypothesis, Ids, SearchOptions
from deltalm_ds.kernels.linear import FrozenWeights
from deltalm_ds.model.cache import DecoderCache, JointCache
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.packing import pack_with_eos


@dataclass
class _Group:
    """Sentences that entered together.

    first: the number of the first of them. length: positions of the next step.
    """

    search: Search[DecoderCache]
    first: int
    length: int = 1

    @property
    def numbers(self) -> list[int]:
        """Of the sentences that are not done."""
        return [self.first + place for place in self.search.sentences.tolist()]

    def take(self, logits: torch.Tensor) -> dict[int, list[Hypothesis]]:
        """Go on; returns what is done, by number."""
        is_last = self.length > self.search.max_length
        self.search.take(logits, self.length, is_last)
        self.length += 1
        numbers = self.numbers
        left = [] if is_last else self.search.unfinished().tolist()
        if len(left) == len(numbers):
            return {}
        places = sorted(set(range(len(numbers))) - set(left))
        found = self.search.finished.best(self.search.options, self.search.sentences[places])
        self.search.keep(torch.tensor(left, dtype=torch.int64))
        return dict(zip((numbers[place] for place in places), found, strict=True))


class JointSearch:
    """A search on the CPU that sentences enter while it runs: see `RunningSearch`.

    Args:
        model: in evaluation mode.
        frozen: see `PyTorchEngine`.
    """

    def __init__(self, model: DeltaLM, frozen: FrozenWeights | None = None) -> None:
        self._model, self._frozen = model, frozen
        self._groups: list[_Group] = []
        self._num_admitted = 0

    @property
    def num_groups(self) -> int:
        """See `RunningSearch`."""
        return len(self._groups)

    @torch.inference_mode()
    def admit(self, sources: Sequence[Ids], options: SearchOptions) -> Sequence[int]:
        """See `RunningSearch`."""
        if options.temperature:
            raise ValueError("samples are drawn in batches")
        with self._multiplying():
            search = Search(self._model, pack_with_eos(sources), options, may_wait=True)
        first = self._num_admitted
        self._num_admitted += len(sources)
        self._groups.append(_Group(search, first))
        return range(first, self._num_admitted)

    @torch.inference_mode()
    def step(self) -> dict[int, list[Hypothesis]]:
        """See `RunningSearch`.

        Raises:
            DataError: the weights are damaged.
        """
        if not self._groups:
            return {}
        searches = [group.search for group in self._groups]
        for group in self._groups:
            group.search.cache.reserve(group.length)
        num_rows = [len(search.last) for search in searches]
        cache = JointCache([search.cache for search in searches], num_rows)
        with self._multiplying():
            logits = self._model.decode_step(torch.cat([search.last for search in searches]), cache)
        found: dict[int, list[Hypothesis]] = {}
        for group, of_group in zip(self._groups, logits.split(num_rows), strict=True):
            found |= group.take(of_group)
        self._leave()
        return found

    @torch.inference_mode()
    def drop(self, numbers: Collection[int]) -> None:
        """See `RunningSearch`."""
        for group in self._groups:
            kept = [place for place, number in enumerate(group.numbers) if number not in numbers]
            if len(kept) < len(group.search.sentences):
                group.search.keep(torch.tensor(kept, dtype=torch.int64))
        self._leave()

    def _leave(self) -> None:
        """Forget groups of which nothing is left."""
        self._groups = [group for group in self._groups if len(group.search.sentences)]

    def _multiplying(self) -> AbstractContextManager[None]:
        return self._frozen.used() if self._frozen else nullcontext()

"""What can run a model, what it is asked and what it answers: ids without `</s>`. Imports no torch."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from deltalm_ds.errors import InputError, nearest

if TYPE_CHECKING:
    import numpy as np

Ids = Sequence[int]

DTYPES = ("float32", "bfloat16", "float16")
UNITS = ("words", "pieces")  # that an alignment is between
RERANKERS = ("mbr", "reverse", "coverage")
BATCH_TOKENS = {"cpu": 4_096, "cuda": 32_768}  # source tokens of a batch, times the beam, that fill a device


@dataclass(frozen=True)
class EngineOptions:
    """What an engine computes on and in.

    Attributes:
        device: `cpu`, `cuda` or `cuda:N`; None takes a GPU if there is one that the engine can use.
        dtype: one of `DTYPES`; None leaves the choice to the engine: on a GPU bfloat16, or float16 before sm_80.
        threads: CPU threads of the engine, and of this process where the search runs in it; 0 leaves the defaults.
        in_memory: weights are read into memory of this process, not mapped: a file that is overwritten under a process
            that has it mapped ends the process.
    """

    device: str | None = None
    dtype: str | None = None
    threads: int = 0
    in_memory: bool = False

    def __post_init__(self) -> None:
        if self.device is not None and not re.fullmatch(r"cpu|cuda(:\d{1,3})?", self.device):
            raise InputError(f"There is no device {self.device!r}: give cpu, cuda, or cuda:N for one of several GPUs.")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise InputError(
                f"There is no dtype {self.dtype!r}: the nearest is {nearest(self.dtype, DTYPES)!r}; engines compute in "
                f"{', '.join(DTYPES)}."
            )

    def gpu(self, num_gpus: int) -> int | None:
        """The number of the GPU to compute on, None for the CPU. num_gpus: how many the engine sees.

        Raises:
            InputError: a GPU is asked for that there is not.
        """
        if self.device is None:
            return 0 if num_gpus else None
        if self.device == "cpu":
            return None
        number = int(self.device.partition(":")[2] or 0)
        if number >= num_gpus:
            seen = f"GPUs up to cuda:{num_gpus - 1}" if num_gpus else "no GPU here"
            raise InputError(f"--device {self.device}: the engine sees {seen}; leave --device out, or give cpu.")
        return number


@dataclass(frozen=True)
class SearchOptions:
    """How to search. Lengths are in tokens and, as in fairseq, do not count the final `</s>`.

    Attributes:
        beam: hypotheses kept at each step; 1 is greedy search.
        n_best: hypotheses returned, at most `beam`.
        length_penalty: a hypothesis scores Σ log p / length**length_penalty, the length with `</s>`; 0 is the sum.
        min_length, max_length: bounds of a hypothesis; the model's positions bound it too.
        no_repeat_ngram_size: an n-gram of this size occurs at most once in a hypothesis; 0 allows all.
        min_length_ratio, max_length_ratio: bounds besides, as shares of the source's tokens, its language tag included;
            rounded up. A maximum of 0 is none.
        prefix: ids that every hypothesis begins with, whatever else holds; they count for scores and lengths.
        temperature: above 0 outputs are drawn, not searched for, from probabilities to the power 1 / temperature; there
            are `n_best` of them, whatever the beam.
        top_k, top_p: drawn are only the `top_k` most probable tokens (0: all), and of these only the most probable
            that have a share `top_p` of the probability together.
        seed: of the draws.
        banned: sequences of ids, none of which a hypothesis has, its prefix apart.
    """

    beam: int = 5
    n_best: int = 1
    length_penalty: float = 1.0
    min_length: int = 1
    max_length: int = 200
    no_repeat_ngram_size: int = 0
    min_length_ratio: float = 0.0
    max_length_ratio: float = 0.0
    prefix: tuple[int, ...] = ()
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    banned: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise InputError(f"The beam is {self.beam}; it must be at least 1.")
        if not 1 <= self.n_best <= (self.n_best if self.temperature else self.beam):
            raise InputError(f"{self.n_best} hypotheses are asked for; the beam of {self.beam} gives 1 to {self.beam}.")
        if not 0 <= self.min_length <= self.max_length:
            raise InputError(f"Lengths from {self.min_length} to {self.max_length} contain no valid length.")
        if self.no_repeat_ngram_size < 0:
            raise InputError(f"The n-gram size is {self.no_repeat_ngram_size}; it must be 0 (off) or more.")
        if self.min_length_ratio < 0 or (self.max_length_ratio and self.max_length_ratio < self.min_length_ratio):
            raise InputError(
                f"Lengths from {self.min_length_ratio} to {self.max_length_ratio} times the source's contain no valid "
                "length."
            )
        if len(self.prefix) > self.max_length:
            raise InputError(f"The prefix has {len(self.prefix)} tokens; outputs have at most {self.max_length}.")
        if not all(self.banned):
            raise InputError("A banned sequence has no tokens: every output would have it.")
        self._check_sampling()

    def _check_sampling(self) -> None:
        if self.temperature < 0:
            raise InputError(f"The temperature is {self.temperature}; it must be 0 (search) or more.")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise InputError(f"top_k is {self.top_k} and top_p is {self.top_p}: they are from 0 on, and from 0 to 1.")
        if not self.temperature and (self.top_k or self.top_p != 1):
            raise InputError(
                "top_k and top_p say what is drawn, and nothing is without a temperature: give one above 0."
            )

    def limit(self, max_positions: int) -> int:
        """The length at which a hypothesis must end: `max_length`, or what the positions leave beside `</s>`."""
        return min(self.max_length, max_positions - 1)

    def bounds(self, num_source: int, max_positions: int) -> tuple[int, int]:
        """The least and the most tokens of a hypothesis for a source of so many; the maximum wins over the minimum."""
        most = self.limit(max_positions)
        if self.max_length_ratio:
            most = min(most, max(ceil(self.max_length_ratio * num_source), len(self.prefix), 1))
        return min(max(self.min_length, ceil(self.min_length_ratio * num_source)), most), most

    @property
    def rows(self) -> int:
        """Outputs of a sentence that are made side by side."""
        return self.n_best if self.temperature else self.beam

    @property
    def is_of_source(self) -> bool:
        """Whether sources have bounds of their own."""
        return bool(self.min_length_ratio or self.max_length_ratio)


@dataclass(frozen=True)
class Hypothesis:
    """One output of a search.

    Attributes:
        ids: the tokens, without `</s>`.
        score: Σ log p / length**length_penalty in nats, over the tokens and `</s>`.
        token_scores: log p of each token and of `</s>`, or None where the engine does not give them.
        is_cut: it has as many tokens as it may have (`SearchOptions.limit`): where it ends was not the model's choice.
            Set by `generate`, not by engines.
    """

    ids: tuple[int, ...]
    score: float
    token_scores: tuple[float, ...] | None = None
    is_cut: bool = False


class ModelVocabulary(Protocol):
    """What turns text into a model's ids and back; `Vocabulary` is the one of our own models.

    needs_source_lang: sources need the token of their own language, too.
    """

    needs_source_lang: bool

    @property
    def languages(self) -> tuple[str, ...]:
        """The codes of the languages that the model can be told to translate into; none if it need not be told."""
        ...

    def source_tag(self, target_lang: str | None, source_lang: str | None = None) -> list[int]:
        """The ids that a source begins with, for these languages.

        Raises:
            InputError: a language is unknown, or none is given where the model must be told.
        """
        ...

    def encode(self, text: str) -> "np.ndarray":
        """The ids of a source's text [tokens] int64, without its tag or `</s>`."""
        ...

    def encode_output(self, text: str) -> "np.ndarray":
        """The ids of an output [tokens] int64."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of an output, on one line."""
        ...


class Engine(Protocol):
    """Searches and scores batches.

    vocabulary_size: ids are below it. max_positions: longest source and longest target, `</s>` included.
    batch_tokens: how large a batch should be, see `BATCH_TOKENS`.
    """

    vocabulary_size: int
    max_positions: int
    batch_tokens: int

    def generate(self, sources: Sequence[Ids], options: SearchOptions) -> list[list[Hypothesis]]:
        """Up to n_best hypotheses for each source (language tag included), best first."""
        ...

    def score(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        """Log p in nats of each target's tokens and of its `</s>`."""
        ...


class RunningSearch(Protocol):
    """Sentences that are searched together; others enter meanwhile, and each leaves when it is done.

    num_groups: of sentences that entered together and are not all done; more of them cost more.
    """

    @property
    def num_groups(self) -> int: ...

    def admit(self, sources: Sequence[Ids], options: SearchOptions) -> Sequence[int]:
        """Let sentences enter, at least one, to be searched by these options (no temperature); returns their numbers.

        Each is found what `Engine.generate` finds for it alone.
        """
        ...

    def step(self) -> Mapping[int, list[Hypothesis]]:
        """One more token for every beam; returns the hypotheses of those that are done now, by number."""
        ...

    def drop(self, numbers: Collection[int]) -> None:
        """Go on without these sentences."""
        ...


@runtime_checkable
class RunningEngine(Protocol):
    """An engine whose searches sentences may enter while they run."""

    def start_search(self) -> RunningSearch | None:
        """One of no sentences yet; None where the engine searches in batches alone, as on a GPU."""
        ...


@runtime_checkable
class AttentionEngine(Protocol):
    """An engine that also shows what its outputs look at."""

    def attention(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> "list[np.ndarray]":
        """Of each pair [tokens of the target + 1, tokens of the source + 1] float32: the last block's cross-attention.

        It is the mean of the heads. Row t is what is looked at when token t of the target is predicted, the last row
        when `</s>` is; the columns are the source's tokens and its `</s>`. Rows add up to 1.
        """
        ...

"""The models that are served: by name, loaded anew without a gap."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from deltalm_ds.errors import InputError, nearest
from deltalm_ds.generation.alignment import attention
from deltalm_ds.generation.engines import ENGINES
from deltalm_ds.generation.interface import Engine, Ids
from deltalm_ds.generation.loading import load_engine, load_vocabulary
from deltalm_ds.generation.translate import batches_by_cost
from deltalm_ds.languages import find_language
from deltalm_ds.serving.batching import Batcher, Found, How, Ticket
from deltalm_ds.serving.cache import Cache
from deltalm_ds.serving.errors import ApiError

if TYPE_CHECKING:
    import numpy as np


class Observer(Protocol):
    """Who is told what models do; `Metrics` is one."""

    def batch(self, model: str, num_sentences: int) -> None:
        """So many sentences are searched together; some have just entered."""
        ...

    def cached(self, model: str, num_sentences: int) -> None:
        """Sentences were translated before."""
        ...


class Model:
    """A model with its engine, its thread and the sentences that it has translated lately.

    Args:
        name: by which it is asked for.
        directory: see `load_engine`.
        runs_on: further arguments of `load_engine`.
        cache_size: sentences.
        observer: see `Observer`.

    Attributes:
        shows_attention: whether its outputs can be aligned.

    Raises:
        InputError, DataError: see `load_engine`.
    """

    def __init__(
        self, name: str, directory: Path, runs_on: Mapping[str, Any], cache_size: int, observer: Observer
    ) -> None:
        self.name = name
        self.engine: Engine = load_engine(directory, **runs_on, in_memory=True)
        self.vocabulary = load_vocabulary(directory)
        ids = self.vocabulary.encode("a").tolist()
        self.vocabulary.decode(ids)  # what is made when it is first needed is made once
        self.shows_attention = _shows_attention(self.engine, ids)
        self._observer, self._cache = observer, Cache[Found](cache_size)
        self._batcher = Batcher(self.engine, lambda num: observer.batch(name, num))
        self._users, self._is_retired, self._lock = 0, False, threading.Lock()

    @property
    def engine_name(self) -> str:
        """The row of `ENGINES` that it is."""
        module = type(self.engine).__module__
        return next(name for name, entry in ENGINES.items() if entry.module == module)

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that it translates into; none where it has no tags for them."""
        return self.vocabulary.languages

    @property
    def num_waiting(self) -> int:
        """Sentences that have not entered a search yet."""
        return self._batcher.num_waiting

    def hypotheses(self, sources: Sequence[Ids], how: How, ticket: Ticket) -> Iterator[Found]:
        """Those of each source in order, as soon as they are there; sources over the model's maximum are cut.

        Raises:
            CancelledError: the ticket was.
        """
        keys = [(tuple(self.cut(source)), how) for source in sources]
        known = [self._cache.get(key) for key in keys]
        futures = self._batcher.submit([key[0] for key, found in zip(keys, known, strict=True) if found is None], how)
        ticket.add(futures)
        self._observer.cached(self.name, len(keys) - len(futures))
        coming = iter(futures)
        for key, found in zip(keys, known, strict=True):
            if found is None:
                found = [replace(one, token_scores=None) for one in next(coming).result()]  # they take most memory
                self._cache.keep(key, found)
            yield found

    def cut(self, source: Ids) -> Ids:
        """As much of a source as the model's positions allow."""
        return source[: self.engine.max_positions - 1]

    def attention(
        self, sources: Sequence[Ids], targets: Sequence[Ids], ticket: Ticket
    ) -> "Iterator[tuple[int, np.ndarray]]":
        """What each target looks at in its source (see `AttentionEngine`), with its number; batch after batch.

        Raises:
            CancelledError: the ticket was.
        """
        costs = [len(source) + len(target) + 2 for source, target in zip(sources, targets, strict=True)]
        for batch in batches_by_cost(costs, self.engine.batch_tokens):
            some, of_some = [sources[index] for index in batch], [targets[index] for index in batch]
            future = self._batcher.call(partial(attention, sources=some, targets=of_some))
            ticket.add([future])
            yield from zip(batch, future.result(), strict=True)

    @contextmanager
    def used(self) -> Iterator["Model"]:
        """Inside, it is not closed."""
        with self._lock:
            self._users += 1
        try:
            yield self
        finally:
            with self._lock:
                self._users -= 1
            self._close_if_unused()

    def retire(self) -> None:
        """Close it as soon as nobody uses it."""
        self._is_retired = True
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        with self._lock:
            if self._is_retired and not self._users:
                self._batcher.close()


def _shows_attention(engine: Engine, ids: Ids) -> bool:
    try:
        attention(engine, [ids], [ids])
    except InputError:
        return False
    return True


class Models:
    """All models, by name.

    Args:
        directories: `directory`, whose name it has, or `name=directory`.
        load: makes the model of a name and a directory.

    Raises:
        InputError: two have one name; or see `Model`.
    """

    def __init__(self, directories: Sequence[str], load: Callable[[str, Path], Model]) -> None:
        self._load, self._lock = load, threading.Lock()
        self._directories = _named(directories)
        self._models = {name: load(name, directory) for name, directory in self._directories.items()}

    def __iter__(self) -> Iterator[Model]:
        return iter(list(self._models.values()))

    @contextmanager
    def used(self, name: str | None, target: str | None) -> Iterator[tuple[Model, str | None]]:
        """The model of that name, or the first that translates into the target, and the target by the model's code.

        Raises:
            ApiError: there is none, or it does not translate into the target, or none is named where one must be.
        """
        with ExitStack() as stack:
            with self._lock:  # it is in use before another takes its place
                model, code = self._found(name, target)
                stack.enter_context(model.used())
            yield model, code

    def reload(self, say: Callable[[str], None]) -> None:
        """Load each anew; the old one answers until the new one can, and stays if that cannot be loaded.

        Args:
            say: told what was done with each.
        """
        for name, directory in self._directories.items():
            try:
                model = self._load(name, directory)
            except (InputError, OSError) as error:
                say(f"{name} stays as it was: {error}")
                continue
            with self._lock:
                old, self._models[name] = self._models[name], model
            old.retire()
            say(f"{name} was loaded anew.")

    def close(self) -> None:
        """No more requests come."""
        for model in self:
            model.retire()

    def _found(self, name: str | None, target: str | None) -> tuple[Model, str | None]:
        if name is not None and name not in self._models:
            hint = f"the nearest is {nearest(name, self._models)!r}; there are {', '.join(self._models)}"
            raise ApiError(400, f"There is no model {name[:80]!r}: {hint}.")
        models = [self._models[name]] if name is not None else list(self._models.values())
        if target is None:
            if models[0].languages:
                raise ApiError(400, f"Name the target: {', '.join(models[0].languages)}.")
            return models[0], None
        for model in models:
            if not model.languages:
                return model, None  # it has one direction, whatever that is called
            codes = _codes(target, model.languages)
            if len(codes) == 1:
                return model, codes[0]
            if codes:
                raise ApiError(400, f"The target {target!r} could be each of {', '.join(codes)}: name one of them.")
        known = dict.fromkeys(code for model in models for code in model.languages)
        hint = f"the nearest is {nearest(target, known)!r}; there are {', '.join(known)}"
        raise ApiError(400, f"Nothing here translates into {target[:80]!r}: {hint}.")


def _named(directories: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in directories:
        name, equals, directory = text.partition("=")
        path = Path(directory if equals else text)
        name = name if equals else path.resolve().name
        if not name or name in found:
            raise InputError(f"Two models have the name {name!r}: name them, as in NAME=DIRECTORY.")
        found[name] = path
    return found


def _codes(target: str, languages: Sequence[str]) -> list[str]:
    try:
        return find_language(target, languages)
    except InputError:  # it is no language code
        return []

"""Sentences of many requests through one engine: whoever waits when a batch ends is in the next one."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from deltalm_ds.generation.interface import Engine, Hypothesis, Ids, SearchOptions
from deltalm_ds.generation.translate import SENTENCE_COST_TOKENS, generate

Found = list[Hypothesis]
T = TypeVar("T")


@dataclass(frozen=True)
class How:
    """What sentences of a batch have in common.

    Attributes:
        options: of the search.
        exact: scores are those of the model, whatever the engine's search takes for them (see `generate`).
    """

    options: SearchOptions
    exact: bool = False


class Ticket:
    """What one request waits for, so that it can be given up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._futures: list[Future] = []
        self._is_cancelled = False

    def add(self, futures: Sequence[Future]) -> None:
        """From now on the request waits for these, too; they are cancelled at once if it was given up."""
        with self._lock:
            self._futures = [future for future in self._futures if not future.done()] + list(futures)
        if self._is_cancelled:
            self.cancel()

    def cancel(self) -> None:
        """Nobody waits any more: what has not begun never will."""
        with self._lock:
            self._is_cancelled = True
            futures = list(self._futures)
        for future in futures:
            future.cancel()


@dataclass
class _Job:
    """Sentences of one request that are not in a batch yet."""

    how: How
    waiting: deque[tuple[Ids, "Future[Found]"]]


class Batcher:
    """A thread that runs an engine, and what waits for it.

    A batch has sentences of equal `How`, at most as many as fill the device (`batch_tokens`), one of each request in
    turn: a long text does not hold up a short one. None can enter a batch that runs: its search is of fixed sentences.

    Args:
        engine: nobody else uses it.
        observe: told of each batch the number of its sentences, when it is done.
    """

    def __init__(self, engine: Engine, observe: Callable[[int], None] = lambda num: None) -> None:
        self._engine, self._observe = engine, observe
        self._jobs: deque[_Job] = deque()
        self._calls: deque[tuple[Callable[[Engine], Any], Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    def submit(self, sources: Sequence[Ids], how: How) -> "list[Future[Found]]":
        """The hypotheses of each source, when they are there; a future that is cancelled in time is not computed.

        Args:
            sources: ids with the language tag, without `</s>`, that the model's positions allow.
            how: to search.
        """
        futures: list[Future[Found]] = [Future() for _ in sources]
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the model was closed")
            if futures:
                self._jobs.append(_Job(how, deque(zip(sources, futures, strict=True))))
                self._changed.notify()
        return futures

    def call(self, work: Callable[[Engine], T]) -> "Future[T]":
        """What `work` makes of the engine, in its thread, between batches; not if the future is cancelled in time."""
        future: Future[T] = Future()
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the model was closed")
            self._calls.append((work, future))
            self._changed.notify()
        return future

    @property
    def num_waiting(self) -> int:
        """Sentences that are in no batch yet."""
        with self._changed:
            return sum(len(job.waiting) for job in self._jobs)

    def close(self) -> None:
        """Take nothing more; the thread ends when all that waits is done."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._calls or self._is_closed)
                if not self._jobs and not self._calls:
                    return
                call = self._calls.popleft() if self._calls else None
                how = self._jobs[0].how if self._jobs else None
                batch = self._take(how) if how else []
            if call:
                self._answer(*call)
            if batch and how:
                self._translate(batch, how)
                self._observe(len(batch))

    def _answer(self, work: Callable[[Engine], Any], future: "Future[Any]") -> None:
        """Do what was called for, if somebody waits for it still."""
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work(self._engine))
            except Exception as error:
                future.set_exception(error)

    def _take(self, how: How) -> "list[tuple[Ids, Future[Found]]]":
        """The next batch; the request that it begins with is the last the next time."""
        batch: list[tuple[Ids, Future[Found]]] = []
        longest = 0
        turns = deque(job for job in self._jobs if job.how == how)
        while turns:
            job = turns.popleft()
            source, _ = job.waiting[0]
            most = max(longest, len(source))
            cost = (SENTENCE_COST_TOKENS + most) * how.options.rows * (len(batch) + 1)
            if batch and cost > self._engine.batch_tokens:
                break
            sentence = job.waiting.popleft()
            if sentence[1].set_running_or_notify_cancel():
                batch.append(sentence)
                longest = most
            if job.waiting:
                turns.append(job)
        self._jobs.rotate(-1)
        self._jobs = deque(job for job in self._jobs if job.waiting)
        return batch

    def _translate(self, batch: "list[tuple[Ids, Future[Found]]]", how: How) -> None:
        """Compute a batch; if it fails, each sentence alone, so that none fails for another's sake."""
        try:
            found = generate(self._engine, [source for source, _ in batch], how.options, how.exact)
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for sentence in batch:
                self._translate([sentence], how)
            return
        for (_, future), hypotheses in zip(batch, found, strict=True):
            future.set_result(hypotheses)

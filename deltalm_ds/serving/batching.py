"""Sentences of many requests through one engine: they enter a search that runs, or else the next batch."""

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from deltalm_ds.generation.interface import Engine, Hypothesis, Ids, RunningEngine, RunningSearch, SearchOptions
from deltalm_ds.generation.translate import NOTHING, SENTENCE_COST_TOKENS, generate, mark_cuts

MAX_GROUPS = 6  # in a search at a time; each costs a step 1 % more at base size, 8 % at tiny size
SHARE = 0.5  # of the room of a running search that one request may take: the others find some at once

Found = list[Hypothesis]
T = TypeVar("T")


@dataclass(frozen=True)
class How:
    """What sentences have in common that enter together.

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
        """Nobody waits any more: what has not begun never will, and what runs leaves its search."""
        with self._lock:
            self._is_cancelled = True
            futures = list(self._futures)
        for future in futures:
            future.cancel()


@dataclass
class _Sentence:
    """One of a request. cost: of the room that there is in a search, in tokens, once it has entered."""

    source: Ids
    future: "Future[Found]"
    job: "_Job"
    cost: int = 0

    def give(self, hypotheses: Found) -> None:
        """Answer with these, if somebody waits still."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(hypotheses)

    def fail(self, error: Exception) -> None:
        """Answer with this, if somebody waits still."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass(eq=False)
class _Job:
    """Sentences of one request that have not entered a search yet."""

    how: How
    waiting: deque[_Sentence]


class Batcher:
    """A thread that runs an engine, and what waits for it.

    Where the engine lets sentences enter a search that runs, they do at every step, and leave when they are done or
    given up. Otherwise they enter when the batch before them is done. Those that enter together are of equal `How`; all
    that are searched at a time are at most as many as fill the device (`batch_tokens`). One of each request enters in
    turn, and a search that runs keeps room for others (`SHARE`): a long text does not hold up a short one.

    Args:
        engine: nobody else uses it.
        observe: told how many sentences are searched together, whenever some have entered.
    """

    def __init__(self, engine: Engine, observe: Callable[[int], None] = lambda num: None) -> None:
        self._engine, self._observe = engine, observe
        self._jobs: deque[_Job] = deque()
        self._calls: deque[tuple[Callable[[Engine], Any], Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._search = _running_search(engine)
        self._running: dict[int, _Sentence] = {}  # by number in the search
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    def submit(self, sources: Sequence[Ids], how: How) -> "list[Future[Found]]":
        """The hypotheses of each source, when they are there; a future that is cancelled is not computed any further.

        Args:
            sources: ids with the language tag, without `</s>`, that the model's positions allow.
            how: to search.
        """
        futures: list[Future[Found]] = [Future() for _ in sources]
        job = _Job(how, deque())
        for source, future in zip(sources, futures, strict=True):
            if len(source):
                job.waiting.append(_Sentence(source, future, job))
            else:
                future.set_result([NOTHING])
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the model was closed")
            if job.waiting:
                self._jobs.append(job)
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
        """Sentences that have not entered a search yet."""
        with self._changed:
            return sum(len(job.waiting) for job in self._jobs)

    def close(self) -> None:
        """Take nothing more; the thread ends when all that waits is done."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            self._drop_cancelled()
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._running or self._calls or self._is_closed)
                if not (self._jobs or self._running or self._calls):
                    return
                call = self._calls.popleft() if self._calls else None
                entering = self._take()
            if call:
                self._answer(*call)
            if self._search is None and entering:
                self._translate(entering)
                self._observe(len(entering))
            elif self._search is not None and (entering or self._running):
                self._admit(self._search, entering)
                self._step(self._search)

    def _answer(self, work: Callable[[Engine], Any], future: "Future[Any]") -> None:
        """Do what was called for, if somebody waits for it still."""
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work(self._engine))
            except Exception as error:
                future.set_exception(error)

    def _take(self) -> list[_Sentence]:
        """Those that enter now: as many as there is room for, of each request in turn.

        The request that they begin with is the last in line the next time. If it finds no room, none passes it.
        """
        if self._search is not None and self._search.num_groups >= MAX_GROUPS:
            return []
        used: Counter[int] = Counter()  # room, by request
        for sentence in self._running.values():
            used[id(sentence.job)] += sentence.cost
        size = self._engine.batch_tokens
        room, share = size - used.total(), self._share_of(size)
        line = deque(job for job in self._jobs if used[id(job)] < share)
        line = deque(job for job in line if job.how == line[0].how)
        entering: list[_Sentence] = []
        longest = 0
        while line:
            job = line.popleft()
            sentence = job.waiting[0]
            if not sentence.future.cancelled():
                most = max(longest, len(sentence.source))
                sentence.cost = (SENTENCE_COST_TOKENS + most) * job.how.options.rows
                if (entering or self._running) and sentence.cost * (len(entering) + 1) > room:
                    break
                longest = most
                entering.append(sentence)
                used[id(job)] += sentence.cost
            job.waiting.popleft()
            if job.waiting and used[id(job)] < share:
                line.append(job)
        if entering:
            self._jobs.remove(entering[0].job)
            self._jobs.append(entering[0].job)
        self._jobs = deque(job for job in self._jobs if job.waiting)
        return entering

    def _share_of(self, size: int) -> float:
        """Room that a request may have if more of it is to enter; the last group is for those of which nothing runs."""
        if self._search is None:
            return size
        return SHARE * size if self._search.num_groups < MAX_GROUPS - 1 else 1

    def _translate(self, batch: list[_Sentence]) -> None:
        """Compute a batch; if it fails, each sentence alone, so that none fails for another's sake."""
        how = batch[0].job.how
        try:
            found = generate(self._engine, [sentence.source for sentence in batch], how.options, how.exact)
        except Exception as error:
            if len(batch) == 1:
                batch[0].fail(error)
                return
            for sentence in batch:
                self._translate([sentence])
            return
        for sentence, hypotheses in zip(batch, found, strict=True):
            sentence.give(hypotheses)

    def _drop_cancelled(self) -> None:
        gone = [number for number, sentence in self._running.items() if sentence.future.cancelled()]
        if self._search is not None and gone:
            self._search.drop(gone)
            for number in gone:
                del self._running[number]

    def _admit(self, search: RunningSearch, entering: list[_Sentence]) -> None:
        if not entering:
            return
        try:
            numbers = search.admit([sentence.source for sentence in entering], entering[0].job.how.options)
        except Exception:
            for sentence in entering:
                self._translate([sentence])
            return
        self._running |= zip(numbers, entering, strict=True)
        self._observe(len(self._running))

    def _step(self, search: RunningSearch) -> None:
        """One step; if it fails, each sentence alone."""
        try:
            found = search.step()
        except Exception:
            failed, self._running = self._running, {}
            self._search = _running_search(self._engine)
            for sentence in failed.values():
                self._translate([sentence])
            return
        for number, hypotheses in found.items():
            sentence = self._running.pop(number)
            limit = sentence.job.how.options.bounds(len(sentence.source), self._engine.max_positions)[1]
            sentence.give(mark_cuts(hypotheses, limit))


def _running_search(engine: Engine) -> RunningSearch | None:
    return engine.start_search() if isinstance(engine, RunningEngine) else None

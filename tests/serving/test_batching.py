"""Which sentences are searched together, what becomes of those that nobody waits for: with engines that are held."""

import threading

import pytest
import torch

from deltalm_ds.generation.engines.pytorch import PyTorchEngine
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.serving.batching import Batcher, How, Ticket
from deltalm_ds.serving.cache import Cache
from tests.serving.served import Echo

GREEDY, WIDE = How(SearchOptions(beam=1)), How(SearchOptions(beam=4))
EQUALLY_LONG = How(SearchOptions(beam=2, min_length_ratio=1.0, max_length_ratio=1.0))  # as their sources


@pytest.fixture
def held():
    """A batcher whose engine is at work on one sentence until it is freed."""
    engine = Echo()
    engine.hold()
    batcher = Batcher(engine)
    first = batcher.submit([[1, 5]], GREEDY)
    assert engine.begun.acquire(timeout=60)
    yield batcher, engine, first
    engine.free()
    batcher.close()


def test_those_that_wait_share_the_next_batch_if_they_are_searched_alike(held):
    batcher, engine, first = held
    futures = batcher.submit([[1, 6]], GREEDY) + batcher.submit([[1, 7]], WIDE) + batcher.submit([[1, 8]], GREEDY)
    assert batcher.num_waiting == 3
    engine.free()
    assert [future.result(60)[0].ids for future in first + futures] == [(5,), (6,), (7,), (8,)]
    assert engine.batches == [[[1, 5]], [[1, 6], [1, 8]], [[1, 7]]]


def test_no_batch_is_larger_than_the_engine_wants_and_each_request_has_its_turn(held):
    batcher, engine, _ = held
    long = batcher.submit([[1, 2, 3]] * 60, GREEDY)
    short = batcher.submit([[1, 9]], GREEDY)
    engine.free()
    assert len([future.result(60) for future in long]) == 60
    second = engine.batches[1]
    assert [1, 9] in second and short[0].done()  # it does not wait for the 60 before it
    for batch in engine.batches:
        assert (16 + max(map(len, batch))) * len(batch) <= engine.batch_tokens
    assert len(engine.batches) <= 2 + 61 * 19 // engine.batch_tokens + 1


def test_a_sentence_that_is_too_long_for_a_batch_has_one_alone(held):
    batcher, engine, _ = held
    futures = batcher.submit([[1] * 39], How(SearchOptions(beam=16)))
    engine.free()
    futures[0].result(60)


def test_what_nobody_waits_for_is_not_computed(held):
    batcher, engine, first = held
    ticket, other = Ticket(), Ticket()
    given_up, wanted = batcher.submit([[1, 6], [1, 7]], GREEDY), batcher.submit([[1, 8]], GREEDY)
    ticket.add(first + given_up)
    other.add(wanted)
    ticket.cancel()
    ticket.add(late := batcher.submit([[1, 9]], GREEDY))
    assert [future.cancelled() for future in (*first, *given_up, *late, *wanted)] == [True] * 4 + [False]
    engine.free()
    assert wanted[0].result(60)[0].ids == (8,)
    assert engine.batches == [[[1, 5]], [[1, 8]]]


def test_a_sentence_that_fails_fails_alone(held):
    batcher, engine, _ = held
    engine.bad = 13
    futures = batcher.submit([[1, 6], [1, 13], [1, 7]], GREEDY)
    engine.free()
    assert [future.result(60)[0].ids for future in (futures[0], futures[2])] == [(6,), (7,)]
    with pytest.raises(ValueError, match="nobody translates"):
        futures[1].result(60)
    assert batcher.submit([[1, 8]], GREEDY)[0].result(60)[0].ids == (8,)  # it goes on


def test_what_is_called_for_is_done_in_the_thread_of_the_engine(held):
    batcher, engine, _ = held
    called, given_up = batcher.call(lambda own: (own, threading.current_thread())), batcher.call(lambda own: own)
    failed = batcher.call(lambda own: own.nothing)
    after = batcher.submit([[1, 6]], GREEDY)
    given_up.cancel()
    assert not called.done()  # the engine is at work
    engine.free()
    assert called.result(60) == (engine, batcher._thread)
    with pytest.raises(AttributeError):
        failed.result(60)
    assert after[0].result(60)[0].ids == (6,)
    batcher.close()
    with pytest.raises(RuntimeError):
        batcher.call(lambda own: own)


def test_a_closed_batcher_does_what_it_has_taken(held):
    batcher, engine, _ = held
    futures = batcher.submit([[1, 6]] * 50, GREEDY)
    batcher.close()
    with pytest.raises(RuntimeError):
        batcher.submit([[1, 7]], GREEDY)
    engine.free()
    assert all(future.result(60) for future in futures)
    batcher._thread.join(60)
    assert not batcher._thread.is_alive()


class Stepping(PyTorchEngine):
    """A tiny model on which a test steps; rows: of each step that has begun."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(DeltaLM(DeltaLMConfig.preset("tiny", vocabulary_size=40, max_positions=40)).eval())
        self.batch_tokens = 800
        self.rows, self.fails = [], False
        self.begun, self._may_go_on = threading.Semaphore(0), threading.Semaphore(0)
        self._decode_step = self.model.decode_step
        self.model.decode_step = self._held_step

    def _held_step(self, last, cache):
        self.rows.append(len(last))
        self.begun.release()
        assert self._may_go_on.acquire(timeout=30)
        if self.fails:
            raise ValueError("nobody knows why")
        return self._decode_step(last, cache)

    def step(self, number=1):
        """Returns when the step after so many more has begun."""
        for _ in range(number):
            self._may_go_on.release()
            assert self.begun.acquire(timeout=30)

    def free(self):
        self._may_go_on.release(10_000)


@pytest.fixture
def stepped():
    """A batcher whose engine has begun its first step of ten sentences of 20 tokens, two rows each."""
    engine = Stepping()
    together = []
    batcher = Batcher(engine, together.append)
    long = batcher.submit([[1] * 20] * 10, EQUALLY_LONG)
    assert engine.begun.acquire(timeout=30)
    yield batcher, engine, long, together
    engine.free()
    batcher.close()
    batcher._thread.join(30)
    assert not batcher._thread.is_alive()


def test_a_short_request_enters_beside_a_long_one_and_overtakes_it(stepped):
    """The long one fills half of the room of 800, with 6 of its sentences; the short one is done in 4 steps."""
    batcher, engine, long, together = stepped
    assert (engine.rows, batcher.num_waiting) == ([12], 4)
    engine.step(3)
    short = batcher.submit([[1, 9, 8]], EQUALLY_LONG)
    other = batcher.submit([[1, 7]], WIDE)
    engine.step(5)
    assert short[0].done() and not any(future.done() for future in long)
    engine.free()
    assert [len(future.result(30)[0].ids) for future in (*short, *long)] == [3] + [20] * 10
    assert engine.rows[:9] == [12] * 4 + [14, 18, 18, 18, 16]
    assert together[:3] == [6, 7, 8]
    alone = PyTorchEngine(engine.model)
    for (found,), source, how in (
        (short, [1, 9, 8], EQUALLY_LONG),
        (other, [1, 7], WIDE),
        (long[:1], [1] * 20, EQUALLY_LONG),
    ):
        (expected,) = alone.generate([source], how.options)
        assert [one.ids for one in found.result()] == [one.ids for one in expected]
        assert found.result()[0].is_cut  # none ends by itself


def test_what_is_given_up_leaves_at_once(stepped):
    batcher, engine, long, _ = stepped
    ticket = Ticket()
    ticket.add(long)
    ticket.cancel()
    wanted = batcher.submit([[1, 9]], EQUALLY_LONG)
    engine.step()
    assert engine.rows == [12, 2]
    engine.free()
    assert len(wanted[0].result(30)[0].ids) == 2


def test_a_step_that_fails_is_for_each_sentence_alone(stepped):
    _, engine, long, _ = stepped
    engine.fails = True
    engine.step()  # the first sentence has begun again, alone
    engine.fails = False
    engine.free()
    assert engine.rows[:2] == [12, 2]
    assert [len(future.result(30)[0].ids) for future in long] == [20] * 10


def test_a_source_that_cannot_enter_does_not_disturb_those_that_run(stepped):
    batcher, engine, long, _ = stepped
    bad, good = batcher.submit([[1, 99_999], [1, 5]], EQUALLY_LONG)
    engine.free()
    with pytest.raises(IndexError):
        bad.result(30)
    assert len(good.result(30)[0].ids) == 2
    assert [len(future.result(30)[0].ids) for future in long] == [20] * 10
    assert engine.rows.count(12) >= 21  # the long ones ran on


def test_nothing_is_translated_into_nothing(stepped):
    batcher, _, _, _ = stepped
    (nothing,) = batcher.submit([[]], EQUALLY_LONG)
    assert nothing.result(0)[0].ids == ()


def test_the_cache_keeps_what_was_asked_for_last():
    cache: Cache[str] = Cache(2)
    for key in "ab":
        cache.keep(key, key * 2)
    assert cache.get("a") == "aa"
    cache.keep("c", "cc")
    assert [cache.get(key) for key in "abc"] == ["aa", None, "cc"]
    assert len(cache) == 2
    nothing: Cache[str] = Cache(0)
    nothing.keep("a", "aa")
    assert nothing.get("a") is None


def test_the_cache_of_many_threads_stays_within_its_size():
    cache: Cache[int] = Cache(50)

    def work(start: int) -> None:
        for number in range(2_000):
            cache.keep((start * number) % 97, number)
            cache.get(number % 97)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cache) == 50

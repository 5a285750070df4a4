"""Which sentences share a batch, and what becomes of those that nobody waits for, with an engine that is held."""

import threading

import pytest

from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.serving.batching import Batcher, How, Ticket
from deltalm_ds.serving.cache import Cache
from tests.serving.served import Echo

GREEDY, WIDE = How(SearchOptions(beam=1)), How(SearchOptions(beam=4))


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
    assert [future.cancelled() for future in (*first, *given_up, *late, *wanted)] == [False, True, True, True, False]
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

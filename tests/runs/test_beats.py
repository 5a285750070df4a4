"""Slow ranks from two looks at the beats of all."""

from dataclasses import replace

import pytest

from deltalm_ds.runs.beats import BEAT_BYTES, BEATS, Beat, beat_path, read_beats, slow_ranks, write_beat


def look(step, *seconds_per_step, host="host"):
    """Beats of ranks that need so long for a step."""
    return {
        rank: Beat(rank, 9, "forward", step, 2, 0.1, 9.0, 100 + rank, host, 1, step, step * seconds)
        for rank, seconds in enumerate(seconds_per_step)
    }


@pytest.mark.parametrize(
    ("seconds", "slow"),
    [
        ([1.0, 1.0, 1.0, 1.6], [3]),
        ([1.0, 1.0, 1.0, 1.4], []),
        ([1.0, 1.6], [1]),
        ([1.6, 1.0], [0]),
        ([1.0], []),
        ([1.0, 5.0, 1.0, 3.0, 1.1], [1, 3]),  # slowest first
        ([2.0, 2.0, 2.0, 0.1], []),  # one that is fast makes nobody slow
    ],
)
def test_slow_is_who_needs_longer_than_most_by_a_factor(seconds, slow):
    assert [one.beat.rank for one in slow_ranks(look(10, *seconds), look(40, *seconds))] == slow


def test_only_what_was_done_between_the_looks_counts():
    earlier, now = look(10, 1.0, 1.0, 1.0), look(20, 1.0, 1.0, 1.0)
    earlier[0] = replace(earlier[0], work_s=earlier[0].work_s + 500)
    now[0] = replace(now[0], work_s=now[0].work_s + 500)
    assert slow_ranks(earlier, now) == []
    now[0] = replace(now[0], work_s=now[0].work_s + 10)
    (one,) = slow_ranks(earlier, now)
    assert (one.seconds_per_step, one.median) == (2.0, 1.0)
    assert str(one) == "rank 0 (process 100 on host) works 2 s a step, others 1 s"


def test_another_process_or_one_without_a_step_says_nothing():
    earlier, now = look(10, 1.0, 1.0, 9.0), look(40, 1.0, 1.0, 9.0)
    assert [one.beat.rank for one in slow_ranks(earlier, now)] == [2]
    assert slow_ranks(earlier, {**now, 2: replace(now[2], host="another")}) == []
    assert slow_ranks(earlier, {**now, 2: replace(now[2], steps=10)}) == []
    assert slow_ranks({}, now) == [] and slow_ranks(now, now) == []


def test_a_beat_is_read_as_it_was_written(tmp_path):
    (tmp_path / BEATS).mkdir()
    (beat,) = look(1_000_000_000, 1 / 3, host="x" * 63).values()
    for one in (replace(beat, section="communication"), beat):
        write_beat(beat_path(tmp_path, 0), one)
        assert beat_path(tmp_path, 0).stat().st_size == BEAT_BYTES
        assert read_beats(tmp_path) == {0: one}

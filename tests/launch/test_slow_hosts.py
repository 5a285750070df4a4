"""Slow ranks are told once for each host, after two looks, and again when they were not slow in between."""

from deltalm_ds.launch.slow_hosts import STEPS, SlowHosts


def beats(steps, *seconds_per_step, done=(0.0, 0.0, 0.0, 0.0)):
    """Two hosts of two ranks: their beats after so many steps, of which each took so long."""
    found = {}
    for rank, seconds in enumerate(seconds_per_step):
        host = f"n{rank // 2 + 1}"
        found[rank] = {"rank": rank, "beat": steps, "section": "forward", "step": steps, "place": 1, "since_s": 0.0}
        found[rank] |= {"limit_s": 9.0, "pid": rank + 1, "host": host, "started_by": 1, "steps": steps}
        found[rank]["work_s"] = done[rank] + seconds * STEPS
    return found


def told(looks):
    slow, done, found = SlowHosts(), [0.0] * 4, []
    for number, seconds in enumerate(looks):
        found.append([one.beat.rank for one in slow.look(beats(number * STEPS, *seconds, done=done))])
        done = [before + one * STEPS for before, one in zip(done, seconds, strict=True)]
    return found


EVEN, ONE, TWO = (1.0, 1.1, 1.0, 0.9), (1.0, 1.0, 1.0, 2.0), (1.0, 1.0, 1.8, 2.0)


def test_even_ranks_are_not_slow():
    assert told([EVEN] * 5) == [[]] * 5


def test_a_slow_rank_is_told_once_after_two_looks():
    assert told([EVEN, EVEN, ONE, ONE, ONE, ONE]) == [[], [], [], [3], [], []]


def test_a_host_with_two_slow_ranks_is_told_once_by_its_slowest():
    assert told([EVEN, TWO, TWO, ONE, ONE]) == [[], [], [3], [], []]


def test_one_slow_look_is_none():
    assert told([EVEN, ONE, EVEN, ONE, EVEN]) == [[]] * 5


def test_it_is_told_again_after_it_was_well():
    assert told([EVEN, ONE, ONE, EVEN, ONE, ONE]) == [[], [], [3], [], [], [3]]


def test_too_few_steps_say_nothing():
    slow = SlowHosts()
    for steps in range(STEPS):
        assert slow.look(beats(steps, 1.0, 1.0, 1.0, 5.0)) == []

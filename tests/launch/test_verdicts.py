"""Of all signs of an attempt's end the cause."""

import signal

import pytest

from deltalm_ds.launch.attempt import Sign
from deltalm_ds.launch.job import Job, JobHost
from deltalm_ds.launch.verdicts import judge

JOB = Job("/run", 1, tuple(JobHost(f"n{i}", (0, 1)) for i in range(3)), ("x",), {})
GLOO = ["[W1126] noise", "RuntimeError: [pair.cc:553] Connection closed by peer [10.78.0.2]:38087."]
OOM = ["Traceback (most recent call last):", "RuntimeError: CUDA error: an illegal memory access was encountered"]
LOST = Sign("host", 2, 9.0, words="not heard for 12 s")
GONE = Sign("agent", 1, 1.0)
STOPPED = Sign("stopped", 1, 5.0, rank=3, words="process 7")
LAUNCHER = Sign("launcher", 0, 1.0, code=-9)


def rank(number, code, at=1.0):
    return Sign("rank", number // 2, at, number, code)


@pytest.mark.parametrize(
    ("signs", "lines", "host", "words"),
    [
        ([rank(0, 1), LOST], {0: GLOO}, "n2", "host n2 is lost (not heard for 12 s)"),
        ([rank(0, 1), GONE], {0: GLOO}, "n1", "the agent on n1 is gone"),
        ([rank(0, 1), STOPPED], {0: OOM}, "n1", "rank 3 on n1 was stopped by a signal (process 7)"),
        ([rank(3, 75), LAUNCHER], {}, "n0", "DeepSpeed's launcher on n0 was ended by SIGKILL"),
        (
            [rank(0, 1), rank(2, 1), rank(5, -9)],
            {0: GLOO, 2: GLOO},
            "n2",
            "rank 5 on n2 ended by SIGKILL (probably out",
        ),
        ([rank(0, 1), rank(5, -11)], {0: OOM}, "n2", "rank 5 on n2 ended by SIGSEGV"),
        (
            [rank(0, 1), rank(1, -15), rank(4, 1)],
            {0: GLOO, 4: OOM},
            "n2",
            "rank 4 on n2 ended by exit code 1: Traceback",
        ),
        ([rank(0, 1), rank(1, -15)], {0: GLOO}, "n0", "rank 1 on n0 ended by SIGTERM"),
        ([rank(2, 1), rank(4, 1)], {2: GLOO, 4: GLOO}, "n1", "rank 2 on n1 ended by exit code 1"),
        ([rank(2, None)], {}, "n1", "rank 2 on n1 ended by an end that nobody saw"),
        ([Sign("rank", 1, 1.0, None, 3)], {}, "n1", "a rank on n1 ended by exit code 3"),
        ([Sign("stopped", 1, 1.0, words="process 7")], {}, "n1", "DeepSpeed's launcher on n1 was stopped by a signal"),
    ],
)
def test_the_cause_comes_before_what_follows_from_it(signs, lines, host, words):
    verdict = judge(signs, JOB, (), lines)
    assert verdict.host == host and verdict.what.startswith(words)


def end(number, reason, code=1):
    return {"rank": number, "code": code, "reason": reason}


def test_a_rank_that_says_why_is_believed_wherever_it_was_seen_first():
    told = [end(0, GLOO[1]), end(5, "ValueError: a row is damaged", 3), end(2, GLOO[1])]
    verdict = judge([rank(0, 1), rank(2, 1)], JOB, told, {0: GLOO, 2: GLOO})
    assert (verdict.host, verdict.rank) == ("n2", 5)
    assert verdict.what == "rank 5 on n2 ended: ValueError: a row is damaged"


@pytest.mark.parametrize("code", [-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS])
def test_a_rank_that_a_signal_ended_cannot_say_so_and_is_the_cause_all_the_same(code):
    verdict = judge([rank(0, 1), rank(4, code)], JOB, [end(0, "RuntimeError: something else")], {})
    assert (verdict.host, verdict.rank) == ("n2", 4)

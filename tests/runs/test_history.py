"""The starts of a run: which count as failed, and when there were too many of them."""

import json
import re
import signal
import socket

import pytest

from deltalm_ds.errors import CheckError
from deltalm_ds.runs.events import read_events
from deltalm_ds.runs.history import first_cause, read_starts, record_end, record_rank_end, record_start
from tests.ranks_here import exit_codes, places, start_rank


def checkpoint(run, step):
    directory = run / "checkpoints" / f"step_{step:08d}"
    directory.mkdir(parents=True)
    (directory / "state.json").write_text(json.dumps({"step": step}))


def start(run, code, reason="", asked=False, again=False):
    record_start(run, 2, again)
    return record_end(run, code, reason, asked)


def test_three_starts_that_fail_at_the_same_step_are_enough(tmp_path):
    checkpoint(tmp_path, 20)
    for reason in ("out of memory", "a rank was ended by signal 9", "nobody knows"):
        assert start(tmp_path, 1, reason) == 1
    before = read_events(tmp_path)
    with pytest.raises(CheckError, match="makes no progress: 3 starts failed at step 20") as raised:
        start(tmp_path, 1)
    lines = str(raised.value).split("\n")[1:4]
    assert [line.split(": ")[-1] for line in lines] == ["out of memory", "a rank was ended by signal 9", "nobody knows"]
    assert all(re.fullmatch(r"  2.*\+00:00 on .+, 2 rank\(s\): .*", line) for line in lines)
    assert read_events(tmp_path) == before  # a refused start is none
    start(tmp_path, 1, again=True)
    start(tmp_path, 1)
    start(tmp_path, 1)
    with pytest.raises(CheckError, match="3 starts failed"):
        start(tmp_path, 1)


def test_a_checkpoint_is_progress(tmp_path):
    for step in range(10, 100, 10):
        start(tmp_path, 247)
        start(tmp_path, 247)
        checkpoint(tmp_path, step)
        assert start(tmp_path, 247) == 247
    assert len(read_starts(tmp_path)) == 27


@pytest.mark.parametrize(("code", "asked"), [(0, False), (75, True), (75, False), (-9, True)])
def test_ends_that_were_wanted_do_not_count(code, asked, tmp_path):
    for _ in range(4):
        start(tmp_path, code, asked=asked)
    start(tmp_path, 1)
    assert [one.failed for one in read_starts(tmp_path)] == [False] * 4 + [True]


def test_a_start_without_an_end_failed_unless_its_ranks_saved(tmp_path):
    record_start(tmp_path, 1, again=False)
    record_start(tmp_path, 2, again=False)
    record_rank_end(tmp_path, 0, 75, "stopped, saved")
    killed, left = read_starts(tmp_path)
    assert (killed.failed, killed.reason) == (True, "killed without a word")
    assert not left.failed


@pytest.mark.parametrize(
    ("ranks", "code", "expected"),
    [
        ({}, 0, (0, "done")),
        ({}, 3, (3, "exit code 3")),
        ({1: (3, "shards are damaged"), 0: (1, "RuntimeError: Connection closed")}, 1, (3, "shards are damaged")),
        ({0: (1, "ValueError: it is so"), 1: (1, "RuntimeError: closed")}, 1, (1, "ValueError: it is so")),
        ({0: (75, "stopped, saved")}, 1, (75, "stopped, saved")),
        ({0: (75, "stopped, saved")}, 143, (75, "stopped, saved")),
        ({1: (1, "RuntimeError: Connection closed")}, 247, (247, "killed")),
    ],
)
def test_the_ends_of_all_ranks_are_one_end(ranks, code, expected, tmp_path):
    record_start(tmp_path, 2, again=False)
    for rank, (of_rank, reason) in ranks.items():
        record_rank_end(tmp_path, rank, of_rank, f"{reason}\nand more lines")
    assert record_end(tmp_path, code, "killed" if code == 247 else "", asked=False) == expected[0]
    end = read_starts(tmp_path)[-1].end
    assert (end["code"], end["reason"]) == expected


# --- which end made the others ---

GLOO = "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/"
FOLLOWERS = (
    f"{GLOO}pair.cc:553] Connection closed by peer [127.0.0.1]:27372. This is typically caused by a remote worker …",
    f"{GLOO}pair.cc:569] Read error [10.9.0.2]:1234: Connection reset by peer",
    f"{GLOO}unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation to complete",
    "DistStoreError: wait timeout after 3000ms, keys: /default_pg/0//1//cpu//0/1",
    "DistBackendError: NCCL error in: NCCLUtils.cpp:133, remote process exited or there was a network error, NCCL …",
)


def end(rank, code, reason):
    return {"kind": "rank ended", "rank": rank, "host": "host", "code": code, "reason": reason}


@pytest.mark.parametrize("follower", FOLLOWERS)
def test_a_rank_that_lost_its_partners_is_not_the_first_cause(follower):
    own = end(2, 1, "ValueError: own fault")
    assert first_cause([end(0, 1, follower), own, end(1, 1, follower)]) == own
    assert first_cause([end(0, 1, follower), end(1, 1, follower)]) is None


def test_the_end_that_makes_trying_again_useless_comes_first():
    final = end(1, 3, "a damaged file")
    assert first_cause([end(0, 1, "ValueError: earlier"), final]) == final
    assert first_cause([end(0, 1, "ValueError: earlier"), end(1, 1, "KeyError: later")])["rank"] == 0
    assert first_cause([end(0, 75, "stopped, saved")]) is None and first_cause([]) is None


def test_the_end_of_a_start_has_the_reason_of_its_first_cause(tmp_path):
    record_start(tmp_path, 2, again=False)
    record_rank_end(tmp_path, 0, 1, FOLLOWERS[0])
    record_rank_end(tmp_path, 1, 1, "ValueError: own fault")
    record_end(tmp_path, 1, "", False)
    (start,) = read_starts(tmp_path)
    assert start.reason == "ValueError: own fault"
    assert {one["host"] for one in start.rank_ends} == {socket.gethostname()}


RANK = """
import os, pathlib, signal, sys
from datetime import timedelta
import torch
from torch import distributed
from deltalm_ds.runs.history import record_rank_end
rank, how = int(os.environ["RANK"]), sys.argv[1]
distributed.init_process_group("gloo", timeout=timedelta(seconds=30))
try:
    distributed.all_reduce(torch.ones(9))
    if rank == 1 and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 1:
        raise ValueError("own fault")
    distributed.all_reduce(torch.ones(9))
except Exception as error:
    record_rank_end(pathlib.Path("."), rank, 1, f"{type(error).__name__}: {error}")
os._exit(1)
"""


@pytest.mark.parametrize("how", ["killed", "raised"])
def test_what_ranks_say_whose_partner_is_gone(how, tmp_path):
    """With gloo itself: a rank that is killed says nothing, and the other one is not to blame."""
    codes = exit_codes([start_rank(["-c", RANK, how], place, cwd=tmp_path) for place in places(2)], 60)
    assert codes == [1, -signal.SIGKILL if how == "killed" else 1]
    ends = read_events(tmp_path)
    follower = next(one for one in ends if one["rank"] == 0)
    assert "ValueError" not in follower["reason"]
    cause = first_cause(ends)
    assert cause is None if how == "killed" else (cause["rank"], cause["reason"]) == (1, "ValueError: own fault")

"""The starts of a run: which count as failed, and when there were too many of them."""

import json
import re

import pytest

from deltalm_ds.errors import CheckError
from deltalm_ds.runs.events import read_events
from deltalm_ds.runs.history import read_starts, record_end, record_rank_end, record_start


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

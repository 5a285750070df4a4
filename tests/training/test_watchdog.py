"""A run that hangs ends soon after its limit, and says which rank keeps it: processes are stopped for real."""

import signal
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from deltalm_ds.runs.beats import Beat, beat_path, read_beats
from deltalm_ds.runs.events import read_events
from deltalm_ds.runs.history import first_cause, read_starts
from deltalm_ds.training.sections import Sections
from deltalm_ds.training.watchdog import MOST_REPORTS, _tidy, verdict
from tests.ranks_here import exit_codes, places, start_rank

LIMITS = {"limits": {"step_s": 3.0, "checkpoint_s": 30.0, "validation_s": 30.0}}
LONG = {"training": {"max_steps": 5000, "save_every": 5000, **LIMITS}, "validation": None}
NAMED_WITHIN_S = 30.0


def beat(rank, number, step=7, place=2, since_s=20.0, section="backward"):
    return Beat(rank, number, section, step, place, since_s, 10.0, 100 + rank, "host", 1)


def look_twice(*beats, stopped=()):
    """The verdict in words where all ranks beat but those that are stopped; who is blamed stands first there."""
    earlier = {one.rank: replace(one, beat=one.beat - (one.rank not in stopped)) for one in beats}
    found = verdict(earlier, {one.rank: one for one in beats})
    for one in found.blamed if found else []:
        assert str(one) in found.fault.partition("waiting")[0]
    return found and found.fault


def test_the_rank_that_beats_no_more_is_named():
    found = look_twice(beat(0, 9), beat(1, 5, place=1), beat(2, 9), stopped=[1])
    assert found.startswith("Stopped, dead, or cut off: rank 1 (process 101 on host, in backward of step 7)")
    assert "rank 0" not in found and "rank 2" not in found


def test_the_rank_behind_is_named_where_all_beat():
    found = look_twice(beat(0, 9), beat(1, 9, place=1, section="forward"), beat(2, 9))
    assert found.startswith("Stuck for 20 s: rank 1 (process 101 on host, in forward of step 7); waiting: rank 0 (")
    assert look_twice(beat(0, 9, place=0), beat(1, 9, step=6, place=9)).startswith("Stuck for 20 s: rank 1 ")
    assert look_twice(beat(0, 9)).startswith("Stuck for 20 s: rank 0 ") and "waiting" not in look_twice(beat(0, 9))


def test_who_is_within_its_own_limit_is_waited_for():
    assert look_twice(beat(0, 9), beat(1, 9, place=1, since_s=9.0, section="validation"), beat(2, 9)) is None


def test_where_all_wait_for_each_other_nobody_is_to_blame():
    assert look_twice(beat(0, 9), beat(1, 9)).startswith("All ranks wait in the same place (rank 0 ")


def test_a_place_is_the_number_of_sections_in_a_step_however_often_one_gives_signs_of_life():
    sections, positions = Sections(), []
    sections.switch("data")
    for signs in (1, 5):
        sections.begin_step(4)
        with sections.section("validation"):
            for _ in range(signs):
                sections.switch("validation")
        positions.append(sections.position)
    sections.begin_step(5)
    assert positions[0] == positions[1] and positions[0][0] == 4
    assert sections.position > positions[0]


def test_a_beat_that_is_half_written_is_not_read(tmp_path):
    (tmp_path / "ranks").mkdir()
    for number, text in enumerate(("", '{"rank": 1', '{"rank": 2}', "[]")):
        (tmp_path / "ranks" / f"rank_{number:05d}.json").write_text(text)
    assert read_beats(tmp_path) == {}


def test_a_start_keeps_the_newest_reports_and_no_beats(tmp_path):
    _tidy(tmp_path)
    for number in range(9):
        (tmp_path / "ranks" / f"stuck_{number}").mkdir()
        for attempt in (None, 7):
            beat_path(tmp_path, number, attempt).write_text("")
    _tidy(tmp_path)
    assert (
        sorted(path.name for path in (tmp_path / "ranks").iterdir()) == [f"stuck_{n}" for n in range(9)][-MOST_REPORTS:]
    )


# --- with processes ---


def launch(run, num_ranks, log):
    code = "import sys, pathlib; from deltalm_ds.launch.local import train_on_this_machine as train; "
    code += f"sys.exit(train(pathlib.Path(sys.argv[1]), {num_ranks}))"
    return start_rank(["-c", code, run], {}, stdout=log, stderr=log)


def training_beats(run, num_ranks, process):
    """The beats of all ranks, once they train."""
    for _ in range(1200):
        beats = read_beats(run)
        if len(beats) == num_ranks and all(one.step > 2 for one in beats.values()):
            return beats
        assert process.poll() is None
        time.sleep(0.1)
    raise AssertionError("the ranks do not train")


def event_of_hang(run, since):
    """The event, soon after the limit."""
    while not (events := [event for event in read_events(run) if event["kind"] == "stuck"]):
        assert time.monotonic() - since < LIMITS["limits"]["step_s"] + NAMED_WITHIN_S
        time.sleep(0.1)
    assert len(events) == 1
    return events[0]


@pytest.mark.parametrize("num_ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_stopped_rank_is_named_and_the_run_ends(num_ranks, make_run, tmp_path):
    run, stopped = make_run(tmp_path / "run", **LONG), num_ranks - 1
    with open(tmp_path / "log", "w") as log:
        launcher = launch(run, num_ranks, log)
        try:
            beats = training_beats(run, num_ranks, launcher)
            ranks = [psutil.Process(beats[rank].pid) for rank in range(num_ranks)]
            if num_ranks > 1:
                ranks[0].send_signal(signal.SIGUSR2)  # tells its stacks and goes on
            ranks[stopped].send_signal(signal.SIGSTOP)
            event = event_of_hang(run, time.monotonic())
            assert launcher.wait(timeout=60) == 1
        finally:
            launcher.kill()
    assert f"rank {stopped} (process {ranks[stopped].pid} on " in event["fault"]
    assert (event["ranks"], event["hosts"]) == ([stopped], [beats[stopped].host])
    assert first_cause(read_starts(run)[-1].rank_ends)["rank"] == stopped
    assert num_ranks == 1 or "rank 0 (" not in event["fault"]
    assert psutil.wait_procs(ranks, timeout=20)[1] == []
    told = (tmp_path / "log").read_text()
    assert event["fault"] in told and "probably out of memory" not in told
    stacks = [path.name for path in (run / "ranks").glob("stuck_*/*")]
    assert stacks == ["rank_00000.txt"] * (num_ranks - 1)
    if num_ranks > 1:  # twice: when it was asked, and in the end
        assert told.count(" in main\n") >= 2


@pytest.mark.slow
def test_a_run_that_is_stopped_whole_for_longer_than_its_limits_goes_on(make_run, tmp_path):
    """As by a scheduler that suspends jobs."""
    run = make_run(tmp_path / "run", **LONG)
    with open(tmp_path / "log", "w") as log:
        launcher = launch(run, 2, log)
        try:
            before = training_beats(run, 2, launcher)
            processes = [psutil.Process(launcher.pid), *psutil.Process(launcher.pid).children(recursive=True)]
            for process in processes:
                process.suspend()
            time.sleep(LIMITS["limits"]["step_s"] + NAMED_WITHIN_S + 5)
            for process in processes:
                process.resume()
            time.sleep(5)
            after = training_beats(run, 2, launcher)
            assert [after[rank].pid for rank in (0, 1)] == [before[rank].pid for rank in (0, 1)]
            assert all(after[rank].step > before[rank].step for rank in (0, 1))
            launcher.send_signal(signal.SIGTERM)
            launcher.wait(timeout=60)
        finally:
            launcher.kill()
    assert [event["kind"] for event in read_events(run) if event["kind"] == "stuck"] == []


def test_a_rank_that_is_stuck_is_named_with_the_stacks_of_all(make_run, tmp_path):
    run = make_run(tmp_path / "run", **LONG)
    arguments = [Path(__file__).with_name("hanging_rank.py"), run]
    with open(tmp_path / "log", "w") as log:
        ranks = [start_rank(arguments, place, stdout=log, stderr=log) for place in places(2)]
    assert exit_codes(ranks, 100) == [1, 1], (tmp_path / "log").read_text()[-6000:]
    (event,) = (event for event in read_events(run) if event["kind"] == "stuck")
    assert f" s: rank 1 (process {ranks[1].pid} on " in event["fault"]
    assert "in forward of step 3" in event["fault"].partition("waiting")[0]
    assert "waiting: rank 0 (" in event["fault"]
    stacks = {path.name: path.read_text() for path in (run / "ranks").glob("stuck_*/*")}
    assert sorted(stacks) == ["rank_00000.txt", "rank_00001.txt"]
    assert "in hanging" in stacks["rank_00001.txt"] and "in hanging" not in stacks["rank_00000.txt"]


def wait_for_a_disk(run, seconds, limit_s):
    """Exit code and messages of a rank whose run directory does not answer for so long."""
    run.mkdir()
    with open(run.with_name("log"), "w") as log:
        arguments = [Path(__file__).with_name("unanswered_rank.py"), run, seconds, limit_s]
        rank = start_rank(arguments, {}, stdout=log, stderr=log)
        try:
            code = rank.wait(timeout=60)
        finally:
            rank.kill()
    return code, run.with_name("log").read_text(), f"process {rank.pid}"


def test_a_disk_that_does_not_answer_for_a_while_is_told_and_waited_for(tmp_path):
    code, told, _ = wait_for_a_disk(tmp_path / "run", 6.0, 60.0)
    assert code == 0, told
    silent, answers = told.splitlines()
    assert silent.startswith("deltalm: rank 0 on ") and f"{tmp_path / 'run'} has not answered for " in silent
    assert answers.endswith(f"{tmp_path / 'run'} answers again.")


def test_a_rank_that_waits_for_a_disk_beyond_its_limit_ends_and_says_so(tmp_path):
    began = time.monotonic()
    code, told, process = wait_for_a_disk(tmp_path / "run", 50.0, 3.0)
    assert code == 1 and time.monotonic() - began < 40
    assert "in waiting_for_the_disk" in told
    last = told.splitlines()[-1]
    assert last.startswith("deltalm: Stuck for ") and f"rank 0 ({process} on " in last
    assert "in forward of step 7" in last
    assert last.endswith(f"{tmp_path / 'run'} does not answer. The run ends.")

"""What follows after an attempt: simulated attempts on simulated hosts, with a simulated clock."""

import errno
import json
import os
import signal
import sys
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltalm_ds.errors import CheckError, InputError
from deltalm_ds.launch import supervisor, telling
from deltalm_ds.launch.control import STOP
from deltalm_ds.launch.fleet import Memory, read_memory
from deltalm_ds.launch.hostfile import Host
from deltalm_ds.launch.remote import Outcome
from deltalm_ds.launch.supervisor import Launch, supervise
from deltalm_ds.launch.verdicts import Verdict
from deltalm_ds.recipe.launch_section import LaunchSection
from deltalm_ds.runs.attempts import begin_attempt, current_attempt
from deltalm_ds.runs.events import read_events

HOSTS = (Host("n1", 1), Host("n2", 1), Host("s1", 1, is_spare=True))


class World:
    """Scripted attempts: each is `done`, `rank HOST`, `lost HOST`, `unreachable HOST` or `stop`; ` +` saves before."""

    def __init__(self, run, script):
        self.run, self.script, self.now = run, list(script), 1000.0
        self.attempts, self.off, self.step = [], {}, 0

    # in place of the module time
    def time(self):
        return self.now

    monotonic = time

    def sleep(self, seconds):
        self.now += seconds

    def run_on_hosts(self, names, command, timeout_s):
        self.now += 1
        return {name: Outcome(code=0 if self.now > self.off.get(name, 0) else 255) for name in names}

    def save(self):
        self.step += 10
        directory = self.run / "checkpoints" / f"step_{self.step:08d}"
        directory.mkdir(parents=True)
        (directory / "state.json").touch()

    def attempt(self, job, _teller, before_start, grace_s):
        """In place of AttemptRun."""
        names = [host.name for host in job.hosts]
        fake = SimpleNamespace(verdict=None, attempt=SimpleNamespace(has_started=True, has_done=False))
        fake.attempt.was_asked, fake.attempt.was_stopped = False, False
        fake.attempt.hosts = [SimpleNamespace(is_lost=False) for _ in names]

        def run():
            what = self.script.pop(0) if self.script else "done"
            kind, _, host = what.removesuffix(" +").partition(" ")
            if host not in names and host:
                kind, host = "rank", names[0]
            self.attempts.append((self.now, names, kind, host))
            self.now += 30
            if kind == "unreachable":
                fake.attempt.has_started = False
            else:
                before_start()
            if what.endswith("+"):
                self.save()
            if kind == "done":
                fake.attempt.has_done = True
            elif kind == "stop":
                os.kill(os.getpid(), signal.SIGTERM)
                assert grace_s() > 0
                fake.attempt.was_asked = fake.attempt.was_stopped = True
            else:
                fake.verdict = Verdict("rank" if kind == "rank" else "host", host, None, f"{host}: {what}")
                if kind != "rank":
                    fake.attempt.hosts[names.index(host)].is_lost = True
                    self.off[host] = self.now + self.away_s

        fake.run = run
        return fake

    away_s = 1e9


@pytest.fixture
def world(tmp_path, monkeypatch):
    return make_world(tmp_path, monkeypatch)


def make_world(run, monkeypatch, script=()):
    found = World(run, script)
    monkeypatch.setattr(supervisor, "time", found)
    monkeypatch.setattr(supervisor, "run_on_hosts", found.run_on_hosts)
    monkeypatch.setattr(supervisor, "AttemptRun", found.attempt)
    return found


def go(world, hosts=HOSTS, again=False, **section):
    return supervise(Launch(world.run, hosts, LaunchSection(**section), again))


def kinds(world):
    return [event["kind"] for event in read_events(world.run)]


def test_a_run_without_faults(world):
    assert go(world) == 0
    assert [names for _, names, *_ in world.attempts] == [["n1", "n2"]]
    assert kinds(world) == ["supervisor started", "start", "end", "supervisor ended"]
    assert read_memory(world.run).end == {"code": 0, "reason": "done"}
    assert current_attempt(world.run) == 1


def test_a_rank_that_fails_is_no_reason_to_leave_its_host_and_twice_is(world):
    world.script = ["rank n2 +", "rank n2 +", "done"]
    assert go(world) == 0
    assert [names for _, names, *_ in world.attempts] == [["n1", "n2"], ["n1", "n2"], ["n1", "s1"]]
    event = next(event for event in read_events(world.run) if event["kind"] == "spare taken")
    assert (event["host"], event["instead"]) == ("s1", ["n2"])


def test_a_spare_takes_the_place_of_a_lost_host_after_the_back_off(world):
    world.script = ["lost n1 +", "done"]
    assert go(world, backoff_s=7) == 0
    (_, _, *_), (second, names, *_) = world.attempts
    assert names == ["n2", "s1"] and 1037 <= second < 1038


def test_a_lost_host_is_waited_for_where_there_is_no_spare(world):
    world.away_s = 100
    world.script = ["lost n2 +", "done"]
    assert go(world, HOSTS[:2]) == 0
    (_, first, *_), (when, second, *_) = world.attempts
    assert first == second == ["n1", "n2"] and when >= 1130


def test_fewer_hosts_where_the_recipe_allows_it_and_only_after_waiting(world):
    world.script = ["lost n2 +", "done"]
    assert go(world, HOSTS[:2], min_hosts=1, wait_for_host_s=60) == 0
    (_, _, *_), (when, names, *_) = world.attempts
    assert names == ["n1"] and 1090 <= when < 1120
    assert "went on with fewer hosts" in kinds(world)


def test_too_few_hosts_are_one_sentence(world):
    world.script = ["lost n2 +", "done"]
    with pytest.raises(CheckError, match=r"n2 did not come back within 60 s, there is no spare, and 1 hosts"):
        go(world, HOSTS[:2], wait_for_host_s=60)
    assert read_memory(world.run).end["code"] == 4


def test_a_host_that_cannot_be_reached_at_the_first_start_is_an_error(world):
    world.script = ["unreachable n2"]
    with pytest.raises(InputError, match="Nothing was started: n2"):
        go(world)
    assert "start" not in kinds(world)


def test_starts_without_progress_come_to_an_end(world):
    world.script = ["rank n1"] * 9
    with pytest.raises(CheckError, match="makes no progress: 3 starts failed at step 0"):
        go(world)
    assert len(world.attempts) == 4  # the fourth was not let start
    world.script = ["done"]
    with pytest.raises(CheckError):
        go(world)
    world.script = ["done"]
    assert go(world, again=True) == 0


def test_failures_are_counted_in_a_window(world):
    world.script = ["rank n1 +"] * 5
    with pytest.raises(CheckError, match=r"3 attempts failed within 500 s \(launch.max_failures: 2\)"):
        go(world, HOSTS[:2], window_s=500, max_failures=2)
    world.script = ["rank n1 +"] * 5
    assert go(world, HOSTS[:2], window_s=60, max_failures=2) == 0  # at most two of them at any time


def test_what_a_rank_says_of_itself_ends_the_run(world, monkeypatch):
    def told(run, code, reason, asked):
        return 3

    monkeypatch.setattr(supervisor, "record_end", told)
    world.script = ["rank n2"]
    assert go(world) == 3
    assert len(world.attempts) == 1


def test_who_wants_the_end_gets_it(world):
    world.script = ["stop"]
    assert go(world) == 75
    assert kinds(world)[-1] == "supervisor ended"


def test_a_request_to_stop_is_heard_while_a_host_is_waited_for(world):
    world.script = ["lost n2 +"]
    answer = world.run_on_hosts

    def ask(*arguments):
        (world.run / STOP).touch()
        return answer(*arguments)

    supervisor.run_on_hosts = ask
    assert go(world, HOSTS[:2]) == 75
    assert len(world.attempts) == 1


def test_a_supervisor_that_was_killed_is_gone_on_from(world, monkeypatch):
    class Killed(BaseException):
        pass

    cleared = []
    monkeypatch.setattr(supervisor, "end_on_hosts", lambda *arguments: cleared.append(arguments))
    world.script = ["rank n2 +", "rank n2 +", "lost n1 +"]
    ask = world.attempt

    def attempt(*arguments):
        if len(world.attempts) == 3:
            raise Killed
        return ask(*arguments)

    monkeypatch.setattr(supervisor, "AttemptRun", attempt)
    memory_end = Memory.write

    def write(memory, run):
        if memory.end is None:  # a process that is killed writes no end
            memory_end(memory, run)

    monkeypatch.setattr(Memory, "write", write)
    with pytest.raises(Killed):
        go(world)
    monkeypatch.setattr(Memory, "write", memory_end)
    monkeypatch.setattr(supervisor, "AttemptRun", ask)
    before = read_memory(world.run)
    assert before.attempt == 4 and "n1" in before.lost and "n2" in before.excluded
    assert go(world) == 0
    assert cleared == [(world.run, 4, before.hosts, supervisor.GRACE_S)]
    assert world.attempts[-1][1] == ["n2", "s1"]
    assert current_attempt(world.run) == 5


def test_two_supervisors_at_once(world, monkeypatch):
    def second(*_):
        with pytest.raises(InputError, match="Another process trains in"):
            go(world)
        return world.attempt(*_)

    monkeypatch.setattr(supervisor, "AttemptRun", second)
    assert go(world) == 0


def test_the_hook_gets_every_event_and_its_failure_is_one(world):
    got = world.run / "got"
    assert go(world, hook=f"cat >> {got}") == 0
    hooked = [json.loads(line) for line in got.read_text().splitlines()]
    assert {event["kind"] for event in hooked} == {"supervisor started", "supervisor ended"}
    assert go(world, hook=f"{sys.executable} -c 'raise SystemExit(3)'") == 0
    failed = [event for event in read_events(world.run) if event["kind"] == "hook failed"]
    assert {(event["event"], event["reason"]) for event in failed} == {
        ("supervisor started", "exit code 3"),
        ("supervisor ended", "exit code 3"),
    }


STEPS = st.sampled_from(["rank n1", "rank n2", "rank s1", "lost n1", "lost n2", "lost s1", "unreachable n2"])
SCRIPTS = st.lists(st.tuples(STEPS, st.sampled_from(["", " +"])).map("".join), max_size=12)


@given(script=SCRIPTS, away_s=st.sampled_from([10, 1e9]), min_hosts=st.sampled_from([None, 1]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_fails_and_how_often_it_comes_to_an_end(script, away_s, min_hosts, tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = make_world(tmp_path_factory.mktemp("run"), monkeypatch, script)
        world.away_s = away_s
        try:
            assert go(world, min_hosts=min_hosts, max_failures=5) == 0
            assert not world.script
        except CheckError:
            pass
        except InputError:
            assert script[0].startswith("unreachable")
        assert len(world.attempts) <= 6 + 1
        for (when, names, kind, host), (_, after, *_) in zip(world.attempts, world.attempts[1:], strict=False):
            assert len(after) == 2 or (min_hosts == 1 and len(after) == 1)
            if kind in ("lost", "unreachable") and away_s > 1e6:
                assert host in names and host not in after, when


def fill_disk(world, monkeypatch, until):
    """From the first attempt's end on nothing can be written, but for what has its place already."""
    for owner, name in ((supervisor, "write_job"), (telling, "record_event")):
        write = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, write=write, **k: (world.check_disk(), write(*a, **k))[1])
    write_memory = Memory.write
    monkeypatch.setattr(Memory, "write", lambda *a: (world.check_disk(), write_memory(*a))[1])

    def check_disk():
        if 1020 < world.now < until:
            raise OSError(errno.ENOSPC, "No space left on device", "state")

    world.check_disk = check_disk


def test_a_disk_that_is_full_for_a_while_costs_time_and_no_word(world, monkeypatch, capsys):
    fill_disk(world, monkeypatch, until=1100)
    world.script = ["rank n2", "done"]
    hosts = (*HOSTS, Host("s2", 1, is_spare=True))
    assert go(world, hosts, backoff_s=5) == 0
    assert [when for when, *_ in world.attempts] == pytest.approx([1000, 1035 + 10 + 20 + 40], abs=1)
    assert world.attempts[1][1] == ["n1", "n2"]  # nobody was blamed for it
    assert "no attempt can be made: state: No space left on device; it is tried again." in capsys.readouterr().err
    assert read_memory(world.run).end == {"code": 0, "reason": "done"}


def test_a_disk_that_stays_full_is_given_up(world, monkeypatch):
    fill_disk(world, monkeypatch, until=1e9)
    world.script = ["rank n2"]
    with pytest.raises(CheckError, match="3 attempts failed within 3600 s"):
        go(world, max_failures=2)
    assert supervisor.goes_on(world.run)  # what the disk has: the same command goes on
    monkeypatch.undo()
    world = make_world(world.run, monkeypatch, ["done"])
    assert go(world) == 0


def test_events_that_a_full_disk_did_not_take_come_later_in_order(tmp_path, monkeypatch):
    teller, record = telling.Teller(tmp_path, None), telling.record_event
    full = OSError(errno.ENOSPC, "No space left on device")
    teller.event("first")
    monkeypatch.setattr(telling, "record_event", lambda *_, **__: (_ for _ in ()).throw(full))
    teller.event("second", host="n1")
    teller.event("third")
    monkeypatch.setattr(telling, "record_event", record)
    teller.event("fourth")
    events = read_events(tmp_path)
    assert [event["kind"] for event in events] == ["first", "second", "third", "fourth"]
    assert events[1]["host"] == "n1" and sorted(event["time"] for event in events) == [e["time"] for e in events]


def test_where_locks_do_not_hold_the_later_supervisor_goes_on_alone(world):
    world.script = ["rank n2 +"]
    ask = world.sleep

    def sleep(seconds):
        if current_attempt(world.run) == 1:
            begin_attempt(world.run)  # somebody else's
        ask(seconds)

    world.sleep = sleep
    with pytest.raises(InputError, match="Another supervisor has begun attempt 2"):
        go(world)
    assert len(world.attempts) == 1

"""An attempt with simulated agents and a simulated clock: whatever fails, it comes to an end and names who failed."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalm_ds.launch import attempt_run
from deltalm_ds.launch.attempt import END_S, HELLO_S, SAVE_S, SETTLE_S, SILENT_S, Attempt, Drop, Send
from deltalm_ds.launch.job import Job, JobHost
from deltalm_ds.launch.telling import Teller
from deltalm_ds.launch.verdicts import judge
from deltalm_ds.runs.events import read_events

TICK_S = 0.2
TRAINS_S = 40.0  # what the simulated training takes
SAVES_S = 5.0
FOLLOWS = ["RuntimeError: Connection closed by peer [10.0.0.2]:38087"]


@dataclass
class FakeAgent:
    """What an agent and its ranks do, as the real ones were seen to do it."""

    number: int
    ranks: range
    said: list = field(default_factory=list)  # (when, message) on their way
    is_cut_off: bool = False
    is_gone: bool = False
    started: float | None = None
    asked_at: float | None = None
    stop_by: float | None = None
    saves: bool = True  # ranks that are asked to stop do so
    ended: bool = False
    dead_ranks: bool = False
    hanging: bool = False  # its ranks wait for others

    def say(self, now, message):
        if not self.is_cut_off and not self.is_gone:
            self.said.append((now + 0.1, message))

    def obey(self, now, message):
        if self.is_cut_off or self.is_gone:
            return
        if "meet" in message:
            self.say(now, {"met": {"10.0.0.1": f"10.0.0.{self.number + 1}"}})
        if "start" in message:
            self.started = now
        if "stop" in message and not self.ended:
            self.asked_at = self.asked_at or now
            self.stop_by = min(self.stop_by or float("inf"), now + message["stop"])

    def live(self, now):
        if self.is_gone or self.ended:
            return
        if self.started is not None and now - self.started > TRAINS_S and not self.dead_ranks and not self.hanging:
            self.end(now, 0)
        elif self.stop_by is not None:
            can_save = self.saves and not self.hanging and not self.dead_ranks
            if can_save and now > self.asked_at + SAVES_S:
                self.end(now, 75)
            elif now > self.stop_by:
                self.end(now, -9)
        if not self.ended and abs(now - round(now)) < TICK_S / 2:
            self.say(now, {"beat": round(now), "ranks": {}})

    def end(self, now, code):
        self.ended = True
        self.say(now, {"launcher": code, "left": 0})
        self.say(now, {"ended": code, "why": ""})


class World:
    """Agents around an attempt."""

    def __init__(self, num_hosts, slots=2):
        self.job = Job("/run", 1, tuple(JobHost(f"n{i}", tuple(range(slots))) for i in range(num_hosts)), ("x",), {})
        self.agents = [FakeAgent(i, self.job.ranks_of(i)) for i in range(num_hosts)]
        self.now, self.closed, self.lines, self.dropped = 0.0, [], {}, set()
        self.attempt = Attempt(num_hosts, 0.0)
        self.judged_at, self.verdict, self.sent, self.closing = None, None, [], ("", True)
        for agent in self.agents:
            agent.say(0.5, {"hello": {"addresses": ["10.0.0.1"], "port": 7, "word": "w", "interfaces": {}}})

    def run(self, seconds, at=()):
        """Let time pass; `at`: (when, what to do) in order. Stops early when the attempt is over."""
        todo, until = list(at), self.now + seconds
        while self.now < until and not self.attempt.is_over:
            self.now += TICK_S
            while todo and todo[0][0] <= self.now:
                todo.pop(0)[1]()
            for agent in self.agents:
                agent.live(self.now)
                due = [message for when, message in agent.said if when <= self.now]
                agent.said = [one for one in agent.said if one[0] > self.now]
                for message in due:
                    self.act(self.attempt.heard(agent.number, message, self.now))
            for number in self.closed:
                self.attempt.closed(number, *self.closing, self.now)
            self.closed = []
            self.act(self.attempt.tick(self.now))
            if self.attempt.can_start:
                self.act(self.attempt.start())
            ends = (self.attempt.is_ending or self.attempt.is_over) and not self.attempt.was_asked
            if ends and self.attempt.signs and self.verdict is None:
                self.judged_at, self.verdict = self.now, judge(self.attempt.signs, self.job, (), self.lines)

    def act(self, actions):
        for action in actions:
            if isinstance(action, Drop):
                self.dropped.add(action.host)
            elif action.host not in self.dropped:
                self.sent.append((self.now, action))
                self.agents[action.host].obey(self.now, action.message)

    # faults
    def kill_rank(self, host, code=-9):
        victim = self.agents[host]
        victim.dead_ranks = True
        victim.say(self.now, {"rank_ended": victim.ranks[0], "code": code})
        self.others_fail(host)

    def others_fail(self, host, delay=0.0):
        for agent in self.agents:
            if agent.number != host and not agent.ended:
                agent.dead_ranks = True
                self.lines[agent.ranks[0]] = FOLLOWS
                agent.say(self.now - 0.1 + delay, {"rank_ended": agent.ranks[0], "code": 1})

    def stop_rank(self, host):
        for agent in self.agents:
            agent.hanging = True
        victim = self.agents[host]
        victim.said.append((self.now + 10, {"stopped": victim.ranks[-1], "pid": 5}))

    def kill_agent(self, host):
        self.agents[host].is_gone = True
        self.closed.append(host)
        for agent in self.agents:  # its ranks see that it is gone; all agree to save and to stop
            agent.stop_by = agent.stop_by or (self.now + 1000 if agent.number != host else None)
            agent.asked_at = agent.asked_at or self.now

    def kill_launcher(self, host):
        self.agents[host].say(self.now, {"launcher": -9, "left": 2})

    def pull_link(self, host):
        for agent in self.agents:
            agent.hanging = True
        self.agents[host].is_cut_off = True

    def switch_off(self, host):
        """Its peers get resets, and so may ssh."""
        self.agents[host].is_gone = True
        self.others_fail(host)

    FAULTS = ("kill_rank", "stop_rank", "kill_agent", "kill_launcher", "pull_link", "switch_off")


def test_without_faults_all_start_once_all_have_met_and_end():
    world = World(4)
    world.run(200)
    assert world.attempt.has_done and world.verdict is None
    starts = [(when, action.host) for when, action in world.sent if "start" in action.message]
    assert sorted(host for _, host in starts) == [0, 1, 2, 3] and len({when for when, _ in starts}) == 1
    addresses = [action.message["start"] for _, action in world.sent if "start" in action.message]
    assert [one["own"] for one in addresses] == [f"10.0.0.{i}" for i in (1, 2, 3, 4)]
    assert {(one["address"], one["port"]) for one in addresses} == {("10.0.0.1", 7)}


@pytest.mark.parametrize(
    ("fault", "kind", "within_s", "stop_s"),
    [
        ("kill_rank", "rank", SETTLE_S + 0.6, 0.0),
        ("stop_rank", "stopped", 10 + SETTLE_S + 0.6, 0.0),
        ("kill_agent", "agent", SETTLE_S + 0.6, SAVE_S),
        ("kill_launcher", "launcher", SETTLE_S + 0.6, SAVE_S),
        ("pull_link", "host", SILENT_S + SETTLE_S + 1.6, 0.0),
        ("switch_off", "host", SILENT_S + SETTLE_S + 1.6, 0.0),
    ],
)
@pytest.mark.parametrize("host", [0, 2])
def test_each_fault_is_laid_at_the_door_of_its_host(fault, kind, within_s, stop_s, host):
    world = World(4)
    world.run(10)
    began = world.now
    getattr(world, fault)(host)
    world.run(300)
    assert world.attempt.is_over and not world.attempt.has_done
    assert (world.verdict.kind, world.verdict.host) == (kind, f"n{host}")
    assert world.judged_at - began <= within_s
    assert world.now - world.judged_at <= stop_s + END_S + 1
    stops = {action.host: action.message["stop"] for _, action in world.sent if "stop" in action.message}
    assert set(stops.values()) == {stop_s}
    assert stops.keys() >= set(range(4)) - {host}


def test_ranks_that_live_when_an_agent_is_lost_are_given_the_time_to_save():
    world = World(3)
    world.run(10)
    world.kill_agent(1)
    world.run(300)
    assert world.attempt.was_stopped
    assert [host.code for host in world.attempt.hosts] == [75, None, 75]


@pytest.mark.parametrize(
    ("closing", "kind", "is_lost"),
    [
        (("", True), "agent", False),  # as ssh has it when an agent is killed
        (("Connection to n1 closed by remote host.", True), "connection", True),
        (("KeyError: 'x'", False), "agent", False),
    ],
)
def test_how_a_connection_ends_tells_whether_the_host_is_lost(closing, kind, is_lost):
    world = World(3)
    world.closing = closing
    world.run(10)
    world.kill_agent(1)
    world.run(300)
    assert (world.verdict.kind, world.verdict.host) == (kind, "n1")
    assert [host.is_lost for host in world.attempt.hosts] == [False, is_lost, False]
    assert closing[0] in world.verdict.what


def test_a_host_that_does_not_come_is_told_before_anything_starts():
    world = World(3)
    world.agents[1].said, world.agents[1].is_gone = [], True
    world.run(300)
    assert (world.verdict.kind, world.verdict.host) == ("host", "n1")
    assert world.now < HELLO_S + END_S
    assert not world.attempt.has_started
    assert not any("start" in action.message for _, action in world.sent)


def test_a_first_host_that_cannot_be_reached_is_told_before_anything_starts():
    world = World(3)
    world.agents[2].obey = lambda now, message: "meet" in message and world.agents[2].say(now, {"met": {}})
    world.run(20)
    assert not world.attempt.has_started
    assert world.verdict.host == "n2" and "reaches none of 10.0.0.1 at port 7" in world.verdict.what


def test_who_wants_the_end_gets_it_saved_and_no_verdict():
    world = World(2)
    world.run(10)
    world.act(world.attempt.ask_to_stop(120, world.now))
    world.run(300)
    assert world.attempt.was_stopped and world.verdict is None and world.attempt.signs == []


def test_who_hurries_the_end_gets_it_at_once():
    world = World(2)
    world.agents[0].saves = world.agents[1].saves = False
    world.run(10)
    world.act(world.attempt.ask_to_stop(120, world.now))
    world.run(5)
    world.act(world.attempt.ask_to_stop(0.0, world.now))
    began = world.now
    world.run(300)
    assert world.attempt.is_over and world.now - began < 2


def test_an_agent_that_does_not_end_is_let_go():
    world = World(2)
    world.run(10)
    world.kill_rank(0)
    world.agents[1].live = lambda now: world.agents[1].say(now, {"beat": 1, "ranks": {}})  # it never ends
    world.run(300)
    assert world.attempt.is_over and world.dropped == {1} and world.verdict.host == "n0"


FAULTS = st.lists(st.tuples(st.floats(0, 60), st.sampled_from(World.FAULTS), st.integers(0, 3)), min_size=1, max_size=5)


@given(faults=FAULTS, asked_at=st.none() | st.floats(0, 60))
@settings(max_examples=150, deadline=None)
def test_whatever_fails_and_when_an_attempt_ends_on_every_host(faults, asked_at):
    """Nobody waits for ever, no rank starts where not all are there, and whoever is blamed was at fault."""
    world = World(4)
    todo = [(when, lambda fault=fault, host=host: getattr(world, fault)(host)) for when, fault, host in faults]
    if asked_at is not None:
        todo.append((asked_at, lambda: world.act(world.attempt.ask_to_stop(30, world.now))))
    world.run(600, at=sorted(todo, key=lambda one: one[0]))
    assert world.attempt.is_over
    assert world.now < 60 + TRAINS_S + HELLO_S + 30 + END_S
    if world.verdict is not None:
        assert world.verdict.host in {f"n{host}" for _, _, host in faults}
    for number, agent in enumerate(world.agents):
        told = any(action.host == number and "stop" in action.message for _, action in world.sent)
        assert agent.ended or agent.is_gone or agent.is_cut_off or told
    if not world.attempt.has_started:
        assert not any("start" in action.message for _, action in world.sent if isinstance(action, Send))


@pytest.mark.parametrize(("code", "said"), [(0, None), (247, "rank 2 on n1 ended by SIGKILL (probably out of memory)")])
def test_a_rank_whose_end_nobody_saw_ended_as_its_launcher_says(code, said):
    """On a busy host the launcher may have looked before the agent: then the exit code is gone."""
    world = World(2)
    agent = world.agents[1]

    def vanish():
        agent.say(world.now, {"rank_ended": agent.ranks[0], "code": None})
        agent.end(world.now + 1, code)
        if code == 0:
            world.agents[0].end(world.now + 1, 0)

    world.run(60, at=[(10, vanish)])
    assert (world.verdict.what if world.verdict else None) == said
    assert world.attempt.has_done == (code == 0)


def test_what_earlier_attempts_left_is_told(tmp_path, monkeypatch, capsys):
    place = {"addresses": ["10.0.0.1"], "port": 7, "word": "w", "interfaces": {}}
    said = [(0, {"hello": {"leftovers": 0, **place}}), (1, {"hello": {"leftovers": 3, "interfaces": {}}})]
    said += [(number, {"met": {"10.0.0.1": "10.0.0.1"}}) for number in (0, 1)]
    said += [(number, {"ended": 0, "why": ""}) for number in (0, 1)]

    class FakeConnections:
        def __init__(self, names, commands):
            self.send = self.drop = lambda *message: None
            self.close = lambda: None

        def read(self, seconds):
            return [said.pop(0)], []

    monkeypatch.setattr(attempt_run, "Connections", FakeConnections)
    job = Job(str(tmp_path), 2, (JobHost("n1", (0,)), JobHost("n2", (0,))), (), {})
    running = attempt_run.AttemptRun(job, Teller(tmp_path, None), lambda: None, lambda: None)
    running.run()
    assert running.attempt.has_done
    assert "processes of earlier attempts were ended on n2 (3).\n" in capsys.readouterr().err
    assert read_events(tmp_path)[0]["leftovers"] == [0, 3]

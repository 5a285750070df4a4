"""What happens to a run on hosts of a cluster, case by case, and what is said and done then."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deltalm_ds.errors import FINAL_EXIT_CODES, STOPPED_EXIT_CODE
from deltalm_ds.runs.beats import read_beats
from tests.cluster.hosts import LOGIN
from tests.cluster.launched import STRANGE, Launched
from tests.faults.small_disk import SmallDisk

SHORTLY_S = 4.0
SAVED_AGAIN = 62  # a step behind a save that was due while the disk was full
DISK_MB = 1200  # preflight wants 1 GiB
VERDICTS = ("host lost", "agent lost", "rank lost")  # events
CASES: dict[str, "Case"] = {}


@dataclass(frozen=True)
class Case:
    """What is done to a run.

    Attributes:
        what: in words.
        act: does it to a run that trains, and sees to it that the run trains again.
        slots: ranks of each of the four hosts.
        spares: hosts beside them.
        overrides: of the recipe.
        culprit: words that the verdict must have; none: there is no verdict.
        is_as_before: it ends on as many ranks as it began.
        disk_megabytes: of a disk of its own for the run directory; 0: it has none.
    """

    what: str
    act: Callable[["Act"], None]
    slots: int = 1
    spares: int = 0
    overrides: tuple[str, ...] = ()
    culprit: tuple[str, ...] = ()
    is_as_before: bool = True
    disk_megabytes: int = 0


class Act:
    """A run to which something is done, and the clock from that moment on."""

    def __init__(self, job: Launched, disk: SmallDisk | None = None) -> None:
        self.job, self.hosts, self._disk = job, job.hosts, disk
        self.seconds: dict[str, float] = {}
        self._began = 0.0
        self._seen = {kind: len(job.events(kind)) for kind in (*VERDICTS, "started")}

    @property
    def disk(self) -> SmallDisk:
        """The run directory's."""
        assert self._disk is not None
        return self._disk

    def begins(self) -> None:
        """The moment of the fault."""
        self._began = time.monotonic()

    def mark(self, name: str) -> None:
        """So long after the fault."""
        self.seconds[name] = round(time.monotonic() - self._began, 1)

    def await_verdict(self) -> None:
        """Wait until the supervisor has said who it was."""
        self.job.await_that(lambda: any(len(self.job.events(kind)) > self._seen[kind] for kind in VERDICTS))
        self.mark("verdict")

    def await_next_step(self) -> None:
        """Wait for the first step of another attempt."""
        self.job.await_that(lambda: len(self.job.events("started")) > self._seen["started"])
        self.mark("next step")

    def await_both(self) -> None:
        """Verdict and next step."""
        self.await_verdict()
        self.await_next_step()


def case(name: str, what: str, **settings: Any) -> Callable[[Callable[[Act], None]], Callable[[Act], None]]:
    """Enter a case into the table."""

    def enter(act: Callable[[Act], None]) -> Callable[[Act], None]:
        CASES[name] = Case(what, act, **settings)
        return act

    return enter


@case("undisturbed_4x1", "nothing, on 4 × 1 ranks")
def _nothing(act: Act) -> None:
    (rank,) = act.job.processes("n2", "rank")
    assert rank.environ()[STRANGE[0]] == STRANGE[1]


@case("undisturbed_4x2", "nothing, on 4 × 2 ranks", slots=2)
def _nothing_on_eight(act: Act) -> None:
    numbers = [int(rank.environ()["RANK"]) for name in act.hosts.names for rank in act.job.processes(name, "rank")]
    assert sorted(numbers) == list(range(8))


@case("rank_killed", "a rank killed (-9)", culprit=("rank 2 on n3", "SIGKILL"))
def _kill_rank(act: Act) -> None:
    act.begins()
    act.job.signal("n3", "rank")
    act.await_both()


@case("agent_killed", "an agent killed (-9)", culprit=("agent on n2",))
def _kill_agent(act: Act) -> None:
    act.begins()
    act.job.signal("n2", "agent")
    act.await_both()


@case("launcher_killed", "DeepSpeed's launch.py killed (-9)", culprit=("launcher on n4", "SIGKILL"))
def _kill_launcher(act: Act) -> None:
    act.begins()
    act.job.signal("n4", "launcher")
    act.await_both()


@case("rank_stopped", "a rank under SIGSTOP", culprit=("rank 1 on n2", "stopped"))
def _stop_rank(act: Act) -> None:
    act.begins()
    act.job.signal("n2", "rank", signal.SIGSTOP)
    act.await_both()


@case("cable_out_shortly", f"a cable out for {SHORTLY_S:.0f} s")
def _pull_cable_shortly(act: Act) -> None:
    before = act.job.last_step()
    act.begins()
    act.hosts.pull_cable("n3")
    time.sleep(SHORTLY_S)
    act.hosts.put_cable_back("n3")
    act.job.await_that(lambda: act.job.last_step() > before + 1)
    act.mark("next step")
    assert len(act.job.events("started")) == 1, "it need not have started anew"


@case("cable_out", "a cable pulled, and put back after the verdict", culprit=("host n3 is lost",))
def _pull_cable(act: Act) -> None:
    act.begins()
    act.hosts.pull_cable("n3")
    act.await_verdict()
    act.hosts.put_cable_back("n3")
    act.await_next_step()


@case(
    "cable_stays_out",
    "a cable pulled; the host it cut off ends its ranks by itself",
    spares=1,
    culprit=("host n3 is lost",),
)
def _leave_cable_out(act: Act) -> None:
    act.begins()
    act.hosts.pull_cable("n3")
    act.await_both()
    act.job.await_that(lambda: not act.hosts.processes("n3"), alone=True)
    act.mark("cut-off host empty")
    act.hosts.put_cable_back("n3")


@case("host_off", "a host's power cut; a spare takes its place", spares=1, culprit=("host n3 is lost",))
def _switch_off(act: Act) -> None:
    act.begins()
    act.hosts.switch_off("n3")
    act.await_both()
    assert act.job.processes("n5", "rank")


@case("host_ends", "a host that ends all its processes, and tells; a spare", spares=1, culprit=("n2",))
def _switch_off_and_tell(act: Act) -> None:
    act.begins()
    act.hosts.switch_off("n2", silently=False)
    act.await_both()


@case("first_host_off", "the power cut on the host of rank 0; a spare", spares=1, culprit=("host n1 is lost",))
def _switch_off_first(act: Act) -> None:
    act.begins()
    act.hosts.switch_off("n1")
    act.await_both()


@case("host_reboots", "a host's power cut, no spare; it boots again", culprit=("host n2 is lost",))
def _reboot(act: Act) -> None:
    act.begins()
    act.hosts.switch_off("n2")
    act.await_verdict()
    act.hosts.boot("n2")
    act.await_next_step()


@case(
    "three_hosts",
    "a host's power cut, no spare; on three hosts",
    overrides=("launch.min_hosts=3", "launch.wait_for_host_s=5"),
    culprit=("host n4 is lost",),
    is_as_before=False,
)
def _go_on_with_three(act: Act) -> None:
    act.begins()
    act.hosts.switch_off("n4")
    act.await_both()


@case("supervisor_killed", "the supervisor killed (-9), and started again at once")
def _kill_supervisor(act: Act) -> None:
    act.begins()
    act.job.signal(LOGIN, "supervisor")
    act.job.supervisor.wait()
    act.job.start()
    act.await_next_step()


@case("supervisor_gone", "the supervisor killed (-9); started again once its hosts are empty")
def _kill_supervisor_and_wait(act: Act) -> None:
    act.begins()
    act.job.signal(LOGIN, "supervisor")
    act.job.await_that(lambda: not act.job.left(), alone=True)
    act.mark("hosts empty")
    act.job.start()
    act.await_next_step()


@case("login_host_off", "the power cut on the supervisor's host; it boots and the supervisor is started")
def _switch_off_login(act: Act) -> None:
    act.begins()
    act.hosts.switch_off(LOGIN)
    act.job.await_that(lambda: not act.job.left(), alone=True)
    act.mark("hosts empty")
    act.hosts.boot(LOGIN)
    act.job.start()
    act.await_next_step()


@case("stopped", "`deltalm launch --stop`, and started again")
def _stop(act: Act) -> None:
    act.begins()
    code, said = act.job.ask("--stop", str(act.job.run))
    assert code == 0, said
    assert act.job.await_end(30) == STOPPED_EXIT_CODE, act.job.messages[-2000:]
    act.mark("hosts empty")
    _check_saved(act.job)
    act.job.start()
    act.await_next_step()


@case("stopped_without_supervisor", "the supervisor killed (-9), then `deltalm launch --stop`; started again")
def _stop_without_supervisor(act: Act) -> None:
    act.begins()
    act.job.signal(LOGIN, "supervisor")
    code, said = act.job.ask("--stop", str(act.job.run))
    assert code == 0, said
    assert not act.job.left()
    act.mark("hosts empty")
    act.job.start()
    act.await_next_step()


@case("disk_full", "the shared disk full for a while", disk_megabytes=DISK_MB)
def _fill_disk(act: Act) -> None:
    act.begins()
    act.disk.fill()
    _await_not_writable(act)
    act.job.await_that(lambda: read_beats(act.job.run, 1)[0].step >= SAVED_AGAIN)  # no record tells it
    act.disk.free()
    _await_writable_again(act)
    assert act.job.events("save failed")


@case(
    "disk_full_and_rank_killed",
    "the shared disk full, a rank killed (-9) meanwhile; room after two vain attempts",
    disk_megabytes=DISK_MB,
    overrides=("launch.backoff_s=2",),
    culprit=("rank 2 on n3", "SIGKILL"),
)
def _fill_disk_and_kill(act: Act) -> None:
    act.disk.fill()
    _await_not_writable(act)
    act.job.signal("n3", "rank")
    act.job.await_that(lambda: act.job.messages.count("no attempt can be made") == 2)
    act.begins()
    act.disk.free()
    act.await_next_step()


@case(
    "disk_stays_full",
    "the shared disk full until the run is given up; room, and started again",
    disk_megabytes=DISK_MB,
    overrides=("training.max_unsaved_steps=25", "launch.max_failures=2", "launch.backoff_s=2"),
)
def _fill_disk_for_good(act: Act) -> None:
    act.disk.fill()
    act.begins()
    code = act.job.await_end()
    act.mark("given up")
    assert code in FINAL_EXIT_CODES and "Traceback" not in act.job.messages, f"{code}: {act.job.messages[-3000:]}"
    act.begins()
    act.disk.free()
    act.job.start()
    act.await_next_step()


@case("disk_read_only", "the shared disk read-only for a while", disk_megabytes=DISK_MB)
def _make_read_only(act: Act) -> None:
    act.begins()
    act.disk.set_read_only(True)
    _await_not_writable(act)
    act.job.await_that(lambda: "could not be written" in act.job.messages)
    act.disk.set_read_only(False)
    _await_writable_again(act)


def _await_not_writable(act: Act) -> None:
    act.job.await_that(lambda: "cannot be written (" in act.job.messages)


def _await_writable_again(act: Act) -> None:
    act.job.await_that(lambda: act.job.events("run directory writable again"))
    act.mark("room")
    assert len(act.job.events("started")) == 1, "it need not have started anew"


def _check_saved(job: Launched) -> None:
    steps = [int(path.name.removeprefix("step_")) for path in (job.run / "checkpoints").glob("step_*")]
    assert max(steps) == job.last_step(), "a run that is stopped saves where it is"

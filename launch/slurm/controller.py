"""How a job comes again: requeued by SLURM's controller or, where it does not do that, by a successor it submits.

The exit codes of `deltalm_ds.errors` say whether it should. What SLURM does by itself is minded as well: it requeues
the jobs of a lost node, and a job whose exit code stands in its RequeueExit, without limit.
"""

import os
import re
import time
from collections.abc import Mapping

from deltalm_ds.errors import DONE_EXIT_CODE, FAILED_EXIT_CODE, FINAL_EXIT_CODES
from deltalm_ds.launch.slurm.allocation import RESTARTS, Allocation
from deltalm_ds.launch.slurm.nodes import checked
from deltalm_ds.streams import say

TRIES, PAUSE_S = 6, 10.0  # for a controller that does not answer, as it is being restarted
# What the options of a job's sbatch were, by the variable or the field of `scontrol show job` that has them.
_GIVEN = {
    "SLURM_NTASKS_PER_NODE": "--ntasks-per-node",
    "SLURM_GPUS_PER_NODE": "--gpus-per-node",
    "SLURM_CPUS_PER_TASK": "--cpus-per-task",
}
_KEPT = {
    "JobName": "--job-name",
    "Partition": "--partition",
    "Account": "--account",
    "QOS": "--qos",
    "TimeLimit": "--time",
    "NumNodes": "--nodes",
    "ArrayTaskId": "--array",
    "WorkDir": "--chdir",
}
_NOTHING = ("", "(null)", "N/A", "None", "Unknown")


def facts(text: str) -> dict[str, str]:
    """The fields of what `scontrol show` prints, `Name=value` or `Name = value`."""
    return dict(re.findall(r"(?:^|\s)([\w:/]+)(?: += |=)(\S*)", text))


def should_come_again(code: int, was_cancelled: bool) -> bool:
    """Whether a job that ended with an exit code is to be started again.

    Args:
        code: of the contract in `deltalm_ds.errors`.
        was_cancelled: somebody wanted the end for good.
    """
    return code not in (DONE_EXIT_CODE, *FINAL_EXIT_CODES) and not was_cancelled


def safe_exit_code(code: int, config: Mapping[str, str]) -> int:
    """The code with which a job that must not come again ends: its own, unless SLURM would requeue it for that."""
    listed = ",".join(config.get(name, "") for name in ("RequeueExit", "RequeueExitHold"))
    requeued: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", listed):
        requeued |= set(range(int(first), int(last or first) + 1))
    return next(one for one in (code, FAILED_EXIT_CODE, *range(2, 256)) if one not in requeued)


class Controller:
    """SLURM's controller, for one job."""

    def __init__(self, allocation: Allocation, max_restarts: int) -> None:
        self._allocation, self._max_restarts = allocation, max_restarts
        self._config = facts(_scontrol("show", "config"))

    @property
    def is_spent(self) -> bool:
        """Whether the job was started more often than it may be."""
        return self._allocation.restarts > self._max_restarts

    def explain(self) -> None:
        """Say at the start what will become of the job when it is stopped."""
        if self._allocation.restarts >= self._max_restarts:
            how = "ends"
        elif self._job().get("Requeue") == "1":
            how = "is requeued"
        else:
            how = "submits its successor, as it may not be requeued"
        count = f"{self._allocation.restarts} of {self._max_restarts} restarts"
        say(f"job {self._allocation.job} ({count}) {how} when it is stopped or fails before its end.")

    def conclude(self, code: int, was_cancelled: bool) -> int:
        """Have the job come again if it should; the exit code of the batch script.

        Args:
            code: how the work ended.
            was_cancelled: somebody wanted the end for good.
        """
        if not should_come_again(code, was_cancelled):
            return safe_exit_code(code, self._config)
        if self._allocation.restarts >= self._max_restarts:
            say(f"the job was started again {self._allocation.restarts} times, which is the most: submit it to go on.")
            return safe_exit_code(code, self._config)
        self.come_again()
        return safe_exit_code(code, self._config)

    def come_again(self) -> None:
        """Requeue the job, or submit its successor; if neither can be done, say it."""
        job = self._allocation.job
        try:
            if self._job().get("Requeue") == "1":
                try:
                    _scontrol("requeue", job)
                    return
                except OSError as error:
                    say(f"{error}; a successor is submitted.")
            say(f"job {self.submit_successor()} goes on where this one ends.")
        except OSError as error:
            say(f"the job cannot come again: {error}. Submit it by hand.")

    def come_again_if_preempted(self) -> None:
        """Have the job come again if SLURM ends it for another one; to be called once it was told to end."""
        try:
            is_preempted = self._job().get("PreemptTime", "") not in _NOTHING
        except OSError as error:
            say(f"{error}.")
            return
        if is_preempted:
            self.come_again()

    def submit_successor(self) -> str:
        """Submit the same script once more, to run after this job; the number of the new job.

        Raises:
            OSError: it was refused.
        """
        allocation, job = self._allocation, self._job()
        options = [f"{option}={job[name]}" for name, option in _KEPT.items() if job.get(name, "") not in _NOTHING]
        options += [f"{option}={os.environ[name]}" for name, option in _GIVEN.items() if os.environ.get(name)]
        # variables of this job would be taken for wishes of the next one's
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        environment |= {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
        environment[RESTARTS] = str(allocation.restarts + 1)
        command = ["sbatch", "--parsable", "--export=ALL", f"--dependency=afterany:{allocation.job}", *options]
        script = _scontrol("write", "batch_script", allocation.job, "-")
        return checked(command, environment, script).strip().split(";")[0]

    def _job(self) -> dict[str, str]:
        return facts(_scontrol("show", "job", "--oneliner", self._allocation.job))


def _scontrol(*arguments: str) -> str:
    for _ in range(TRIES - 1):
        try:
            return checked(["scontrol", *arguments])
        except OSError as error:
            if "contact" not in str(error) and "timed out" not in str(error):
                raise
            time.sleep(PAUSE_S)
    return checked(["scontrol", *arguments])

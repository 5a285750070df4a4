"""What the batch scripts run in place of themselves: `python -m deltalm_ds.launch.slurm.job train --out RUN RECIPE`.

It checks the allocation and its nodes, starts one rank per task by srun, which needs no ssh (or one task per node, see
`node.py`), passes the signal before the time limit on to the ranks, and has the job come again or not, by the exit
codes of `deltalm_ds.errors`.
SIGUSR1 asks it to save and come again, SIGTERM (`scancel`) to save and end. `command PROGRAM …` does the same for
another program that srun starts, such as `deltalm evaluate`.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from deltalm_ds.errors import DONE_EXIT_CODE, FAILED_EXIT_CODE, STOPPED_EXIT_CODE, InputError, os_error_sentence
from deltalm_ds.files import locked
from deltalm_ds.launch.ranks import complete_environment
from deltalm_ds.launch.slurm.allocation import Allocation, read_allocation
from deltalm_ds.launch.slurm.controller import Controller
from deltalm_ds.launch.slurm.nodes import node_names, run_on_nodes, unfit_nodes
from deltalm_ds.runs.attempts import ATTEMPT, begin_attempt
from deltalm_ds.runs.starter import STARTED_BY
from deltalm_ds.streams import say
from deltalm_ds.training.rendezvous import EXPECTED_RANKS

LAST_RANK_S = 60  # from the end of the first rank to the end of those that do not notice
SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
POLL_S = 0.2


def main(arguments: list[str]) -> int:
    """Do the work of a batch job; the exit code of its script."""
    options = _options(arguments)
    return _code_of(lambda: _run(options))


def _code_of(work: Callable[[], int]) -> int:
    """The exit code of some work, or of the error that it ends by, which is said."""
    try:
        return work()
    except InputError as error:
        say(str(error))
        return error.exit_code
    except OSError as error:
        say(os_error_sentence(error))
        return FAILED_EXIT_CODE


def _run(options: argparse.Namespace) -> int:
    allocation = read_allocation()
    controller = Controller(allocation, options.max_restarts)
    step = Step(controller)
    controller.explain()
    if controller.is_spent:
        say(f"restart {allocation.restarts} is more than the {options.max_restarts} allowed: submit it to go on.")
        return controller.conclude(STOPPED_EXIT_CODE, was_cancelled=False)
    # An error in here has a say in whether the job comes again; one before it ends the job.
    code = controller.conclude(_code_of(lambda: _work(options, allocation, step)), step.was_cancelled)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # Python would be ended by one on its way out
    return code


def _work(options: argparse.Namespace, allocation: Allocation, step: "Step") -> int:
    if unfit := unfit_nodes(allocation.hosts):
        say(f"nodes of this job cannot be used: {', '.join(unfit)}.")
        return FAILED_EXIT_CODE
    if options.what == "train":
        return _train(options, allocation, step)
    return step.run(["srun", *options.srun, *options.container, *options.program], _environment(allocation))


def _train(options: argparse.Namespace, allocation: Allocation, step: "Step") -> int:
    from deltalm_ds.launch.hostfile import Host
    from deltalm_ds.launch.preflight.check import require_fit
    from deltalm_ds.recipe.loading import load_recipe
    from deltalm_ds.runs.history import record_end, record_start
    from deltalm_ds.training.prepare import IN_USE, LOCK, prepare_run

    run, recipe = options.out.absolute(), load_recipe(options.recipe, options.overrides)
    nodes = [Host(name, allocation.ranks_per_node) for name in node_names(allocation.hosts)]
    require_fit(nodes, recipe, run, options.recipe, run_on_nodes)
    prepare_run(recipe, run)
    environment = _environment(allocation) | {EXPECTED_RANKS: str(allocation.num_ranks)}
    # A rank that has saved and ended must not take those with it that are about to; one that died may.
    srun = ["srun", "--label", "--kill-on-bad-exit=0", f"--wait={LAST_RANK_S}", *options.srun, *options.container]
    with locked(run / LOCK, IN_USE.format(run=run)):
        record_start(run, allocation.num_ranks, options.again and allocation.restarts == 0)
        environment[ATTEMPT] = str(begin_attempt(run))  # a lost node may still run ranks of the one before
        task = "deltalm_ds.training.train" if allocation.ranks_per_task == 1 else "deltalm_ds.launch.slurm.node"
        code = step.run([*srun, options.python, "-m", task, str(run)], environment)
        return record_end(run, code, "", step.was_asked)


class Step:
    """What srun runs in the job, and the signals that the job gets from now on."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._srun: subprocess.Popen[bytes] | None = None
        self._asked: signal.Signals | None = None
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    @property
    def was_asked(self) -> bool:
        """Whether somebody wanted the end."""
        return self._asked is not None

    @property
    def was_cancelled(self) -> bool:
        """Whether somebody wanted the end for good, or what comes after it is provided for."""
        return self._asked == signal.SIGTERM

    def run(self, command: list[str], environment: dict[str, str]) -> int:
        """Start it and wait; the exit code, that of a stop where the end was wanted."""
        if self._asked is None:
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # srun waits for them, when it is ready
            try:
                self._srun = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            code = self._wait(self._srun)
            ended_by = code - 128 if code > 128 else -code  # srun gives a task's signal 10 as 138
            if code == DONE_EXIT_CODE or not (self._asked or ended_by == signal.SIGUSR1):
                return code
        return STOPPED_EXIT_CODE

    def _wait(self, srun: "subprocess.Popen[bytes]") -> int:
        has_looked = False
        while srun.poll() is None:
            time.sleep(POLL_S)
            if self.was_cancelled and not has_looked:
                has_looked = True
                self._controller.come_again_if_preempted()  # while there is time
        return srun.returncode

    def _on_signal(self, number: int, _frame: object) -> None:
        if self._asked is None:
            self._asked = signal.Signals(number)
            say("stopping: the ranks save and end.")
            if self._srun is not None:
                self._srun.send_signal(signal.SIGUSR1)  # which srun passes on to its tasks


def _environment(allocation: Allocation) -> dict[str, str]:
    """Of the tasks: they share the processors of a node."""
    environment = os.environ.copy()
    if of_task := environment.get("SLURM_CPUS_PER_TASK"):
        environment["SRUN_CPUS_PER_TASK"] = of_task  # srun does not inherit it since SLURM 22.05
        environment.setdefault("OMP_NUM_THREADS", str(max(1, int(of_task) // allocation.ranks_per_task)))
    complete_environment(environment, allocation.ranks_per_node, on_gpu=True)  # the ranks see whether there are any
    del environment[STARTED_BY]  # on each node it is SLURM's daemon
    return environment


def _options(arguments: list[str]) -> argparse.Namespace:
    """Options of srun, and of a container in front of what it starts, come word by word: `--srun=--mpi=pmix`."""
    parser = argparse.ArgumentParser(prog="python -m deltalm_ds.launch.slurm.job")
    parser.add_argument("--max-restarts", type=int, default=20)
    parser.add_argument("--srun", action="append", default=[], metavar="OPTION")
    parser.add_argument("--container", action="append", default=[], metavar="WORD")
    parser.add_argument("--python", default=sys.executable)  # of the ranks, where the container has its own
    kinds = parser.add_subparsers(dest="what", required=True)
    train = kinds.add_parser("train")
    train.add_argument("recipe", type=Path)
    train.add_argument("--out", type=Path, required=True)
    train.add_argument("--again", action="store_true")
    train.add_argument("overrides", nargs="*")
    kinds.add_parser("command").add_argument("program", nargs=argparse.REMAINDER)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

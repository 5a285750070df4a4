"""Many jobs, one call: in this process, in several processes, or on the ranks of an MPI job.

A job is a function that can be imported and a small argument that can be pickled; what it makes, it writes to files.
"""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar, cast

from deltalm_ds.errors import InputError
from deltalm_ds.vocabulary import Vocabulary

JOBS_PER_WORKER = 2  # handed out at a time, so that none waits for the next and few are lost at an error
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")  # what mpirun and srun set

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class StoredVocabulary:
    """A vocabulary in a directory: small as part of a job, and loaded once in each process."""

    directory: Path
    hash: str

    @lru_cache(maxsize=1)  # noqa: B019 (a frozen value: what is kept is the vocabulary, on purpose)
    def load(self) -> Vocabulary:
        """Read it."""
        return Vocabulary.load(self.directory)


class Workers:
    """Runs jobs in this process, or through an executor that has `num_workers` of its own."""

    def __init__(self, executor: Executor | None = None, num_workers: int = 1) -> None:
        self._executor = executor
        self._num_ahead = JOBS_PER_WORKER * num_workers

    def run(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield the results as they come, in any order; the first error of a job is raised, and no more begun."""
        if self._executor is None:
            yield from map(function, jobs)
            return
        pending: set[Future[Result]] = set()
        try:
            for job in jobs:
                pending.add(self._executor.submit(function, job))
                if len(pending) == self._num_ahead:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            for future in pending:
                future.cancel()


@contextmanager
def start_workers(num_processes: int, compute: bool = False) -> Iterator[Workers | None]:
    """Start what runs the jobs: `num_processes` processes or, under mpirun and srun, the ranks after the first.

    Args:
        num_processes: 1 for this one.
        compute: jobs compute by libraries whose threads do not survive a fork, such as torch.

    Yields:
        The workers; None on those other ranks, where the work was done by the time the block is entered.

    Raises:
        InputError: a process died, or MPI is not usable.
    """
    num_ranks = max(int(os.environ.get(name, "1")) for name in MPI_SIZES)
    if num_ranks > 1:
        with _mpi_workers(num_ranks, num_processes) as workers:
            yield workers
    elif num_processes > 1:
        with _process_workers(num_processes, compute) as workers:
            yield workers
    else:
        yield Workers()


@contextmanager
def _process_workers(num_processes: int, compute: bool) -> Iterator[Workers]:
    # To start Python and import everything anew takes as long as the work on 10 MB. A fork has all of it, but also the
    # locks that other threads of Python held; those of libraries are not used by any job.
    method = "fork" if threading.active_count() == 1 and not compute else "spawn"
    pool = ProcessPoolExecutor(num_processes, multiprocessing.get_context(method), _start_process)
    try:
        for _ in range(num_processes):  # start them now, while this process gets the jobs ready
            pool.submit(int)
        yield Workers(pool, num_processes)
    except BrokenProcessPool:
        raise InputError(
            "A process died (killed for want of memory, or see its message above): try again with fewer processes."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too and stops the workers
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # a killed parent leaves a pool that waits for ever


@contextmanager
def _mpi_workers(num_ranks: int, num_processes: int) -> Iterator[Workers | None]:
    if num_processes > 1:
        raise InputError("Under MPI the ranks do the work: leave --processes out.")
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPICommExecutor
    except (ImportError, RuntimeError) as error:
        raise InputError(f"{num_ranks} ranks were started, but mpi4py cannot be used ({error}).") from None
    if MPI.COMM_WORLD.size != num_ranks:
        raise InputError(
            f"{num_ranks} ranks were started, but MPI knows of {MPI.COMM_WORLD.size}: with srun try --mpi=pmix."
        )
    try:
        with MPICommExecutor(MPI.COMM_WORLD, root=0) as executor:
            if executor is not None:
                yield Workers(cast(Executor, executor), num_ranks - 1)
        if MPI.COMM_WORLD.rank > 0:
            yield None
    except BaseException:
        if MPI.COMM_WORLD.rank > 0:  # the first rank would wait for this one for ever
            traceback.print_exc(file=sys.stderr)
            MPI.COMM_WORLD.Abort(1)
        raise

"""What a launcher, srun or mpirun starts on every rank: `srun python -m deltalm_ds.training.train RUN`.

RUN is a run directory that `deltalm train` prepared (with `--prepare`, it does nothing else). It holds everything a run
leaves: recipe.yaml, inputs.json, environment.json, metrics.jsonl, events.jsonl, tensorboard/, checkpoints/. Started
again, a run goes on from its newest whole checkpoint.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import distributed

from deltalm_ds.environment import environment
from deltalm_ds.errors import (
    DONE_EXIT_CODE,
    FAILED_EXIT_CODE,
    STOPPED_EXIT_CODE,
    InputError,
    os_error_sentence,
)
from deltalm_ds.files import locked, write_json
from deltalm_ds.recipe.loading import load_recipe
from deltalm_ds.runs.attempts import begin_attempt, current_attempt, end_if_taken_over, own_attempt
from deltalm_ds.runs.history import record_rank_end
from deltalm_ds.streams import say, survive_lost_terminal
from deltalm_ds.training.deepspeed_engine import start_distributed
from deltalm_ds.training.prepare import IN_USE, LOCK
from deltalm_ds.training.rendezvous import take_place
from deltalm_ds.training.startup import Startup
from deltalm_ds.training.trainer import Trainer
from deltalm_ds.training.watchdog import watched


def main(arguments: list[str]) -> int:
    """Entry point of a rank; returns its exit code."""
    startup = Startup()
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls
    given = [argument for argument in arguments if not argument.startswith("--local_rank=")]  # of DeepSpeed's launcher
    if len(given) != 1 or given[0].startswith("-"):
        _say(f"a rank takes a run directory and nothing else; got: {' '.join(given) or 'nothing'}.", 0)
        return InputError.exit_code
    survive_lost_terminal()
    try:
        take_place()
    except InputError as error:
        _say(str(error), 0)
        return error.exit_code
    start_distributed()
    startup.ended("joining ranks")
    try:
        return _train(Path(given[0]), distributed.get_rank(), startup)
    finally:
        distributed.destroy_process_group()


def _train(run: Path, rank: int, startup: Startup) -> int:
    """Train to the end or to a stop; the exit code. An end before the last step is recorded with its reason."""
    code, reason = FAILED_EXIT_CODE, ""
    end_if_taken_over(run)
    try:
        limits = load_recipe(run / "recipe.yaml").training.limits
        with _only_writer(run, rank), watched(run, limits, rank) as sections:
            trainer = Trainer(run, sections, startup)
            if rank == 0:
                end_if_taken_over(run)
                write_json(run / "environment.json", environment())
            code, reason = trainer.train(), "stopped, saved"
    except InputError as error:
        code, reason = error.exit_code, str(error)
        _say(reason, rank)
    except OSError as error:  # all was readable when the run was prepared: it may be again
        reason = os_error_sentence(error)
        _say(reason, rank)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise
    finally:
        if code != DONE_EXIT_CODE and (rank == 0 or code != STOPPED_EXIT_CODE):
            with suppress(OSError):
                record_rank_end(run, rank, code, reason)
    return code


@contextmanager
def _only_writer(run: Path, rank: int) -> Iterator[None]:
    """Rank 0 holds the run directory for as long as the training lives; the others wait for it.

    Under a supervisor that one holds it, and the number of the attempt says which ranks may write. Ranks of an attempt
    that a cut-off host still runs are fenced off from a start without a supervisor, too.

    Raises:
        InputError: on rank 0, somebody else holds it.
    """
    if rank or own_attempt() is not None:
        yield
        return
    with locked(run / LOCK, IN_USE.format(run=run)):
        if current_attempt(run):
            begin_attempt(run)
        yield


def _say(message: str, rank: int) -> None:
    """An error of one rank alone must not be lost."""
    say(message, "deltalm" if rank == 0 else f"deltalm, rank {rank}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

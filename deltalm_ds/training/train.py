"""What the `deepspeed` launcher starts on every rank: `deepspeed --module deltalm_ds.training.train RUN`.

RUN is a run directory that `deltalm train` prepared. It holds everything a run leaves: recipe.yaml, inputs.json,
environment.json, metrics.jsonl, events.jsonl, tensorboard/, checkpoints/. Started again, a run goes on from its newest
whole checkpoint.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import distributed

from deltalm_ds.environment import environment
from deltalm_ds.errors import InputError, os_error_sentence
from deltalm_ds.files import locked, write_json
from deltalm_ds.recipe.loading import load_recipe
from deltalm_ds.training.deepspeed_engine import start_distributed
from deltalm_ds.training.prepare import IN_USE, LOCK
from deltalm_ds.training.trainer import Trainer
from deltalm_ds.training.watchdog import watched


def main(arguments: list[str]) -> int:
    """Entry point of a rank; returns its exit code."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls
    given = [argument for argument in arguments if not argument.startswith("--local_rank=")]  # of DeepSpeed's launcher
    if len(given) != 1 or given[0].startswith("-"):
        return _say(f"a rank takes a run directory and nothing else; got: {' '.join(given) or 'nothing'}.", 0)
    run = Path(given[0])
    start_distributed()
    rank = distributed.get_rank()
    try:
        limits = load_recipe(run / "recipe.yaml").training.limits
        with _only_writer(run, rank), watched(run, limits, rank) as sections:
            trainer = Trainer(run, sections)
            if rank == 0:
                write_json(run / "environment.json", environment())
            return trainer.train()
    except InputError as error:
        return _say(str(error), rank, error.exit_code)
    except OSError as error:
        return _say(os_error_sentence(error), rank)
    finally:
        distributed.destroy_process_group()


@contextmanager
def _only_writer(run: Path, rank: int) -> Iterator[None]:
    """Rank 0 holds the run directory for as long as the training lives; the others wait for it.

    Raises:
        InputError: on rank 0, somebody else holds it.
    """
    if rank:
        yield
        return
    with locked(run / LOCK, IN_USE.format(run=run)):
        yield


def _say(message: str, rank: int, code: int = InputError.exit_code) -> int:
    """An error of one rank alone must not be lost."""
    print(f"deltalm: {message}" if rank == 0 else f"deltalm, rank {rank}: {message}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

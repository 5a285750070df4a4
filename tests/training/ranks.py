"""One rank of several: runs a list of trainings one after the other, to pay the start of DeepSpeed once.

Started as `python ranks.py JOBS.json` with RANK and WORLD_SIZE set. Writes beside it, as JOBS.json.RANK, what became
of each job: an exit code, or the class and message of an error. See `Job` in conftest.py.
"""

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from unittest import mock

from deepspeed.accelerator import get_accelerator
from safetensors.torch import load_file, save_file
from torch import distributed

from deltalm_ds.checkpoints.safetensors_writer import write_safetensors
from deltalm_ds.errors import InputError
from deltalm_ds.training import checkpoint
from deltalm_ds.training.deepspeed_engine import start_distributed
from deltalm_ds.training.train import Trainer


def full_disk_at_step_20(path, *arguments):
    """On the last rank alone."""
    if "step_00000020" in str(path) and distributed.get_rank() == distributed.get_world_size() - 1:
        path.write_bytes(b"the part that fitted")
        raise OSError(errno.ENOSPC, "No space left on device")
    write_safetensors(path, *arguments)


def truncate_optimizer(checkpoint):
    file = next(checkpoint.glob("optimizer-*"))
    os.truncate(file, file.stat().st_size // 2)


def remove_moment(checkpoint):
    for file in checkpoint.glob("optimizer-*"):
        tensors = load_file(file)
        tensors.pop("exp_avg.encoder.embedding.positions", None)
        save_file(tensors, file)


def truncate_state(checkpoint):
    os.truncate(checkpoint / "state.json", 10)


DAMAGES = {"truncated optimizer": truncate_optimizer, "lost moment": remove_moment, "truncated state": truncate_state}


def start_from_first_checkpoint(job):
    """Make the run of `job` one that got as far as the first checkpoint of another run."""
    run, other = Path(job["run"]), Path(job["resumes"])
    first = min((other / "checkpoints").iterdir())
    shutil.copytree(first, run / "checkpoints" / first.name)
    shutil.copy(other / "metrics.jsonl", run)
    if job["fault"] in DAMAGES:
        DAMAGES[job["fault"]](run / "checkpoints" / first.name)


def run_job(job):
    if job["resumes"] and distributed.get_rank() == 0:
        start_from_first_checkpoint(job)
    distributed.barrier()
    write = full_disk_at_step_20 if job["fault"] == "full disk" else write_safetensors
    with mock.patch.object(checkpoint, "write_safetensors", write):
        try:
            return Trainer(Path(job["run"])).train()
        except InputError as error:
            return f"{type(error).__name__}: {error}"


def main(jobs_file):
    start_distributed()
    # a CPU without AVX512-FP16 computes in float16 all the same, only slowly
    get_accelerator().is_fp16_supported = lambda: True
    outcomes = [run_job(job) for job in json.loads(Path(jobs_file).read_text())]
    Path(f"{jobs_file}.{distributed.get_rank()}").write_text(json.dumps(outcomes))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])

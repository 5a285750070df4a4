"""One rank of several: runs a list of trainings one after the other, to pay the start of DeepSpeed once.

Started as `python ranks.py JOBS.json` with RANK and WORLD_SIZE set. Writes beside it, as JOBS.json.RANK, what became
of each job: an exit code, or the class and message of an error. See `Job` in jobs.py.
"""

import errno
import json
import os
import shutil
import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
from deepspeed.accelerator import get_accelerator
from faults_inside import fault_inside
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.distributed import distributed_c10d

from deltalm_ds.data.stream import evaluation_batches
from deltalm_ds.errors import InputError
from deltalm_ds.files import sha256_of
from deltalm_ds.generation.translate import generate
from deltalm_ds.runs.beats import Beat, slow_ranks
from deltalm_ds.training import checkpoint, checkpoint_writer, collectives, deepspeed_engine, trainer, validation
from deltalm_ds.training.collectives import of_all_ranks
from deltalm_ds.training.deepspeed_engine import start_distributed
from deltalm_ds.training.sections import Sections
from deltalm_ds.training.trainer import Trainer

write_file = checkpoint._write


def full_disk_at_step_20(path, tensors):
    """On the last rank alone."""
    if "step_00000020" in str(path) and distributed.get_rank() == distributed.get_world_size() - 1:
        path.write_bytes(b"the part that fitted")
        raise OSError(errno.ENOSPC, "No space left on device")
    return write_file(path, tensors)


def full_disk_once(path, tensors):
    """On the last rank alone, at the first save."""
    if "step_00000010" in str(path) and distributed.get_rank() == distributed.get_world_size() - 1:
        raise OSError(errno.ENOSPC, "No space left on device")
    return write_file(path, tensors)


def truncate_optimizer(checkpoint):
    file = next(checkpoint.glob("optimizer-*"))
    os.truncate(file, file.stat().st_size // 2)


def remove_moment(checkpoint):
    """By somebody who also says that the files are as they should be."""
    state = json.loads((checkpoint / "state.json").read_text())
    for file in checkpoint.glob("optimizer-*"):
        tensors = load_file(file)
        tensors.pop("exp_avg.encoder.embedding.positions", None)
        save_file(tensors, file)
        state["files"][file.name] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    (checkpoint / "state.json").write_text(json.dumps(state))


def flip_a_bit(checkpoint):
    file = next(checkpoint.glob("model-*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def truncate_state(checkpoint):
    os.truncate(checkpoint / "state.json", 10)


def unreadable_validation(*arguments):
    """On one rank alone."""
    if distributed.get_rank() == 1:
        raise OSError(errno.EIO, "Input/output error", "dev.arrow")
    return evaluation_batches(*arguments)


def lose_validation(checkpoint):
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps(state | {"validation": {}}))


def failing_generation(*arguments, **options):
    """On one rank alone, with what nobody expects."""
    if distributed.get_rank() == 1:
        raise KeyError("broken")
    return generate(*arguments, **options)


LIMIT = timedelta(minutes=7)
DAMAGES = {
    "truncated optimizer": truncate_optimizer,
    "lost moment": remove_moment,
    "truncated state": truncate_state,
    "flipped bit": flip_a_bit,
    "lost validation": lose_validation,
}
PATCHES = {
    "graphs": (trainer, "reason_against_graphs", lambda *_: None),
    "full disk": (checkpoint, "_write", full_disk_at_step_20),
    "full disk once": (checkpoint, "_write", full_disk_once),
    "validation": (validation, "evaluation_batches", unreadable_validation),
    "generation": (validation, "generate", failing_generation),
}


def start_from_another_run(job):
    """Make the run of `job` one that got as far as the first checkpoint of another run, or for `newest …` to its last.

    The last one is then damaged; beside it lies what looks like a checkpoint to whoever does not look closely.
    """
    run, other = Path(job["run"]), Path(job["resumes"])
    fault = job["fault"] or ""
    checkpoints = sorted((other / "checkpoints").iterdir())
    copied = checkpoints if fault.startswith("newest ") else checkpoints[:1]
    for directory in copied:
        shutil.copytree(directory, run / "checkpoints" / directory.name)
    shutil.copy(other / "metrics.jsonl", run)
    damage = DAMAGES.get(fault.removeprefix("newest "))
    if damage:
        damage(run / "checkpoints" / copied[-1].name)
    if fault.startswith("newest "):
        shutil.copytree(checkpoints[0], run / "checkpoints" / "step_00000030_good")
        (run / "checkpoints" / "step_00000040.tar").write_bytes(b"")
        (run / "checkpoints" / "step_00000050").symlink_to(checkpoints[0])


class SeenSections(Sections):
    """A clock that keeps what a rank's beats would have of its work after each step."""

    def begin_step(self, step):
        super().begin_step(step)
        self.__dict__.setdefault("seen", []).append(self.work)


def found_slow(sections):
    """Which ranks are told to be slow over all their steps but the first two, in which memory is new."""
    rank = distributed.get_rank()
    own = [Beat(rank, 9, "data", 0, 0, 0.0, 9.0, os.getpid(), "host", 1, *sections.seen[step]) for step in (2, -1)]
    earlier, now = (dict(enumerate(beats)) for beats in zip(*of_all_ranks(own), strict=True))
    return ", ".join(str(one.beat.rank) for one in slow_ranks(earlier, now))


def run_job(job):
    if job["resumes"] and distributed.get_rank() == 0:
        start_from_another_run(job)
    distributed.barrier()
    patch = PATCHES.get(job["fault"]) or fault_inside(job["fault"] or "")
    with mock.patch.object(*patch) if patch else nullcontext():
        try:
            training = Trainer(Path(job["run"]), SeenSections())
            code = training.train()
            if (job["fault"] or "").startswith("slow"):
                return found_slow(training.sections)
            if job["fault"] == "graphs":
                assert training.ds_engine.module.forward.num_replays > 10
            return code
        except InputError as error:
            return f"{type(error).__name__}: {error}"


def limits_of_groups():
    """After how long each group of ranks gives up a collective."""
    return {group._get_backend(torch.device("cpu")).options._timeout for group in distributed_c10d._world.pg_map}


def main(jobs_file):
    # another limit than torch's own, so that a group that does not take it is seen
    for module in (collectives, deepspeed_engine):
        module.COLLECTIVE_TIMEOUT = LIMIT
    for module in (checkpoint_writer, deepspeed_engine):
        module.collective_timeout = lambda limits: LIMIT
    start_distributed()
    # a CPU without AVX512-FP16 computes in float16 all the same, only slowly
    get_accelerator().is_fp16_supported = lambda: True
    outcomes = [run_job(job) for job in json.loads(Path(jobs_file).read_text())]
    assert limits_of_groups() == {LIMIT}
    Path(f"{jobs_file}.{distributed.get_rank()}").write_text(json.dumps(outcomes))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])

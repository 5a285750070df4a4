"""Checkpoints: one form, by parameter name, free of ranks, ZeRO stage and precision [facts: checkpoints by name].

`RUN/checkpoints/step_00001000/` is a model directory (config.json, vocabulary, model-*.safetensors with float32
weights) plus, of what is trained, the optimizer's moments by parameter name (optimizer-*.safetensors) and the running
average of the weights, if one is kept (average-*.safetensors), and state.json. Every rank writes its share into a
hidden directory; rank 0 verifies that all parts are there and renames it: complete or absent.
"""

import hashlib
import os
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_optimizer_state
from torch import Tensor, distributed, nn

from deltalm_ds.checkpoints.average import RUNNING_AVERAGE_FILES
from deltalm_ds.checkpoints.directory import open_weights
from deltalm_ds.checkpoints.safetensors_writer import safetensors_blocks
from deltalm_ds.checkpoints.tensor_files import TensorFile
from deltalm_ds.errors import InputError
from deltalm_ds.files import publish_directory, sha256_of, write_json
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.runs.attempts import end_if_taken_over
from deltalm_ds.runs.checkpoints import (
    STATE,
    CheckpointFile,
    TrainingState,
    damaged,
    find_fault,
    newest_whole_checkpoint,
)
from deltalm_ds.training.collectives import first_fault, of_all_ranks
from deltalm_ds.training.deepspeed_internals import full_shape, full_size, whole_state
from deltalm_ds.training.parameter_states import AVERAGE, full_weight, kept_states, set_full
from deltalm_ds.training.retention import replaced
from deltalm_ds.vocabulary import Vocabulary

LOSS_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
BLOCK_BYTES = 8 << 20  # written and hashed at a time, while it is in the processor's cache


class Share:
    """This rank's share of a checkpoint, copied to host memory that is taken once: a second copy allocates nothing.

    A parameter is the share of the rank whose optimizer holds all of it, which copies it without a word to the others;
    those that ranks hold in parts are dealt by size.

    Attributes:
        files: float32 tensors by kind of file (`model`, `optimizer`, `average`) and name.
    """

    def __init__(self, ds_engine: deepspeed.DeepSpeedEngine) -> None:
        self._ds_engine, rank = ds_engine, distributed.get_rank()
        sizes = {name: full_size(parameter) for name, parameter in ds_engine.module.named_parameters()}
        held = [n for n, parameter in ds_engine.module.named_parameters() if whole_state(parameter) is not None]
        self._holder = {name: holder for holder, names in enumerate(of_all_ranks(held)) for name in names}
        owner = _deal(sizes, self._holder)
        on_gpu = ds_engine.device.type == "cuda"
        self._copied = torch.cuda.Event() if on_gpu else None
        self.files: dict[str, dict[str, Tensor]] = {}
        for name, parameter in ds_engine.module.named_parameters():
            for kind, key, _ in _tensors_of(name, parameter):
                of_kind = self.files.setdefault(kind, {})
                if owner[name] == rank:  # zeroed: the system gives memory when it is first written to
                    of_kind[key] = torch.empty(full_shape(parameter), dtype=torch.float32, pin_memory=on_gpu).zero_()

    def copy(self) -> None:
        """Take weights and states as they are now; on a GPU in its turn, without waiting. A collective."""
        for name, parameter in self._ds_engine.module.named_parameters():
            for kind, key, state in _tensors_of(name, parameter):
                memory = self.files[kind].get(key)
                value = (whole_state if name in self._holder else _put_together)(parameter, state)
                if memory is not None:
                    assert value is not None  # its owner holds all of it
                    memory.copy_(value.detach().view_as(memory), non_blocking=True)
        if self._copied is not None:
            self._copied.record()

    def wait(self) -> None:
        """Until the copy is made."""
        if self._copied is not None:
            self._copied.synchronize()


def _tensors_of(name: str, parameter: nn.Parameter) -> list[tuple[str, str, str | None]]:
    """Of a parameter: in which kind of file, by which name, and which state of the optimizer, None for its weight."""
    tensors: list[tuple[str, str, str | None]] = [("model", name, None)]
    for state in kept_states(parameter):
        tensors.append(("average", name, state) if state == AVERAGE else ("optimizer", f"{state}.{name}", state))
    return tensors


def _put_together(parameter: nn.Parameter, state: str | None) -> Tensor:
    """A parameter's float32 weight, or a state of it, of which ranks have parts, or which is frozen. A collective."""
    return full_weight(parameter) if state is None else safe_get_full_optimizer_state(parameter, state)


def _deal(sizes: dict[str, int], holder: dict[str, int]) -> dict[str, int]:
    """The rank that writes each parameter: its holder, or, largest first, the rank with the least so far."""
    load, owner = [0] * distributed.get_world_size(), {}
    for name in sorted(sizes, key=lambda name: (name not in holder, -sizes[name], name)):
        owner[name] = holder.get(name, load.index(min(load)))
        load[owner[name]] += sizes[name]
    return owner


def write_share(share: Share, directory: Path) -> dict[str, CheckpointFile]:
    """Write and flush this rank's files into a directory that is there; their sizes and checksums.

    Raises:
        OSError: the disk is full, say.
    """
    part = f"{distributed.get_rank() + 1:05d}-of-{distributed.get_world_size():05d}.safetensors"
    return {f"{kind}-{part}": _write(directory / f"{kind}-{part}", tensors) for kind, tensors in share.files.items()}


def _write(path: Path, tensors: dict[str, Tensor]) -> CheckpointFile:
    """Write and flush a safetensors file; the checksum is taken of what is written, without reading it again."""
    shapes, digest = {name: tensor.shape for name, tensor in tensors.items()}, hashlib.sha256()
    with open(path, "wb") as file:
        for tensor in safetensors_blocks(shapes, tensors.__getitem__):
            whole = memoryview(tensor)
            for start in range(0, len(whole), BLOCK_BYTES):
                file.write(block := whole[start : start + BLOCK_BYTES])
                digest.update(block)
        file.flush()
        os.fsync(file.fileno())
        return CheckpointFile(file.tell(), digest.hexdigest())


def publish(
    model: DeltaLM,
    vocabulary: Vocabulary,
    temporary: Path,
    path: Path,
    state: TrainingState,
    provenance: dict[str, Any],
) -> None:
    """Make the parts that all ranks have written a checkpoint.

    Args:
        model: whose weights they are; only its names and sizes are looked at.
        vocabulary: written beside the weights.
        temporary: where the parts are.
        path: of the checkpoint; one that is there already, of a run that went on from an older one, is replaced.
        state: where the run is; its `files` list the parts, and are completed.
        provenance: what made the checkpoint, for its config.json.

    Raises:
        InputError, OSError: it could not be done.
    """
    vocabulary.save(temporary)
    write_json(temporary / "config.json", {"model": model.config.model_dump(), "provenance": provenance})
    others = [file for file in temporary.iterdir() if file.name not in state.files]
    state.files |= {file.name: CheckpointFile(file.stat().st_size, sha256_of(file)) for file in others}
    write_json(temporary / STATE, asdict(state))
    wanted = {(kind, key) for name, p in model.named_parameters() for kind, key, _ in _tensors_of(name, p)}
    if {(kind, key) for kind, tensors in _open(temporary).items() for key in tensors} != wanted:
        raise InputError(f"the parts in {temporary} are not complete (is the run directory on a shared disk?)")
    # Looked at before: what a later attempt puts there is not ours to move, and a directory does not take its place.
    is_there = path.exists()
    end_if_taken_over(path.parent.parent)
    with replaced(path) if is_there else nullcontext():
        publish_directory(temporary, path)


def _open(checkpoint: Path) -> dict[str, TensorFile]:
    """Its tensors by kind of file."""
    files = {"optimizer": "optimizer-*.safetensors", "average": RUNNING_AVERAGE_FILES}
    others = {kind: TensorFile.joined(checkpoint, sorted(checkpoint.glob(glob))) for kind, glob in files.items()}
    return {"model": open_weights(checkpoint), **others}


def checkpoint_to_go_on_from(run: Path) -> Path | None:
    """The newest checkpoint whose files are as they were written; damaged ones are named and passed over.

    A collective: every rank reads its share of the files.

    Raises:
        DataError: there are checkpoints, and none is whole.
    """
    rank, world_size = distributed.get_rank(), distributed.get_world_size()

    def fault_of(checkpoint: Path) -> str | None:
        fault = first_fault(find_fault(checkpoint, lambda files: files[rank::world_size]))
        if fault and rank == 0:
            print(f"{damaged(checkpoint, fault)} It is passed over.", file=sys.stderr)
        return fault

    return newest_whole_checkpoint(run, fault_of)


def loss_scaler_state(ds_engine: deepspeed.DeepSpeedEngine) -> dict[str, float] | None:
    """What the dynamic loss scale depends on; None but in fp16."""
    if not ds_engine.fp16_enabled():
        return None
    scaler = vars(ds_engine.optimizer.loss_scaler)  # a static scale has not all of them
    return {name: scaler[name] for name in LOSS_SCALER_FIELDS if name in scaler}


def set_loss_scaler(ds_engine: deepspeed.DeepSpeedEngine, state: dict[str, float] | None) -> None:
    """Put back what `loss_scaler_state` gave."""
    for field, value in (state or {}).items():
        setattr(ds_engine.optimizer.loss_scaler, field, value)


def restore(ds_engine: deepspeed.DeepSpeedEngine, checkpoint: Path, state: TrainingState) -> None:
    """Put a checkpoint's exact weights and what the optimizer keeps of them into a DeepSpeed engine.

    The model was loaded with the weights before, and the DeepSpeed engine initialized with the count of updates.

    Raises:
        DataError: a tensor is missing, or a file cannot be read.
    """
    try:
        tensors = _open(checkpoint)
    except InputError as error:
        raise damaged(checkpoint, error) from None
    for name, parameter in ds_engine.module.named_parameters():
        for kind, key, optimizer_state in _tensors_of(name, parameter):
            if key not in tensors[kind]:
                raise damaged(checkpoint, f"it has no tensor {key} in its {kind} files")
            if parameter.requires_grad:
                set_full(parameter, tensors[kind][key], optimizer_state)
    if ds_engine.fp16_enabled():  # now; the checkpoint may be of another precision
        set_loss_scaler(ds_engine, state.loss_scaler)

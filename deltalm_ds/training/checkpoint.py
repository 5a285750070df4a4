"""Checkpoints: one form, by parameter name, free of ranks, ZeRO stage and precision [facts: checkpoints by name].

`RUN/checkpoints/step_00001000/` is a model directory (config.json, vocabulary, model-*.safetensors with float32
weights) plus, of what is trained, the optimizer's moments by parameter name (optimizer-*.safetensors) and the running
average of the weights, if one is kept (average-*.safetensors), and state.json. Every rank writes its part into a hidden
directory; rank 0 verifies that all parts are there and renames it: complete or absent.
"""

import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import deepspeed
from deepspeed.utils import (
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, distributed, nn

from deltalm_ds.checkpoints.average import RUNNING_AVERAGE_FILES
from deltalm_ds.checkpoints.directory import open_weights
from deltalm_ds.checkpoints.safetensors_writer import write_safetensors
from deltalm_ds.checkpoints.tensor_files import TensorFile
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.files import fsync_path, publish_directory, sha256_of, write_json
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.runs.checkpoints import (
    STATE,
    CheckpointFile,
    TrainingState,
    best_checkpoint,
    checkpoint_directories,
    checkpoint_name,
    damaged,
    find_fault,
    newest_whole_checkpoint,
)
from deltalm_ds.training.collectives import first_fault, of_all_ranks
from deltalm_ds.training.deepspeed_internals import full_size
from deltalm_ds.training.parameter_states import AVERAGE, full_weight, kept_states
from deltalm_ds.vocabulary import Vocabulary

LOSS_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def save_checkpoint(
    ds_engine: deepspeed.DeepSpeedEngine,
    vocabulary: Vocabulary,
    run: Path,
    state: TrainingState,
    provenance: dict[str, Any],
) -> Path:
    """Write a checkpoint, all ranks together.

    Args:
        ds_engine: holds the weights and the optimizer's moments.
        vocabulary: written beside the weights.
        run: the run directory; the checkpoint is named by the state's step.
        state: where the run is; its `files` become the list of what was written.
        provenance: what made the checkpoint, for its config.json.

    Raises:
        InputError: a rank could not write (disk full, say); nothing is left of the attempt.
    """
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    path = run / "checkpoints" / checkpoint_name(state.step)
    temporary = path.with_name(f".{path.name}.tmp")
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
    share = _gather_own_share(ds_engine)
    distributed.barrier()
    part = f"{rank + 1:05d}-of-{world_size:05d}.safetensors"
    written, fault = _try_to_write(temporary, {f"{kind}-{part}": tensors for kind, tensors in share.items()})
    state.files = {name: file for files in of_all_ranks(written) for name, file in files.items()}
    fault = first_fault(fault)
    if rank == 0:
        fault = fault or _try_to_publish(ds_engine.module, vocabulary, temporary, path, state, provenance)
        if fault:
            shutil.rmtree(temporary, ignore_errors=True)
    if fault := first_fault(fault):
        raise InputError(f"The checkpoint {path} could not be written: {fault}. Earlier checkpoints are whole.")
    return path


def _gather_own_share(ds_engine: deepspeed.DeepSpeedEngine) -> dict[str, dict[str, Tensor]]:
    """The tensors of the parameters dealt to this rank, by kind of file. Collectives: all ranks walk all parameters."""
    owner = _deal(ds_engine.module)
    share: dict[str, dict[str, Tensor]] = {}
    for name, parameter in ds_engine.module.named_parameters():
        for kind, key, state in _tensors_of(name, parameter):
            whole = full_weight(parameter) if state is None else safe_get_full_optimizer_state(parameter, state)
            of_kind = share.setdefault(kind, {})
            if owner[name] == distributed.get_rank():
                shape = getattr(parameter, "ds_shape", parameter.shape)
                of_kind[key] = whole.detach().float().cpu().clone().view(shape)
    return share


def _tensors_of(name: str, parameter: nn.Parameter) -> list[tuple[str, str, str | None]]:
    """Of a parameter: in which kind of file, by which name, and which state of the optimizer, None for its weight."""
    tensors: list[tuple[str, str, str | None]] = [("model", name, None)]
    for state in kept_states(parameter):
        tensors.append(("average", name, state) if state == AVERAGE else ("optimizer", f"{state}.{name}", state))
    return tensors


def _deal(model: DeltaLM) -> dict[str, int]:
    """The rank that writes each parameter: largest first, always to the rank with the least so far."""
    load = [0] * distributed.get_world_size()
    owner = {}
    sizes = {name: full_size(parameter) for name, parameter in model.named_parameters()}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = load.index(min(load))
        owner[name] = rank
        load[rank] += sizes[name]
    return owner


def _try_to_write(directory: Path, files: dict[str, dict[str, Tensor]]) -> tuple[dict[str, CheckpointFile], str | None]:
    """Write and flush safetensors files; their sizes and checksums, and what went wrong, if anything."""
    written = {}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, tensors in files.items():
            shapes = {key: tensor.shape for key, tensor in tensors.items()}
            write_safetensors(directory / name, shapes, tensors.__getitem__)
            fsync_path(directory / name)
            written[name] = _as_written(directory / name)
    except Exception as error:  # whatever it is, the other ranks must learn of it
        return written, f"{type(error).__name__}: {error}"
    return written, None


def _as_written(path: Path) -> CheckpointFile:
    return CheckpointFile(path.stat().st_size, sha256_of(path))


def _try_to_publish(
    model: DeltaLM,
    vocabulary: Vocabulary,
    temporary: Path,
    path: Path,
    state: TrainingState,
    provenance: dict[str, Any],
) -> str | None:
    try:
        vocabulary.save(temporary)
        write_json(temporary / "config.json", {"model": model.config.model_dump(), "provenance": provenance})
        others = [file for file in temporary.iterdir() if file.name not in state.files]
        state.files |= {file.name: _as_written(file) for file in others}
        write_json(temporary / STATE, asdict(state))
        wanted = {(kind, key) for name, p in model.named_parameters() for kind, key, _ in _tensors_of(name, p)}
        if {(kind, key) for kind, tensors in _open(temporary).items() for key in tensors} != wanted:
            return f"the parts in {temporary} are not complete (is the run directory on a shared disk?)"
        shutil.rmtree(path, ignore_errors=True)  # the same step saved again after a resume
        publish_directory(temporary, path)
    except (OSError, InputError) as error:
        return str(error)
    return None


def _open(checkpoint: Path) -> dict[str, TensorFile]:
    """Its tensors by kind of file."""
    files = {"optimizer": "optimizer-*.safetensors", "average": RUNNING_AVERAGE_FILES}
    others = {kind: TensorFile.joined(checkpoint, sorted(checkpoint.glob(glob))) for kind, glob in files.items()}
    return {"model": open_weights(checkpoint), **others}


def keep_checkpoints(run: Path, keep_last: int) -> None:
    """Remove all but the last ones and the best one, and what an interrupted save left behind.

    What cannot be removed is one warning: it is no reason to stop training.
    """
    try:
        best = best_checkpoint(run)
        for directory in checkpoint_directories(run)[:-keep_last]:
            if directory != best:
                shutil.rmtree(directory)
        for leftover in (run / "checkpoints").glob(".step_*.tmp"):
            shutil.rmtree(leftover)
    except (OSError, InputError) as error:
        print(f"Old checkpoints of {run} stay: {str(error).removesuffix('.')}.", file=sys.stderr)


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
                raise DataError(f"The checkpoint {checkpoint} has no tensor {key} in its {kind} files.")
            if optimizer_state is not None:
                safe_set_full_optimizer_state(parameter, tensors[kind][key], optimizer_state)
            elif parameter.requires_grad:
                safe_set_full_fp32_param(parameter, tensors[kind][key])
    for field, value in (state.loss_scaler or {}).items():
        setattr(ds_engine.optimizer.loss_scaler, field, value)

"""Going back to the newest checkpoint without starting again, to go on from there without some steps."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import deepspeed
import torch
from torch import Tensor, distributed

from deltalm_ds.checkpoints.directory import open_weights
from deltalm_ds.files import write_json
from deltalm_ds.runs.attempts import end_if_taken_over
from deltalm_ds.runs.checkpoints import STATE, TrainingState, read_state
from deltalm_ds.training.checkpoint import checkpoint_to_go_on_from, restore
from deltalm_ds.training.deepspeed_engine import set_update_count


class RollBack(Exception):
    """All ranks have agreed that what these steps did to the weights is to be undone."""

    def __init__(self, steps: Iterable[int]) -> None:
        self.steps = set(steps)
        super().__init__(f"steps {sorted(self.steps)}")


def roll_back(ds_engine: deepspeed.DeepSpeedEngine, run: Path, steps: set[int]) -> TrainingState:
    """Put the newest whole checkpoint into a DeepSpeed engine; its state, by which `steps` are left out from now on.

    That stands in the checkpoint too, so that a start from it does the same. A collective.

    Raises:
        DataError: no checkpoint is whole.
    """
    checkpoint = checkpoint_to_go_on_from(run)
    assert checkpoint is not None, "there is one"
    state = read_state(checkpoint)
    state.left_out = sorted({*state.left_out, *steps})
    distributed.barrier()  # everybody has read it
    if distributed.get_rank() == 0:
        end_if_taken_over(run)
        write_json(checkpoint / STATE, asdict(state))
    _load_weights(ds_engine, open_weights(checkpoint))
    restore(ds_engine, checkpoint, state)
    set_update_count(ds_engine, state.updates)
    distributed.barrier()
    return state


@torch.no_grad()
def _load_weights(ds_engine: deepspeed.DeepSpeedEngine, weights: Mapping[str, Tensor]) -> None:
    """Set what forwards compute with; `restore` sets the exact float32 weights behind it, each rank its share."""
    for name, parameter in ds_engine.module.named_parameters():
        if ds_engine.zero_optimization_stage() < 3:
            parameter.copy_(weights[name])
            continue
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if distributed.get_rank() == 0:
                parameter.copy_(weights[name])

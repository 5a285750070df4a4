"""The running average of the weights: an exponential moving average after each update, in float32.

It stands beside Adam's moments as a third state of the optimizer, so that each rank keeps the average of what it
updates, and checkpoints carry it by parameter name to any number of ranks and ZeRO stage.
"""

from typing import Any

import torch
from deepspeed.utils import safe_get_full_optimizer_state
from torch import Tensor, nn

from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.recipe.training_section import AverageSection
from deltalm_ds.training.deepspeed_internals import master_weights
from deltalm_ds.training.parameter_states import AVERAGE, full_weight, whole_model


@torch.no_grad()
def update_average(ds_engine: Any, average: AverageSection, updates: int) -> None:
    """Take the weights after update number `updates`, from 1, into the average; nobody waits for a GPU."""
    weights, state = master_weights(ds_engine), ds_engine.optimizer.optimizer.state
    share = 1 - average.decay if updates > average.from_step else 1.0
    torch._foreach_lerp_([state[weight][AVERAGE] for weight in weights], weights, share)


def averaged_model(ds_engine: Any) -> DeltaLM:
    """A copy of the model, whole on every rank, with the average for weights; of the engine's dtype. A collective."""
    return whole_model(ds_engine, ds_engine.device, _full_average)


def _full_average(parameter: nn.Parameter) -> Tensor:
    if not parameter.requires_grad:
        return full_weight(parameter)
    average: Tensor = safe_get_full_optimizer_state(parameter, AVERAGE)
    return average

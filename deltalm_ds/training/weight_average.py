"""The running average of the weights: an exponential moving average after each update, in float32.

It stands beside Adam's moments as a third state of the optimizer, so that each rank keeps the average of what it
updates, and checkpoints carry it by parameter name to any number of ranks and ZeRO stage.
"""

from typing import Any

import torch
from deepspeed.utils import safe_get_full_optimizer_state

from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.empty import empty_model
from deltalm_ds.recipe.training_section import AverageSection
from deltalm_ds.training.deepspeed_internals import master_weights
from deltalm_ds.training.parameter_states import AVERAGE, full_weight


@torch.no_grad()
def update_average(ds_engine: Any, average: AverageSection, updates: int) -> None:
    """Take the weights after update number `updates`, from 1, into the average; nobody waits for a GPU."""
    weights, state = master_weights(ds_engine), ds_engine.optimizer.optimizer.state
    share = 1 - average.decay if updates > average.from_step else 1.0
    torch._foreach_lerp_([state[weight][AVERAGE] for weight in weights], weights, share)


@torch.no_grad()
def averaged_model(ds_engine: Any) -> DeltaLM:
    """A copy of the model, whole on every rank, with the average for weights; of the engine's dtype. A collective."""
    model = empty_model(ds_engine.module.config)
    weights = {}
    for (name, empty), parameter in zip(model.named_parameters(), ds_engine.module.parameters(), strict=True):
        full = safe_get_full_optimizer_state(parameter, AVERAGE) if parameter.requires_grad else full_weight(parameter)
        weights[name] = full.view(empty.shape).to(ds_engine.device, parameter.dtype, copy=True)
    model.load_state_dict(weights, assign=True)
    return model

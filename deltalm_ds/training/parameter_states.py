"""What a DeepSpeed engine holds of a parameter, trained or frozen: its float32 weight and the optimizer's states."""

from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, distributed, nn

from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.empty import empty_model

MOMENTS = ("exp_avg", "exp_avg_sq")
AVERAGE = "average"  # of the weights, where a run keeps one (`weight_average.py`)
_STATES, _EXACT = "kept_states", "exact_weight"  # attributes of a parameter


def keep_states(module: nn.Module, has_average: bool) -> None:
    """Note at each parameter what `kept_states` says."""
    for parameter in module.parameters():
        states = (*MOMENTS, AVERAGE) if has_average else MOMENTS
        setattr(parameter, _STATES, states if parameter.requires_grad else ())


def kept_states(parameter: nn.Parameter) -> tuple[str, ...]:
    """What the optimizer keeps of a parameter: nothing of a frozen one."""
    states: tuple[str, ...] = getattr(parameter, _STATES)
    return states


def full_weight(parameter: nn.Parameter) -> Tensor:
    """A parameter's exact weight. A collective."""
    if parameter.requires_grad:
        return safe_get_full_fp32_param(parameter)
    exact: Tensor | None = getattr(parameter, _EXACT, None)
    if exact is not None:
        return exact
    with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


@torch.no_grad()
def whole_model(
    ds_engine: deepspeed.DeepSpeedEngine,
    device: torch.device,
    weight_of: Callable[[nn.Parameter], Tensor] = full_weight,
) -> DeltaLM:
    """A copy of the model, whole on every rank, on a device and in the engine's dtype. A collective.

    weight_of: what takes the place of a parameter; a collective.
    """
    model = empty_model(ds_engine.module.config)
    weights = {}
    for (name, empty), parameter in zip(model.named_parameters(), ds_engine.module.parameters(), strict=True):
        weights[name] = weight_of(parameter).view(empty.shape).to(device, parameter.dtype, copy=True)
    model.load_state_dict(weights, assign=True)
    return model


def set_full(parameter: Any, value: Tensor, state: str | None = None) -> None:
    """Set the float32 weight of a trained parameter, or one of its optimizer's states, from the whole of it.

    At ZeRO-3 each rank takes its share itself, as DeepSpeed cannot where the ranks' shares are not equal
    [facts: uneven shares].
    """
    if not hasattr(parameter, "ds_id"):
        if state is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, state)
        return
    size = parameter.ds_tensor.numel()  # with what fills up the last rank's
    share = value.flatten()[distributed.get_rank() * size :][:size]
    share = nn.functional.pad(share, (0, size - len(share)))
    if state is None:
        safe_set_local_fp32_param(parameter, share)
    else:
        safe_set_local_optimizer_state(parameter, share, state)


def set_exact_weight(parameter: nn.Parameter, weight: Tensor) -> None:
    """Give a parameter of 16 bits, which has its weight rounded, the exact one beside it.

    A trained one has a float32 master weight [facts: masters]; a frozen one has none, and keeps it for checkpoints, in
    the host's memory: what is not trained is to come out as it went in.
    """
    if parameter.requires_grad:
        set_full(parameter, weight)
    else:
        setattr(parameter, _EXACT, weight.cpu())

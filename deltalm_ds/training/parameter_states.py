"""What a DeepSpeed engine holds of a parameter, trained or frozen: its float32 weight and the optimizer's states."""

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param
from torch import Tensor, nn

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


def set_exact_weight(parameter: nn.Parameter, weight: Tensor) -> None:
    """Give a parameter of 16 bits, which has its weight rounded, the exact one beside it.

    A trained one has a float32 master weight [facts: masters]; a frozen one has none, and keeps it for checkpoints, in
    the host's memory: what is not trained is to come out as it went in.
    """
    if parameter.requires_grad:
        safe_set_full_fp32_param(parameter, weight)
    else:
        setattr(parameter, _EXACT, weight.cpu())

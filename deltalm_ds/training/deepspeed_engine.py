"""The DeepSpeed engine: its start, its optimizer, and what it needs on a CPU."""

import logging
from typing import Any

import deepspeed
import torch
from torch.optim import Optimizer

from deltalm_ds.allocator import keep_freed_memory
from deltalm_ds.errors import InputError
from deltalm_ds.kernels.optimizer import adam, apex_adam
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.recipe.schema import OptimizerSection, Recipe
from deltalm_ds.training.collectives import COLLECTIVE_TIMEOUT, collective_timeout
from deltalm_ds.training.deepspeed_config import deepspeed_config, for_ranks, offload_device, precision
from deltalm_ds.training.deepspeed_internals import (
    hold_numbers_once,
    keep_silent_about_memory,
    leave_muon_uncompiled,
    leave_out_shared_memory_op,
    limit_waits,
    link_moments,
    master_weights,
)
from deltalm_ds.training.parameter_groups import freeze, parameter_groups
from deltalm_ds.training.parameter_states import AVERAGE, MOMENTS, keep_states, set_exact_weight


def start_distributed() -> None:
    """Join the other ranks."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    keep_silent_about_memory()
    leave_muon_uncompiled()
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        leave_out_shared_memory_op()
    deepspeed.init_distributed("nccl" if on_gpu else "gloo", timeout=COLLECTIVE_TIMEOUT, verbose=False)


def initialize(model: DeltaLM, recipe: Recipe, updates: int = 0) -> deepspeed.DeepSpeedEngine:
    """Wrap a float32 model with its optimizer into a DeepSpeed engine; `start_distributed` comes first.

    All that lives as long as the engine is there afterwards, so that too little memory shows now. Only then does a CPU
    start to keep the memory that steps free: what lives long would break it into pieces too small for the next step.

    Args:
        updates: how many the optimizer has made, for a run that goes on.
    """
    on_cpu = not torch.cuda.is_available()
    config = for_ranks(deepspeed_config(recipe), torch.distributed.get_world_size(), on_cpu)
    freeze(model, recipe.optimizer)
    optimizer = make_optimizer(model, recipe.optimizer, config["zero_optimization"])
    exact = {} if precision(config) == "fp32" else {name: p.detach().clone() for name, p in model.named_parameters()}
    ds_engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if exact:  # 16-bit engines take weights already rounded as their float32 masters [facts: masters]
        for name, parameter in ds_engine.module.named_parameters():
            set_exact_weight(parameter, exact.pop(name))
    limit_waits(collective_timeout(recipe.training.limits))
    hold_numbers_once(ds_engine)
    has_average = recipe.training.average is not None
    keep_states(ds_engine.module, has_average)
    create_moments(ds_engine, updates, has_average)
    if on_cpu:
        keep_freed_memory()
    return ds_engine


def make_optimizer(model: torch.nn.Module, options: OptimizerSection, zero: dict[str, Any]) -> Optimizer:
    """The recipe's Adam, by the implementation it names or that fits DeepSpeed's section `zero_optimization`.

    Raises:
        InputError: the implementation cannot run here, or not with this engine.
    """
    offloads = offload_device(zero) != "none"
    implementation = "torch" if options.implementation == "auto" else options.implementation
    if implementation != "torch" and options.definition != "torch":
        raise InputError("optimizer.definition: fairseq goes with optimizer.implementation: torch or auto only.")
    groups = parameter_groups(model, options)
    if implementation == "deepspeed":
        return _deepspeed_adam(groups, options, on_cpu=offloads or not torch.cuda.is_available())
    if implementation == "apex":
        return apex_adam(groups, options.betas, options.eps, options.weight_decay)
    return adam(groups, options.betas, options.eps, options.weight_decay, options.definition)


def _deepspeed_adam(groups: list[dict[str, Any]], options: OptimizerSection, on_cpu: bool) -> Optimizer:
    """DeepSpeed's CPU or GPU Adam; both compile when they are made, where that was not done before."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    make = DeepSpeedCPUAdam if on_cpu else FusedAdam
    settings = {"lr": 0.0, "betas": options.betas, "eps": options.eps, "weight_decay": options.weight_decay}
    try:
        return make(groups, **settings)
    except Exception as error:  # whatever a missing or unfit compiler leads to
        reason = f"{error.__cause__ or error}".strip().split("\n")[0]
        raise InputError(
            f"DeepSpeed's {make.__name__} cannot be compiled here: {reason}. Install what is missing, or leave "
            "optimizer.implementation at auto."
        ) from error


def create_moments(ds_engine: deepspeed.DeepSpeedEngine, updates: int, has_average: bool = False) -> None:
    """Make the moments, zero, that Adam itself would only make in its first step, and set its count of updates.

    A running average of the weights, if there is to be one, is a third state beside them.
    """
    for flat in master_weights(ds_engine):
        state = ds_engine.optimizer.optimizer.state[flat]
        state |= {moment: torch.zeros_like(flat) for moment in MOMENTS}
        if has_average:
            state[AVERAGE] = flat.detach().clone()
    set_update_count(ds_engine, updates)
    link_moments(ds_engine)


def set_update_count(ds_engine: deepspeed.DeepSpeedEngine, updates: int) -> None:
    """Tell Adam how many updates it has made."""
    optimizer = ds_engine.optimizer.optimizer
    # torch's Adam counts in a tensor beside the weights; DeepSpeed's in a number, and apex's in one of the group
    counts_in_tensor = isinstance(optimizer, torch.optim.AdamW)
    for flat in master_weights(ds_engine):
        step = torch.tensor(float(updates), device=flat.device) if counts_in_tensor else updates
        optimizer.state[flat]["step"] = step
    if not counts_in_tensor:
        for group in optimizer.param_groups:
            group["step"] = updates

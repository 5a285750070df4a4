"""The DeepSpeed engine: its start, and what it needs on a CPU."""

import logging
from datetime import timedelta

import deepspeed
import torch
from deepspeed.ops import __compatible_ops__ as compatible_ops

from deltalm_ds.config import Recipe
from deltalm_ds.errors import InputError
from deltalm_ds.kernels.optimizer import adam
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.training.engine_config import engine_config

COLLECTIVE_TIMEOUT = timedelta(minutes=30)


def start_distributed() -> None:
    """Join the other ranks; on a CPU without the shared-memory op, which would compile for 42 s and leak."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        compatible_ops["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("nccl" if on_gpu else "gloo", timeout=COLLECTIVE_TIMEOUT, verbose=False)


def initialize(model: DeltaLM, recipe: Recipe) -> deepspeed.DeepSpeedEngine:
    """Wrap a float32 model with its optimizer into an engine; `start_distributed` comes first."""
    options = recipe.optimizer
    config = engine_config(recipe)
    optimizer = (
        _offloaded_adam(model, recipe)
        if config["zero_optimization"].get("offload_optimizer", {}).get("device", "none") != "none"
        else adam(model.parameters(), options.betas, options.eps, options.weight_decay, options.definition)
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine


def _offloaded_adam(model: DeltaLM, recipe: Recipe) -> torch.optim.Optimizer:
    from deepspeed.ops.adam import DeepSpeedCPUAdam  # compiles on import of its op: only where asked for

    options = recipe.optimizer
    if options.definition != "torch":
        raise InputError("optimizer.definition: fairseq's Adam has no offloaded form; use definition: torch.")
    return DeepSpeedCPUAdam(
        model.parameters(), lr=0.0, betas=options.betas, eps=options.eps, weight_decay=options.weight_decay
    )

"""What training uses of DeepSpeed that is not public, each in one function; its test fails when DeepSpeed changes."""

import deepspeed
import deepspeed.ops
from torch import Tensor


def leave_out_shared_memory_op() -> None:
    """Let ranks on CPUs talk through gloo alone: DeepSpeed's own op would compile for 42 s, and leaks."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def master_weights(ds_engine: deepspeed.DeepSpeedEngine) -> list[Tensor]:
    """The flat float32 weights of this rank, by which its optimizer knows their moments."""
    if ds_engine.zero_optimization_stage() == 3:  # the groups hold these only while a step is made
        return ds_engine.optimizer.fp32_partitioned_groups_flat
    return [flat for group in ds_engine.optimizer.optimizer.param_groups for flat in group["params"]]


def link_moments(ds_engine: deepspeed.DeepSpeedEngine) -> None:
    """Let a DeepSpeed engine before its first step find the moments of each parameter, as it would only behind that."""
    if ds_engine.zero_optimization_stage() < 3:  # stage 3 looks them up whenever it is asked
        ds_engine.optimizer._lazy_init_hp_params_optimizer_state()


def full_size(parameter: Tensor) -> int:
    """Elements of a parameter as the model knows it; at ZeRO stage 3 the tensor itself is empty between its uses."""
    return getattr(parameter, "ds_numel", parameter.numel())

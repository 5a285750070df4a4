"""What training uses of DeepSpeed that is not public, each in one function; its test fails when DeepSpeed changes."""

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import deepspeed
import deepspeed.ops
import torch
from deepspeed.runtime import bf16_optimizer, compiler
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, distributed
from torch.distributed import distributed_c10d

from deltalm_ds.training.deepspeed_config import CPU_NORM_BLOCK, NORM_BLOCK
from deltalm_ds.training.sections import Sections

_REPLACED = (
    "get_grad_norm_direct",
    "copy_grads_in_partition",
    "_use_compact_grad_partition_buffer",
    "_build_compact_grad_partition_buffer",
    "parallel_partitioned_bit16_groups",
    "_link_all_hp_params",
)

_COLLECTIVES = (
    *("all_reduce", "all_reduce_coalesced", "reduce", "reduce_scatter", "reduce_scatter_tensor", "broadcast"),
    *("all_gather", "all_gather_into_tensor", "all_gather_coalesced", "all_to_all_single"),
)


def leave_out_shared_memory_op() -> None:
    """Let ranks on CPUs talk through gloo alone: DeepSpeed's own op would compile for 42 s, and leaks."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def keep_silent_about_memory() -> None:
    """Let the bfloat16 optimizer neither print memory nor collect garbage around each group: it takes long."""
    bf16_optimizer.see_memory_usage = lambda message, force=False: None


def leave_muon_uncompiled() -> None:
    """Let DeepSpeed's Muon, which no recipe has, compile nothing: every start would import TorchInductor for it."""
    compiler.compile = lambda: lambda function: function


def limit_waits(limit: timedelta) -> None:
    """Let a collective of any group fail after `limit`, also of the groups that DeepSpeed makes [facts: time-outs]."""
    for group in distributed_c10d._world.pg_map:
        distributed_c10d._set_pg_timeout(limit, group)


def master_weights(ds_engine: deepspeed.DeepSpeedEngine) -> list[Tensor]:
    """The flat float32 weights of this rank, by which its optimizer knows their moments."""
    if ds_engine.zero_optimization_stage() == 3:  # the groups hold these only while a step is made
        return ds_engine.optimizer.fp32_partitioned_groups_flat
    return [flat for group in ds_engine.optimizer.optimizer.param_groups for flat in group["params"]]


def link_moments(ds_engine: deepspeed.DeepSpeedEngine) -> None:
    """Let a DeepSpeed engine before its first step find the moments of each parameter, as it would only behind that."""
    if ds_engine.zero_optimization_stage() < 3:  # stage 3 looks them up whenever it is asked
        ds_engine.optimizer._lazy_init_hp_params_optimizer_state()


def time_communication(sections: Sections) -> None:
    """Let the collectives of DeepSpeed, which all go through one object, be a section of a rank's clock."""
    backend = deepspeed.comm.comm.cdb
    for name in _COLLECTIVES:
        # the class's own, as an earlier training in this process may have left its clock here
        setattr(backend, name, _timed(partial(getattr(type(backend), name), backend), sections))


def _timed(collective: Callable[..., Any], sections: Sections) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with sections.section("communication"):
            work = collective(*args, **kwargs)
        return work if work is None else _TimedWork(work, sections)

    return call


class _TimedWork:
    """A collective under way, as stage 3 has them: what waits for its end waits for the other ranks."""

    def __init__(self, work: Any, sections: Sections) -> None:
        self._work, self._sections = work, sections

    def wait(self, *args: Any) -> Any:
        with self._sections.section("communication"):
            return self._work.wait(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def full_size(parameter: Tensor) -> int:
    """Elements of a parameter as the model knows it; at ZeRO stage 3 the tensor itself is empty between its uses."""
    return getattr(parameter, "ds_numel", parameter.numel())


def full_shape(parameter: Tensor) -> torch.Size:
    """The shape of a parameter as the model knows it; see `full_size`."""
    return getattr(parameter, "ds_shape", parameter.shape)


def whole_state(parameter: Any, moment: str | None = None) -> Tensor | None:
    """A parameter's flat float32 weight, or a moment of it, where this rank's optimizer holds all of it.

    None where ranks share it, and at stage 3, where they share every parameter.
    """
    held = None if hasattr(parameter, "ds_id") else getattr(parameter, "_hp_mapping", None)
    if held is None or held.lp_fragment_address.numel != parameter.numel():
        return None
    return held.get_hp_fragment(moment)


def hold_numbers_once(ds_engine: deepspeed.DeepSpeedEngine) -> None:
    """Take less memory at ZeRO stages 1 and 2 by the same numbers; an offloaded optimizer is left as it is.

    float32 weights are their own master weights; gradients are summed where the optimizer reads them; and nothing
    makes a temporary as large as the token embedding. A DeepSpeed that is made differently is left as it is, too.
    """
    optimizer, on_cpu = ds_engine.optimizer, ds_engine.device.type == "cpu"
    if isinstance(optimizer, BF16_Optimizer) and on_cpu:
        optimizer._update_hp_grad = partial(_add_in_blocks, optimizer)
    is_known = isinstance(optimizer, DeepSpeedZeroOptimizer) and all(hasattr(optimizer, name) for name in _REPLACED)
    if not is_known or optimizer.cpu_offload:
        return
    optimizer.get_grad_norm_direct = partial(_norm_in_blocks, optimizer.get_grad_norm_direct)
    if optimizer.dtype == torch.float32:
        _share_master_weights(optimizer)
        # as for 16-bit weights: gradients are added to one flat buffer, which the step does not flatten again
        optimizer._use_compact_grad_partition_buffer = lambda group: True
    if on_cpu:
        optimizer._build_compact_grad_partition_buffer = _KeptGradients(optimizer)
        optimizer.copy_grads_in_partition = partial(_let_go, optimizer, optimizer.copy_grads_in_partition)


def _share_master_weights(optimizer: DeepSpeedZeroOptimizer) -> None:
    """Let float32 master weights be this rank's part of the weights, of which they are a copy."""
    for number, master in enumerate(optimizer.single_partition_of_fp32_groups):
        rank = distributed.get_rank(optimizer.real_dp_process_group[number])
        master.data = optimizer.parallel_partitioned_bit16_groups[number][rank]
    optimizer._link_all_hp_params()  # parameters find their master weights by views of them


class _KeptGradients:
    """Flat gradients of the groups that have them, made before the first step, and zeroed where others were made.

    Memory that a step would free, others would use, and the next step would need as much again in one piece.
    """

    def __init__(self, optimizer: DeepSpeedZeroOptimizer) -> None:
        build, uses = optimizer._build_compact_grad_partition_buffer, optimizer._use_compact_grad_partition_buffer
        self._kept = {group: build(group) for group, _ in enumerate(optimizer.bit16_groups) if uses(group)}

    def __call__(self, group: int) -> Any:
        self._kept[group].flat_partition.zero_()
        return self._kept[group]


def _let_go(optimizer: DeepSpeedZeroOptimizer, copy: Callable[..., None], parameter: Tensor, group: int) -> None:
    """Drop a parameter's gradient once it is in the flat one; DeepSpeed does so only when the backward is over.

    On a GPU another stream may still be reading it.
    """
    copy(parameter, group)
    if optimizer._use_compact_grad_partition_buffer(group):
        optimizer.clear_grad_attribute(parameter)


def _norm_in_blocks(
    norm: Callable[..., Tensor], gradients: Iterable[Tensor], parameters: Iterable[Tensor], *options: Any
) -> Tensor:
    """DeepSpeed's norm of gradients, a block at a time: it would copy each gradient in float64, which a block is."""
    real = (gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False))
    pairs = list(zip(real, parameters, strict=False))  # there may be padding behind the last parameter's
    owners = [p for gradient, p in pairs for _ in range(0, gradient.numel(), _norm_block(gradient))]
    return norm(_widened([gradient for gradient, _ in pairs]), owners, *options)


def _widened(gradients: list[Tensor]) -> Iterator[Tensor]:
    """The gradients' blocks in float64, one after the other in the same memory."""
    if not gradients:
        return
    longest = min(_norm_block(gradients[0]), max(map(Tensor.numel, gradients)))
    memory = gradients[0].new_empty(longest, dtype=torch.float64)
    for gradient in gradients:
        for block in gradient.reshape(-1).split(_norm_block(gradient)):
            yield memory[: len(block)].copy_(block)


def _norm_block(gradient: Tensor) -> int:
    return CPU_NORM_BLOCK if gradient.is_cpu else NORM_BLOCK


def _add_in_blocks(
    optimizer: BF16_Optimizer, parameter: Any, group: int, number: int, clear_lp_grads: bool = False
) -> None:
    """Add a parameter's bfloat16 gradient to its float32 sum, without DeepSpeed's copy of it in float32."""
    if parameter.grad is None:
        return
    total = optimizer.fp32_groups_gradients[group][number]
    with torch.no_grad():
        parts = parameter.grad.reshape(-1).split(CPU_NORM_BLOCK)
        for block, part in zip(total.split(CPU_NORM_BLOCK), parts, strict=True):
            block.add_(part)  # a CPU widens the operand in a temporary
        if clear_lp_grads:
            parameter.grad.zero_()
    parameter._hp_grad = total
    optimizer.fp32_groups_has_gradients[group][number] = True

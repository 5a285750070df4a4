"""The DeepSpeed configuration that a recipe names, checked against it. Imports no DeepSpeed: checks are quick."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from deltalm_ds.errors import InputError, nearest
from deltalm_ds.files import read_json
from deltalm_ds.recipe.schema import Recipe

CONFIG_DIRECTORY = Path(__file__).parents[1] / "ds_configs"
OFFLOAD_DEVICES = ("none", "cpu")

NORM_BLOCK = 1 << 22  # elements of gradients that are widened at a time: 32 MiB in float64
CPU_NORM_BLOCK = 1 << 17  # the same on a CPU: 1 MiB, which stays in the cache

# what the recipe decides: the file says "auto" or the very same value
_DECIDED_BY_RECIPE = {"gradient_clipping": lambda recipe: recipe.training.clip_norm}
# what can have one value only, and why [facts: done once]
_BY_STEP = "since the step counts tokens itself"
_BY_US = "since the optimizer is made here"
_EXACT = "since masters and moments are float32 in every checkpoint"
_FIXED: dict[str, tuple[Any, str]] = {
    "train_micro_batch_size_per_gpu": (1, _BY_STEP),
    "gradient_accumulation_steps": (1, _BY_STEP),
    "managed_gradient_accumulation": (False, _BY_STEP),
    "prescale_gradients": (False, _BY_STEP),
    "gradient_predivide_factor": (1.0, _BY_STEP),
    "gradient_allreduce_op": ("mean", _BY_STEP),
    "zero_allow_untested_optimizer": (True, _BY_US),
    "zero_force_ds_cpu_optimizer": (False, _BY_US),
    "bf16.bf16_master_weights_and_grads": (False, _EXACT),
    "bf16.bf16_optimizer_states": (False, _EXACT),
    "fp16.fp16_master_weights_and_grads": (False, _EXACT),
    "zero_optimization.round_robin_gradients": (False, "since it makes checkpoints wrong"),
    "zero_optimization.compute_grad_norm": (True, "since the norm is logged and gradients are clipped by it"),
    "zero_optimization.zero_quantized_weights": (False, "since ranks exchange exact values"),
    "zero_optimization.zero_quantized_nontrainable_weights": (False, "since ranks exchange exact values"),
    "zero_optimization.zero_quantized_gradients": (False, "since ranks exchange exact values"),
    "zero_optimization.offload_optimizer.ratio": (1.0, "since moments are either all on the device or none"),
    "zero_optimization.offload_optimizer.super_offload": (False, _BY_US),
}
_DONE_ELSEWHERE = {
    "optimizer": "the recipe's section optimizer (DeepSpeed's 1-bit optimizers are gone)",
    "scheduler": "the recipe's section schedule",
    "train_batch_size": "the recipe's batch.tokens_per_step",
    "torch_autocast": 'the native section "bf16" or "fp16"',
    "data_efficiency": "the recipe's section sampling",
    "activation_checkpointing": "the recipe's model.activation_checkpointing",
    "zero_optimization.cpu_offload": "zero_optimization.offload_optimizer",
    "zero_optimization.offload_param": "the device: offloaded weights are not supported here",
}
# what DeepSpeed 0.19.8 has no more, and what does it here
_GONE = {
    "amp": 'write a section "bf16" or "fp16"',
    "elasticity": "a run goes on with any number of ranks without it",
    "nebula": "checkpoints are written here",
    "compression_training": "`deltalm export` makes int8 models",
    "quantize_training": "`deltalm export` makes int8 models",
    "eigenvalue": "`deltalm export` makes int8 models",
    "curriculum_learning": "the recipe's section sampling orders the data",
    "sparse_attention": "attention is computed here",
    "sparse_gradients": "gradients are dense here",
    "graph_harvesting": "the recipe's training.cuda_graphs records graphs",
    "progressive_layer_drop": "leave it out",
    "zero_optimization.mics_shard_size": "leave it out",
    "zero_optimization.mics_hierarchical_params_gather": "leave it out",
    "zero_optimization.zeropp_loco_param": "leave it out",
}
_OBSERVING = ("wall_clock_breakdown", "comms_logger", "flops_profiler")  # change nothing that is computed


def deepspeed_config(recipe: Recipe) -> dict[str, Any]:
    """The DeepSpeed configuration that the recipe names, its "auto" values filled in.

    Raises:
        InputError: there is no such file, or it contradicts the recipe; every contradiction is named.
    """
    path = config_path(recipe.deepspeed)
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"The DeepSpeed configuration {path} must be a JSON object.")
    faults = [*_faults_of_keys(config), *_faults_of_values(config, recipe)]
    if faults:
        raise InputError(f"The DeepSpeed configuration {path} does not fit the recipe:\n  " + "\n  ".join(faults))
    fixed = {key: value for key, (value, _) in _FIXED.items() if "." not in key}
    return {**config, **fixed, **{key: decide(recipe) for key, decide in _DECIDED_BY_RECIPE.items()}}


def precision(ds_config: dict[str, Any]) -> str:
    """`fp32`, `bf16` or `fp16`, by a DeepSpeed configuration."""
    return next((name for name in ("bf16", "fp16") if ds_config.get(name, {}).get("enabled")), "fp32")


def offload_device(zero: dict[str, Any]) -> str:
    """Where the section `zero_optimization` keeps the optimizer: `none`, the device, or `cpu`; null is no offload."""
    return str((zero.get("offload_optimizer") or {}).get("device", "none"))


def for_ranks(config: dict[str, Any], num_ranks: int, on_cpu: bool) -> dict[str, Any]:
    """What `num_ranks` ranks make of a configuration: one rank on a CPU takes each float32 gradient as it comes.

    Stages 1 and 2 are the same where there is nobody to share with, but stage 1 has all gradients twice in the end: as
    the backward leaves them and as the optimizer reads them. A bucket gathers what is sent together: there is nothing
    to gather, and one of a single element sends every gradient straight to its place.
    """
    zero = config["zero_optimization"]
    alone_on_cpu = num_ranks == 1 and on_cpu
    if not alone_on_cpu or precision(config) != "fp32" or zero["stage"] == 3 or offload_device(zero) != "none":
        return config
    return {**config, "zero_optimization": {**zero, "stage": 2, "reduce_bucket_size": 1, "overlap_comm": False}}


def config_path(name: str) -> Path:
    """The file of `ds_configs` with this name, or the path given."""
    if name.endswith(".json"):
        return Path(name)
    path = CONFIG_DIRECTORY / f"{name}.json"
    if not path.exists():
        names = sorted(file.stem for file in CONFIG_DIRECTORY.glob("*.json"))
        raise InputError(
            f"There is no DeepSpeed configuration {name!r} in ds_configs; the nearest is {nearest(name, names)!r}."
        )
    return path


@cache
def _known() -> dict[str, Any]:
    """Every key that a file of `ds_configs` has, by its dotted path, with an example of its value."""
    known: dict[str, Any] = {}
    for file in sorted(CONFIG_DIRECTORY.glob("*.json")):
        known |= dict(_paths(read_json(file)))
    return known


def _paths(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{key}.")


def _faults_of_keys(section: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """What is not known, or has another type than in `ds_configs`."""
    for name, value in section.items():
        key = f"{prefix}{name}"
        example = _known().get(key)
        if key in _OBSERVING or (key == "zero_optimization.offload_optimizer" and value is None):
            continue
        if key in _DONE_ELSEWHERE:
            yield f"{key}: belongs to {_DONE_ELSEWHERE[key]}"
        elif key in _GONE:
            yield f"{key}: is gone from DeepSpeed; {_GONE[key]}"
        elif key not in _known():
            siblings = [known.removeprefix(prefix) for known in _known() if known.startswith(prefix)]
            yield f"{key}: is not known here; the nearest is {nearest(name, siblings)!r}"
        elif isinstance(value, dict) and isinstance(example, dict):
            yield from _faults_of_keys(value, f"{key}.")
        elif _kind(value) != _kind(example) and key not in _DECIDED_BY_RECIPE:
            yield f"{key}: must be {_kind(example)} (is {json.dumps(value)})"


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    kinds = {dict: "an object", str: "a text", int: "a number", float: "a number", list: "a list"}
    return kinds.get(type(value), "null")


def _faults_of_values(config: dict[str, Any], recipe: Recipe) -> Iterator[str]:
    values = dict(_paths(config))
    for key, (value, reason) in _FIXED.items():
        if values.get(key, value) != value:
            yield f"{key}: must be {json.dumps(value)}, {reason} (is {json.dumps(values[key])})"
    for key, decide in _DECIDED_BY_RECIPE.items():
        if values.get(key, "auto") not in ("auto", decide(recipe)):
            yield f'{key}: is {values[key]!r}, the recipe says {decide(recipe)!r}; write "auto"'
    zero = values.get("zero_optimization")
    zero = zero if isinstance(zero, dict) else {}
    if zero.get("stage") not in (1, 2, 3):  # [facts: stage 0]
        yield "zero_optimization.stage: must be 1, 2 or 3; stage 0 computes wrong steps in 16 bits"
    key = "zero_optimization.offload_optimizer.device"
    device = values.get(key, "none")
    if device not in OFFLOAD_DEVICES:
        yield f"{key}: must be one of {', '.join(OFFLOAD_DEVICES)} (is {device!r})"
    adam = recipe.optimizer
    if adam.implementation == "apex" and device != "none":
        yield f"{key}: optimizer.implementation: apex cannot be offloaded; use auto"
    if adam.implementation == "apex" and zero.get("stage") == 3:
        yield "zero_optimization.stage: optimizer.implementation: apex miscounts steps with stage 3; use auto"
    if values.get("bf16.enabled") and values.get("fp16.enabled"):
        yield "bf16 and fp16: only one of them can be enabled"
    for narrow in ("bf16", "fp16"):
        if values.get(f"{narrow}.enabled") and values.get("data_types.grad_accum_dtype") != "fp32":
            yield f'data_types.grad_accum_dtype: must be "fp32" with {narrow}'

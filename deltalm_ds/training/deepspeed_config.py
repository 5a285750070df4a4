"""The DeepSpeed configuration that a recipe names, checked against it. Imports no DeepSpeed: checks are quick."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deltalm_ds.errors import InputError, nearest
from deltalm_ds.files import read_json
from deltalm_ds.recipe.schema import Recipe

CONFIG_DIRECTORY = Path(__file__).parents[1] / "ds_configs"

NORM_BLOCK = 1 << 22  # elements of gradients that are widened at a time: 32 MiB in float64
CPU_NORM_BLOCK = 1 << 17  # the same on a CPU: 1 MiB, which stays in the cache

# what the recipe decides: the file says "auto" or the very same value
_DECIDED_BY_RECIPE = {"gradient_clipping": lambda recipe: recipe.training.clip_norm}
# what our step does itself: DeepSpeed must not do it a second time [facts: done once]
_FIXED = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "managed_gradient_accumulation": False,
    "zero_allow_untested_optimizer": True,
}
_DONE_ELSEWHERE = {
    "optimizer": "the recipe's section optimizer",
    "scheduler": "the recipe's section schedule",
    "train_batch_size": "the recipe's batch.tokens_per_step",
    "torch_autocast": 'the native section "bf16" or "fp16"',
    "amp": 'the native section "bf16" or "fp16"',
}
_SECTIONS = ("zero_optimization", "bf16", "fp16", "data_types")
_ALLOWED = {*_FIXED, *_DECIDED_BY_RECIPE, *_SECTIONS, "communication_data_type"}
_ALLOWED |= {"wall_clock_breakdown", "comms_logger", "flops_profiler", "aio"}


def deepspeed_config(recipe: Recipe) -> dict[str, Any]:
    """The DeepSpeed configuration that the recipe names, its "auto" values filled in.

    Raises:
        InputError: there is no such file, or it contradicts the recipe; every contradiction is named.
    """
    path = config_path(recipe.deepspeed)
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"The DeepSpeed configuration {path} must be a JSON object.")
    faults = [f"{key}: must be an object" for key in _SECTIONS if not isinstance(config.get(key, {}), dict)]
    faults = faults or list(_faults(config, recipe))
    if faults:
        raise InputError(f"The DeepSpeed configuration {path} does not fit the recipe:\n  " + "\n  ".join(faults))
    decided = {key: decide(recipe) for key, decide in _DECIDED_BY_RECIPE.items()}
    return {**config, **_FIXED, **decided}


def precision(ds_config: dict[str, Any]) -> str:
    """`fp32`, `bf16` or `fp16`, by a DeepSpeed configuration."""
    return next((name for name in ("bf16", "fp16") if ds_config.get(name, {}).get("enabled")), "fp32")


def for_ranks(config: dict[str, Any], num_ranks: int, on_cpu: bool) -> dict[str, Any]:
    """What `num_ranks` ranks make of a configuration: one rank on a CPU takes each float32 gradient as it comes.

    Stages 1 and 2 are the same where there is nobody to share with, but stage 1 has all gradients twice in the end: as
    the backward leaves them and as the optimizer reads them. A bucket gathers what is sent together: there is nothing
    to gather, and one of a single element sends every gradient straight to its place.
    """
    zero = config["zero_optimization"]
    alone_on_cpu = num_ranks == 1 and on_cpu
    if not alone_on_cpu or precision(config) != "fp32" or zero["stage"] == 3 or offloads_optimizer(zero):
        return config
    return {**config, "zero_optimization": {**zero, "stage": 2, "reduce_bucket_size": 1, "overlap_comm": False}}


def offloads_optimizer(zero: dict[str, Any]) -> bool:
    """Whether the section `zero_optimization` keeps the optimizer off the device; null is as good as nothing."""
    offload = zero.get("offload_optimizer") or {}
    return bool(offload.get("device", "none") != "none")


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


def _faults(config: dict[str, Any], recipe: Recipe) -> Iterator[str]:
    for key in sorted(config.keys() - _ALLOWED):
        instead = _DONE_ELSEWHERE.get(key)
        unknown = f"is not known here; the nearest is {nearest(key, _ALLOWED)!r}"
        yield f"{key}: belongs to {instead}" if instead else f"{key}: {unknown}"
    if not isinstance(config.get("zero_optimization", {}).get("offload_optimizer"), dict | None):
        yield "zero_optimization.offload_optimizer: must be an object"
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            yield f"{key}: must be {json.dumps(value)}, since the step counts tokens itself (is {config[key]!r})"
    for key, decide in _DECIDED_BY_RECIPE.items():
        if config.get(key, "auto") not in ("auto", decide(recipe)):
            yield f'{key}: is {config[key]!r}, the recipe says {decide(recipe)!r}; write "auto"'
    if config.get("zero_optimization", {}).get("stage") not in (1, 2, 3):
        yield "zero_optimization.stage: must be 1, 2 or 3; stage 0 computes wrong steps in 16 bits [facts: stage 0]"
    if config.get("zero_optimization", {}).get("round_robin_gradients"):
        yield "zero_optimization.round_robin_gradients: must be false, it makes checkpoints wrong"
    if config.get("bf16", {}).get("enabled") and config.get("fp16", {}).get("enabled"):
        yield "bf16 and fp16: only one of them can be enabled"
    for precision in ("bf16", "fp16"):
        accumulation = config.get("data_types", {}).get("grad_accum_dtype")
        if config.get(precision, {}).get("enabled") and accumulation != "fp32":
            yield f'data_types.grad_accum_dtype: must be "fp32" with {precision}'

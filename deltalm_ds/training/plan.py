"""`deltalm plan`: what a recipe will do and need, found by checking and planning it for real, without training."""

from typing import Any

import torch

from deltalm_ds.data.micro_batches import deal_micro_batches
from deltalm_ds.data.padding import Shape, on_ladder, rounded_up
from deltalm_ds.data.stream import TrainingStream
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.training.checks import check_inputs
from deltalm_ds.training.deepspeed_config import deepspeed_config, for_ranks, precision
from deltalm_ds.training.graphs import reason_against_graphs
from deltalm_ds.training.memory import (
    LIBRARIES_BYTES,
    ActivationCost,
    loss_bytes,
    model_states,
    norm_bytes,
)

CHECKPOINT_BYTES = 12  # a parameter: float32 weight and Adam's two moments


def make_plan(recipe: Recipe, num_ranks: int) -> dict[str, Any]:
    """Check a recipe as `prepare_run` does and plan some of its steps for `num_ranks` ranks; JSON-ready.

    Memory is an estimate for one rank: the states of the model by ZeRO stage [Rajbhandari+20], and the activations
    and loss of the largest micro-batch planned, and on a CPU the libraries. The allocator's own comes on top.

    Raises:
        InputError, DataError: the recipe or something it names does not hold; every check is made before planning.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    of_recipe = deepspeed_config(recipe)
    ds_config = for_ranks(of_recipe, num_ranks, device.type == "cpu")
    inputs = check_inputs(recipe)
    with torch.device("meta"):
        model = DeltaLM(inputs.model_config)
    steps, micro_batches = _planned_steps(recipe, inputs.stream, num_ranks)
    num_parameters = model.num_parameters(padding_rows=True)
    no_graphs = reason_against_graphs(recipe, inputs.model_config, device)
    memory = memory_of_rank(ds_config, model, micro_batches, num_ranks, device, has_graphs=no_graphs is None)
    checkpoint_bytes = CHECKPOINT_BYTES * num_parameters
    return {
        "recipe": recipe.name,
        "num_ranks": num_ranks,
        "deepspeed": {
            "name": recipe.deepspeed,
            "precision": precision(ds_config),
            "zero_stage": of_recipe["zero_optimization"]["stage"],
        },
        "model": inputs.model_config.model_dump(),
        "num_parameters": model.num_parameters(),
        "num_parameters_with_padding_rows": num_parameters,
        "cuda_graphs": "on" if no_graphs is None else f"off: {no_graphs}",
        "memory_bytes_per_rank": memory,
        "checkpoint_bytes": checkpoint_bytes,
        # those kept, the best one, and the one that is being written
        "checkpoints_bytes": checkpoint_bytes * (recipe.training.keep_last + 2),
        "steps": steps,
        "components": _components(recipe.training.max_steps, inputs.stream),
    }


def _planned_steps(
    recipe: Recipe, stream: TrainingStream, num_ranks: int
) -> tuple[list[dict[str, Any]], list[tuple[int, int]]]:
    """Records of some steps as they will be, and (source, target) tokens of all micro-batches in them."""
    max_steps = recipe.training.max_steps
    wanted = {0, recipe.schedule.warmup_steps, *(max_steps * quarter // 4 for quarter in (1, 2, 3)), max_steps - 1}
    records, micro_batches = [], []
    for step in sorted(step for step in wanted if step < max_steps):
        batch = stream.global_batch(step)
        lengths = batch.source_lengths, batch.target_lengths
        ranks = deal_micro_batches(*lengths, num_ranks, recipe.batch.micro_batch_tokens, recipe.batch.min_micro_batches)
        sizes = [(int(lengths[0][rows].sum()), int(lengths[1][rows].sum())) for rank in ranks for rows in rank]
        micro_batches += sizes
        records.append(
            {
                "step": step,
                "learning_rate": recipe.schedule.learning_rate(step, max_steps),
                "sampling": stream.sampling.facts(step),
                "sequences": len(batch.rows),
                "source_tokens": int(lengths[0].sum()),
                "target_tokens": int(lengths[1].sum()),
                "micro_batches_per_rank": len(ranks[0]),
                "largest_micro_batch_tokens": max(map(sum, sizes)),
                "truncated": batch.num_truncated,
                "dropped": batch.num_overlong + batch.num_too_short,
            }
        )
    return records, micro_batches


def memory_of_rank(
    ds_config: dict[str, Any],
    model: DeltaLM,
    micro_batches: list[tuple[int, int]],
    num_ranks: int,
    device: torch.device,
    has_graphs: bool,
) -> dict[str, int]:
    """Bytes on a rank by what they are for, and the most there are at a time.

    Args:
        ds_config: DeepSpeed's configuration.
        model: of the training, on any device.
        micro_batches: tokens of source and target of each.
        num_ranks: that share the work.
        device: that a rank computes on.
        has_graphs: whether micro-batches are CUDA graphs.
    """
    num_parameters = model.num_parameters(padding_rows=True)
    largest = max(parameter.numel() for parameter in model.parameters())
    weight_bytes = 4 if precision(ds_config) == "fp32" else 2
    on_cpu = device.type == "cpu"
    memory = model_states(ds_config, num_parameters, num_ranks, on_cpu)
    if on_cpu:
        memory["libraries"] = LIBRARIES_BYTES
    to_shape = on_ladder if has_graphs else rounded_up
    padded = [to_shape(Shape(*sizes, sequences=1, longest_source=1, longest_target=1)) for sizes in micro_batches]
    activations, loss = _largest_micro_batch(model.config, weight_bytes, [shape[:2] for shape in padded], on_cpu)
    if has_graphs:  # gradients that stay where they are, and a micro-batch's memory beside that of one not recorded
        memory["cuda_graphs"] = weight_bytes * num_parameters + activations + loss
    norm = norm_bytes(ds_config, num_parameters, largest, num_ranks)
    in_same_memory = sum(memory.values()) - memory["offloaded"] * (not on_cpu)
    total = in_same_memory + max(activations + loss, norm)  # one is over when the other begins
    return memory | {"activations": activations, "loss": loss, "gradient_norm": norm, "total": total}


def _largest_micro_batch(
    config: DeltaLMConfig, weight_bytes: int, micro_batches: list[tuple[int, int]], on_cpu: bool
) -> tuple[int, int]:
    """Bytes of activations and loss of the micro-batch that needs most."""
    cost = ActivationCost.measure(config, weight_bytes)
    needs = [
        (cost.micro_batch(source, target), loss_bytes(config, weight_bytes, target, on_cpu))
        for source, target in micro_batches
    ]
    return max(needs, key=sum)


def _components(max_steps: int, stream: TrainingStream) -> list[dict[str, Any]]:
    """For each component its rows, its probability over time, and how often its corpus is passed over."""
    moments = {"first": 0, "middle": max_steps // 2, "last": max_steps - 1}
    probability = {name: stream.probabilities(step) for name, step in moments.items()}
    drawn = stream.sequences_drawn(max_steps)
    at_end = drawn - stream.sequences_drawn(max_steps - 1)
    return [
        {
            "component": label,
            "rows": component.corpus.num_rows,
            "probability": {name: float(values[number]) for name, values in probability.items()},
            "sequences": float(drawn[number]),
            "passes": float(drawn[number] / component.corpus.num_rows),
            "steps_per_pass_at_end": float(component.corpus.num_rows / at_end[number]) if at_end[number] else None,
        }
        for number, (label, component) in enumerate(zip(stream.labels, stream.components, strict=True))
    ]

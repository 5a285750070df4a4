"""`deltalm plan`: what a recipe will do and need, found by checking and planning it for real, without training."""

from functools import cache
from typing import Any

import torch

from deltalm_ds.data.micro_batches import deal_micro_batches
from deltalm_ds.data.padding import Shape, on_ladder, rounded_up
from deltalm_ds.data.stream import TrainingStream
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.empty import empty_model
from deltalm_ds.recipe.schema import Recipe, ValidationSection
from deltalm_ds.recipe.training_section import TrainingSection
from deltalm_ds.training.checks import check_inputs
from deltalm_ds.training.deepspeed_config import deepspeed_config, for_ranks, offload_device, precision
from deltalm_ds.training.graphs import reason_against_graphs
from deltalm_ds.training.memory import (
    LIBRARIES_BYTES,
    NUMBER_BYTES,
    ActivationCost,
    checkpoint_bytes,
    checkpoint_copy_bytes,
    exchange_bytes,
    loss_bytes,
    model_states,
    norm_bytes,
)
from deltalm_ds.training.parameter_groups import WeightCounts, freeze
from deltalm_ds.training.r_drop import r_drop_loss_bytes


def make_plan(recipe: Recipe, num_ranks: int, trains_here: bool = True) -> dict[str, Any]:
    """Check a recipe as `prepare_run` does and plan some of its steps for `num_ranks` ranks; JSON-ready.

    Memory is an estimate for one rank: the states of the model by ZeRO stage [Rajbhandari+20], and the activations
    and loss of the largest micro-batch planned, and on a CPU the libraries. The allocator's own comes on top.

    Raises:
        InputError, DataError: the recipe or something it names does not hold; every check is made before planning.
    """
    ds_config = deepspeed_config(recipe)
    inputs = check_inputs(recipe, trains_here=trains_here)
    model = empty_model(inputs.model_config)
    freeze(model, recipe.optimizer)
    steps, micro_batches = _planned_steps(recipe, inputs.stream, num_ranks)
    weights = WeightCounts.of(model)
    no_graphs = reason_against_graphs(recipe, inputs.model_config, _device())
    has_average = recipe.training.average is not None
    of_checkpoint = checkpoint_bytes(weights.all, weights.trained, has_average)
    return {
        "recipe": recipe.name,
        "num_ranks": num_ranks,
        "deepspeed": {
            "name": recipe.deepspeed,
            "precision": precision(ds_config),
            "zero_stage": ds_config["zero_optimization"]["stage"],
        },
        "model": inputs.model_config.model_dump(),
        "num_parameters": model.num_parameters(),
        "num_parameters_with_padding_rows": weights.all,
        "num_trained_parameters": weights.trained,
        "cuda_graphs": "on" if no_graphs is None else f"off: {no_graphs}",
        "memory_bytes_per_rank": planned_memory(recipe, inputs.model_config, num_ranks, micro_batches),
        "checkpoint_bytes": of_checkpoint,
        "checkpoints_bytes": of_checkpoint * _most_checkpoints(recipe.training),
        "checkpoint_copy_bytes_per_rank": checkpoint_copy_bytes(weights, has_average, num_ranks),
        "steps": steps,
        "components": _components(recipe.training.max_steps, inputs.stream),
    }


def _most_checkpoints(training: TrainingSection) -> int:
    """That there are at a time: those kept, and the one that is being written."""
    permanent = training.max_steps // training.keep_every if training.keep_every else 0
    return training.keep_last + training.keep_best.count + permanent + 1


def _planned_steps(
    recipe: Recipe, stream: TrainingStream, num_ranks: int
) -> tuple[list[dict[str, Any]], list[tuple[int, int]]]:
    """Records of some steps as they will be, and (source, target) tokens of all micro-batches in them."""
    max_steps = recipe.training.max_steps
    wanted = {0, recipe.schedule.warmup_steps, *(max_steps * quarter // 4 for quarter in (1, 2, 3)), max_steps - 1}
    wanted |= {phase.first_step for phase in stream.phases}
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
                "sampling": stream.sampling_facts(step),
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


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def planned_memory(
    recipe: Recipe, config: DeltaLMConfig, num_ranks: int, micro_batches: list[tuple[int, int]]
) -> dict[str, int]:
    """What a recipe needs on each rank of a machine like this one: see `memory_of_rank`.

    Args:
        recipe: of the run.
        config: of its model.
        num_ranks: that share the work.
        micro_batches: tokens of source and target of each.
    """
    device = _device()
    ds_config = for_ranks(deepspeed_config(recipe), num_ranks, device.type == "cpu")
    model = empty_model(config)
    freeze(model, recipe.optimizer)
    has_graphs = reason_against_graphs(recipe, config, device) is None
    weights = WeightCounts.of(model)
    return memory_of_rank(
        ds_config, config, weights, micro_batches, num_ranks, device, has_graphs, recipe.training, recipe.validation
    )


def memory_of_rank(
    ds_config: dict[str, Any],
    config: DeltaLMConfig,
    weights: WeightCounts,
    micro_batches: list[tuple[int, int]],
    num_ranks: int,
    device: torch.device,
    has_graphs: bool,
    training: TrainingSection | None = None,
    validation: ValidationSection | None = None,
) -> dict[str, int]:
    """Bytes on a rank by what they are for, and the most there are at a time.

    Args:
        ds_config: DeepSpeed's configuration.
        config: of the model.
        weights: of the model, as they are trained.
        micro_batches: tokens of source and target of each.
        num_ranks: that share the work.
        device: that a rank computes on.
        has_graphs: whether micro-batches are CUDA graphs.
        training: whether a running average is kept; none is by default.
        validation: whether it is measured.
    """
    num_parameters, trained, largest = weights.all, weights.trained, weights.largest
    weight_bytes = 4 if precision(ds_config) == "fp32" else 2
    on_cpu = device.type == "cpu"
    memory = model_states(ds_config, num_parameters, num_ranks, on_cpu, num_parameters - trained)
    has_average = training is not None and training.average is not None
    if has_average:
        where = "average" if offload_device(ds_config["zero_optimization"]) == "none" else "offloaded"
        memory[where] = memory.get(where, 0) + NUMBER_BYTES * -(-trained // num_ranks)
    if on_cpu:
        memory["libraries"] = LIBRARIES_BYTES
        memory["checkpoint_copy"] = checkpoint_copy_bytes(weights, has_average, num_ranks)
    to_shape = on_ladder if has_graphs else rounded_up
    padded = [to_shape(Shape(*sizes, sequences=1, longest_source=1, longest_target=1)) for sizes in micro_batches]
    passes = 2 if training is not None and training.r_drop else 1
    sizes = [(passes * shape.source_tokens, passes * shape.target_tokens) for shape in padded]
    activations, loss = _largest_micro_batch(config, weight_bytes, sizes, on_cpu)
    if passes == 2:
        loss = r_drop_loss_bytes(config, weight_bytes, max(target for _, target in sizes) // 2, on_cpu)
    if has_graphs:  # gradients that stay where they are, and a micro-batch's memory beside that of one not recorded
        memory["cuda_graphs"] = weight_bytes * trained + activations + loss
    norm = norm_bytes(ds_config, trained, largest, num_ranks)
    sent, memory["copies_of_exchanges"] = exchange_bytes(ds_config, trained, num_ranks, on_cpu)
    if ds_config["zero_optimization"]["stage"] > 1:  # while activations are there
        memory["sent_gradients"], sent = sent, 0
    copy = weight_bytes * num_parameters if validation is not None and validation.weights == "average" else 0
    in_same_memory = sum(memory.values()) - memory["offloaded"] * (not on_cpu)
    total = in_same_memory + max(activations + loss, sent, norm, copy)  # one is over when the other begins
    of_a_time = {"activations": activations, "loss": loss, "gradient_norm": norm, "averaged_model": copy}
    if sent:
        of_a_time["sent_gradients"] = sent
    return memory | of_a_time | {"total": total}


def _largest_micro_batch(
    config: DeltaLMConfig, weight_bytes: int, micro_batches: list[tuple[int, int]], on_cpu: bool
) -> tuple[int, int]:
    """Bytes of activations and loss of the micro-batch that needs most."""
    cost = _activation_cost(config, weight_bytes)
    needs = [
        (cost.micro_batch(source, target), loss_bytes(config, weight_bytes, target, on_cpu))
        for source, target in micro_batches
    ]
    return max(needs, key=sum)


_activation_cost = cache(ActivationCost.measure)


def _components(max_steps: int, stream: TrainingStream) -> list[dict[str, Any]]:
    """For each component its rows, its probability over time, and how often its corpus is passed over."""
    moments = {"first": 0, "middle": max_steps // 2, "last": max_steps - 1}
    if len(stream.phases) > 1:
        starts = {f"phase {number + 1}": phase.first_step for number, phase in enumerate(stream.phases)}
        moments = {**starts, "last": max_steps - 1}
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
            "capped_at_step": int(stream.capped_at[number]) if stream.capped_at[number] >= 0 else None,
        }
        for number, (label, component) in enumerate(zip(stream.labels, stream.components, strict=True))
    ]

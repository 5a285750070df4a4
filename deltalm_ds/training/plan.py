"""`deltalm plan`: what a recipe will do and need, found by checking and planning it for real, without training."""

from typing import Any

import torch

from deltalm_ds.data.micro_batches import deal_micro_batches
from deltalm_ds.data.stream import TrainingStream
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.training.checks import check_inputs
from deltalm_ds.training.deepspeed_config import deepspeed_config
from deltalm_ds.training.memory import ActivationCost, loss_bytes, model_states, precision

CHECKPOINT_BYTES = 12  # a parameter: float32 weight and Adam's two moments


def make_plan(recipe: Recipe, num_ranks: int) -> dict[str, Any]:
    """Check a recipe as `prepare_run` does and plan some of its steps for `num_ranks` ranks; JSON-ready.

    Memory is an estimate for one rank: the states of the model by ZeRO stage [Rajbhandari+20], and the activations
    and loss of the largest micro-batch planned. The allocator's and the libraries' own memory comes on top.

    Raises:
        InputError, DataError: the recipe or something it names does not hold; every check is made before planning.
    """
    ds_config = deepspeed_config(recipe)
    inputs = check_inputs(recipe)
    with torch.device("meta"):
        model = DeltaLM(inputs.model_config)
    steps, largest = _planned_steps(recipe, inputs.stream, num_ranks)
    num_parameters = model.num_parameters(padding_rows=True)
    memory = model_states(ds_config, num_parameters, num_ranks)
    memory |= _micro_batch_memory(inputs.model_config, 4 if precision(ds_config) == "fp32" else 2, largest)
    checkpoint_bytes = CHECKPOINT_BYTES * num_parameters
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
        "num_parameters_with_padding_rows": num_parameters,
        "memory_bytes_per_rank": memory | {"total": sum(memory.values())},
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


def _micro_batch_memory(
    config: DeltaLMConfig, weight_bytes: int, micro_batches: list[tuple[int, int]]
) -> dict[str, int]:
    """Activations and loss of the micro-batch that needs most."""
    cost = ActivationCost.measure(config, weight_bytes)
    needs = [
        (cost.micro_batch(source, target), loss_bytes(config, cost.weight_bytes, target))
        for source, target in micro_batches
    ]
    activations, loss = max(needs, key=sum)
    return {"activations": activations, "loss": loss}


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


def plan_lines(result: dict[str, Any]) -> list[str]:
    """The plan as lines for people."""
    ds_config, model = result["deepspeed"], result["model"]
    memory = {name: size for name, size in result["memory_bytes_per_rank"].items() if size}
    return [
        f"{result['recipe']}: {result['num_ranks']} rank(s), {ds_config['name']} "
        f"({ds_config['precision']}, ZeRO stage {ds_config['zero_stage']})",
        f"model: {model['num_encoder_layers']} encoder layers, {model['num_decoder_blocks']} {model['decoder']} "
        f"decoder blocks, width {model['hidden_size']}, FFN {model['ffn_size']}, {model['num_heads']} heads, "
        f"vocabulary {model['vocabulary_size']:,}",
        f"parameters: {result['num_parameters']:,} ({result['num_parameters_with_padding_rows']:,} with padding rows)",
        f"checkpoint: {_size(result['checkpoint_bytes'])}; the run needs room for "
        f"{_size(result['checkpoints_bytes'])} of checkpoints",
        "",
        "memory per rank (estimate)",
        *(f"  {name.replace('_', ' '):<18}{_size(size):>12}" for name, size in memory.items()),
        "",
        "steps as they will be",
        *_table([_step_cells(step) for step in result["steps"]]),
        "",
        "components (p: share of the sequences at the first, middle and last step)",
        *_table([_component_cells(component) for component in result["components"]]),
    ]


def _step_cells(step: dict[str, Any]) -> dict[str, str]:
    return {
        "step": f"{step['step']:,}",
        "lr": f"{step['learning_rate']:.3g}",
        **{name: f"{value:.2f}" for name, value in step["sampling"].items()},
        "sequences": f"{step['sequences']:,}",
        "source tokens": f"{step['source_tokens']:,}",
        "target tokens": f"{step['target_tokens']:,}",
        "micro-batches/rank": f"{step['micro_batches_per_rank']:,}",
        "largest (tokens)": f"{step['largest_micro_batch_tokens']:,}",
        "truncated": f"{step['truncated']:,}",
        "dropped": f"{step['dropped']:,}",
    }


def _component_cells(component: dict[str, Any]) -> dict[str, str]:
    per_pass = component["steps_per_pass_at_end"]
    return {
        "component": component["component"],
        "rows": f"{component['rows']:,}",
        **{f"p {moment}": f"{p:.4f}" for moment, p in component["probability"].items()},
        "sequences": f"{component['sequences']:,.0f}",
        "passes": f"{component['passes']:,.2f}",
        "steps/pass at end": f"{per_pass:,.0f}" if per_pass else "-",
    }


def _table(rows: list[dict[str, str]]) -> list[str]:
    """Aligned columns under their names: the first to the left, the others to the right."""
    cells = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.1f} MiB"

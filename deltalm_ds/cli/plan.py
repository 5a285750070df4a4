"""`deltalm plan`: what a recipe will do and need, here or on a cluster."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from deltalm_ds.cli.options import AsJson, Overrides, RecipePath
from deltalm_ds.cli.output import print_json, print_table, size_text
from deltalm_ds.errors import InputError


def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    ranks: Annotated[int, typer.Option(min=1, help="Ranks to plan for, on a machine like this one.")] = 1,
    gpu: Annotated[
        str | None,
        typer.Option(help="Plan for a cluster of such GPUs, as v100-32g; `this`: time a rank of this machine."),
    ] = None,
    hosts: Annotated[int, typer.Option(min=1, help="Of the cluster.")] = 1,
    slots: Annotated[int | None, typer.Option(min=1, help="GPUs of each host; default 8, of `this` 1.")] = None,
    network_gbit: Annotated[
        float | None, typer.Option(min=0.1, help="Of a host, one way; default: as the GPU's maker sells it.")
    ] = None,
    mtbf_hours: Annotated[
        float | None, typer.Option(min=1, help="Mean hours between failures of ONE GPU; default 50,000.")
    ] = None,
    price_per_gpu_hour: Annotated[float | None, typer.Option(min=0, help="In any currency.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="The recipe with all presets on all GPUs and 1 to 8 hosts.")
    ] = False,
    scale: Annotated[
        str | None, typer.Option(help="1..1024: tokens/s on so many GPUs, and where communication takes over.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a recipe and everything it names, and show sizes, memory per rank and the sampling; trains nothing.

    With --gpu: memory, time, checkpoints and cost on a cluster; what the recipe names need not be here.

    Example: deltalm plan recipes/multi30k_en_de.yaml --ranks 2
    Example: deltalm plan recipes/pretrain.yaml --gpu v100-32g --hosts 4 --slots 8
    """
    from deltalm_ds.recipe.loading import load_recipe
    from deltalm_ds.training import cluster_plan
    from deltalm_ds.training.plan import make_plan

    loaded = load_recipe(recipe, overrides or ())
    if compare:
        rows = cluster_plan.compare_clusters(loaded, slots or 8)
        _print_rows(rows, _COMPARED, "the fastest ZeRO stage that fits; " + cluster_plan.ACCURACY["time"], as_json)
        return
    if gpu is None:
        if scale is not None:
            raise InputError("--scale needs a GPU: give --gpu as well.")
        result = make_plan(loaded, ranks)
        print_json(result) if as_json else _print_plan(result)
        return
    cluster = cluster_plan.find_cluster(gpu, hosts, slots or (1 if gpu == cluster_plan.THIS else 8), network_gbit)
    if scale is not None:
        rows = cluster_plan.scale_cluster(loaded, cluster, _most_ranks(scale))
        _print_rows(rows, _SCALED, f"{loaded.name} on {cluster.name}; {cluster_plan.ACCURACY['time']}", as_json)
        return
    result = cluster_plan.make_cluster_plan(
        loaded, cluster, mtbf_hours or cluster_plan.GPU_HOURS_A_FAILURE, price_per_gpu_hour
    )
    print_json(result) if as_json else _print_cluster_plan(result)


def _most_ranks(scale: str) -> int:
    first, dots, last = scale.partition("..")
    if first != "1" or not dots or not last.isdecimal() or int(last) < 1:
        raise InputError(f"--scale {scale!r} is not 1..N, as in 1..1024.")
    return int(last)


# --- a cluster ---

_COMPARED = {
    "preset": ("preset", "s"),
    "gpu": ("gpu", "s"),
    "hosts": ("hosts", "d"),
    "ranks": ("ranks", "d"),
    "zero_stage": ("ZeRO", "d"),
    "largest_micro_batch_tokens": ("largest micro-batch", ",d"),
    "seconds_per_step": ("s/step", ".3f"),
    "tokens_per_second": ("tokens/s", ",.0f"),
    "days": ("days", ",.2f"),
    "gpu_hours": ("GPU-hours", ",.0f"),
    "reason": ("", "s"),
}
_SCALED = {
    "ranks": ("GPUs", "d"),
    "hosts": ("hosts", "d"),
    "micro_batches_per_rank": ("micro-batches", "d"),
    "seconds_per_step": ("s/step", ".3f"),
    "tokens_per_second": ("tokens/s", ",.0f"),
    "efficiency": ("of linear", ".0%"),
    "communication_share": ("communication", ".0%"),
    "taken_over": ("it has taken over", ""),
    "days": ("days", ",.2f"),
    "gpu_hours": ("GPU-hours", ",.0f"),
}


def _print_rows(rows: Sequence[dict[str, Any]], columns: dict[str, tuple[str, str]], title: str, as_json: bool) -> None:
    """A table of the columns, each with its heading and the format of its numbers."""
    if as_json:
        print_json(list(rows))
        return
    lines = [[_cell(row.get(key), form) for key, (_, form) in columns.items()] for row in rows]
    headings = [heading for heading, _ in columns.values()]
    align = "".join("l" if form == "s" else "r" for _, form in columns.values())
    print_table(headings, lines, align, title=title)


def _cell(value: Any, form: str) -> str:
    if value is None or value is False:
        return ""
    return "yes" if value is True else format(value, form)


def _print_cluster_plan(result: dict[str, Any]) -> None:
    ds_config, saving = result["deepspeed"], result["saving"]
    print(f"""\
{result["recipe"]} on {result["hosts"]} host(s) with {result["slots"]} {result["gpu"]}: {ds_config["name"]}, \
CUDA graphs {"on" if result["cuda_graphs"] else "off"}
parameters: {result["num_parameters"]:,}; a step: {result["pairs_per_step"]:,.0f} pairs, \
{result["source_tokens_per_step"]:,.0f} source and {result["target_tokens_per_step"]:,.0f} target tokens""")
    for sentence in result["assumed"]:
        print(f"assumed: {sentence}")
    print(f"memory: {result['accuracy']['memory']}\ntime: {result['accuracy']['time']}\n")
    _print_stages(result)
    print()
    _print_parts(result)
    print(f"""
{result["tokens_per_second"]:,.0f} tokens/s, {result["teraflops_per_gpu"]:.1f} TFLOP/s a rank, \
{result["days"]:,.2f} days, {result["gpu_hours"]:,.0f} GPU-hours
checkpoint: {size_text(result["checkpoint_bytes"])}, copied in {saving["copy_seconds"]:.2f} s, written in \
{saving["write_seconds"]:.0f} s; by Young and Daly every {saving["interval_seconds"]:,.0f} s \
(training.save_every={saving["save_every"]}) at a failure in {saving["gpu_hours_a_failure"]:,.0f} hours of a GPU: \
{saving["lost_share"]:.2%} of the time lost""")
    if result["energy_kwh"]:
        print(f"energy: at most {result['energy_kwh']:,.0f} kWh by the GPUs' limits, hosts and cooling aside")
    if result["price"] is not None:
        print(f"price: {result['price']:,.0f}")


def _print_stages(result: dict[str, Any]) -> None:
    stages = result["stages"]
    used = (part for stage in stages for part, size in stage["memory_bytes_per_rank"].items() if size)
    parts = [part for part in dict.fromkeys(used) if part != "total"] + ["total"]
    rows: list[list[str | int | None]] = [
        [part.replace("_", " "), *(size_text(s["memory_bytes_per_rank"].get(part, 0)) for s in stages)]
        for part in parts
    ]
    rows.append(["of which there are", *[size_text(round(result["usable_bytes_per_rank"]))] * len(stages)])
    for name in ("micro_batch_tokens", "micro_batches_per_rank", "largest_micro_batch_tokens"):
        rows.append([name.replace("_", " "), *(stage.get(name) for stage in stages)])
    rows.append(["tokens/s", *(round(s["tokens_per_second"]) if "tokens_per_second" in s else None for s in stages)])
    rows.append(["days", *(f"{s['days']:,.2f}" if "days" in s else "does not fit" for s in stages)])
    header = ["a rank", *(f"ZeRO {stage['zero_stage']}" for stage in stages)]
    print_table(header, rows, align="lrrr")


def _print_parts(result: dict[str, Any]) -> None:
    whole = result["seconds_per_step"]
    rows = [(name, f"{seconds:.4f}", f"{seconds / whole:.1%}") for name, seconds in result["seconds_by_part"].items()]
    stage = result["deepspeed"]["zero_stage"]
    print_table((f"a step at ZeRO {stage}", "s", "of it"), [*rows, ("all", f"{whole:.4f}", "")], align="lrr")


# --- a machine like this one ---


def _print_plan(result: dict[str, Any]) -> None:
    ds_config, model = result["deepspeed"], result["model"]
    num_trained = result["num_trained_parameters"]
    sizes = "checkpoint_bytes", "checkpoints_bytes", "checkpoint_copy_bytes_per_rank"
    checkpoint, checkpoints, copy = (size_text(result[name]) for name in sizes)
    print(f"""\
{result["recipe"]}: {result["num_ranks"]} rank(s), {ds_config["name"]} \
({ds_config["precision"]}, ZeRO stage {ds_config["zero_stage"]})
model: {model["num_encoder_layers"]} encoder layers, {model["num_decoder_blocks"]} {model["decoder"]} decoder blocks, \
width {model["hidden_size"]}, FFN {model["ffn_size"]}, {model["num_heads"]} heads, \
vocabulary {model["vocabulary_size"]:,}
parameters: {result["num_parameters"]:,} ({result["num_parameters_with_padding_rows"]:,} with padding rows, \
{num_trained:,} trained)
checkpoint: {checkpoint}; the run needs room for {checkpoints} of checkpoints, a rank {copy} of host memory for a copy
CUDA graphs: {result["cuda_graphs"]}
""")
    memory = result["memory_bytes_per_rank"].items()
    rows = [(name.replace("_", " "), size_text(num_bytes)) for name, num_bytes in memory if num_bytes]
    print_table(("memory per rank", "estimate"), rows, align="lr")
    print()
    _print_steps(result["steps"])
    print()
    _print_components(result["components"])


def _print_steps(steps: list[dict[str, Any]]) -> None:
    counts = {
        "sequences": "sequences",
        "source tokens": "source_tokens",
        "target tokens": "target_tokens",
        "micro-batches/rank": "micro_batches_per_rank",
        "largest (tokens)": "largest_micro_batch_tokens",
        "truncated": "truncated",
        "dropped": "dropped",
    }
    facts = list(dict.fromkeys(name for step in steps for name in step["sampling"]))  # such as the temperature
    rows = []
    for step in steps:
        values = [step["sampling"].get(name) for name in facts]
        sampling = [f"{value:.2f}" if isinstance(value, float) else value for value in values]
        rows.append([step["step"], f"{step['learning_rate']:.3g}", *sampling, *(step[key] for key in counts.values())])
    align = "l" + "r" * (1 + len(facts) + len(counts))
    print_table(("step", "lr", *facts, *counts), rows, align, title="steps as they will be")


def _print_components(components: list[dict[str, Any]]) -> None:
    moments = components[0]["probability"]
    with_caps = any(component["capped_at_step"] for component in components)
    rows = []
    for component in components:
        probabilities = [f"{component['probability'][moment]:.4f}" for moment in moments]
        passes, per_pass = f"{component['passes']:,.2f}", component["steps_per_pass_at_end"]
        sequences = [round(component["sequences"]), passes, round(per_pass) if per_pass else None]
        capped_at = [component["capped_at_step"]] * with_caps
        rows.append([component["component"], component["rows"], *probabilities, *sequences, *capped_at])
    columns = ["component", "rows", *(f"p {moment}" for moment in moments), "sequences", "passes", "steps/pass at end"]
    columns += ["all passes by step"] * with_caps
    where = "the first, middle, last step" if "middle" in moments else "the first step of each phase and the last step"
    title = f"components (p: share of the sequences at {where})"
    print_table(columns, rows, align="l" + "r" * (len(columns) - 1), title=title)

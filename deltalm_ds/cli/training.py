"""`deltalm plan | train | demo`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from deltalm_ds.cli.options import AsJson
from deltalm_ds.cli.output import print_json, print_table, size_text

RecipePath = Annotated[Path, typer.Argument(help="A recipe (YAML).")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Changes, as in training.max_steps=100.")]


def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    ranks: Annotated[int, typer.Option(min=1, help="Ranks to plan for.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Check a recipe and everything it names, and show sizes, memory per rank and the sampling; trains nothing.

    Example: deltalm plan recipes/multi30k_en_de.yaml --ranks 2
    """
    from deltalm_ds.recipe.loading import load_recipe
    from deltalm_ds.training.plan import make_plan

    result = make_plan(load_recipe(recipe, overrides or ()), ranks)
    if as_json:
        print_json(result)
    else:
        _print_plan(result)


def train(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option(help="The run directory; a run that is in it goes on.")],
    overrides: Overrides = None,
    ranks: Annotated[int | None, typer.Option(min=1, help="Default: one per GPU, or one without GPUs.")] = None,
    accept_changed_data: Annotated[
        bool, typer.Option("--accept-changed-data", help="Go on with other data than the run had; it is recorded.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Start although earlier starts all failed at the same step.")
    ] = False,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Only check everything and write the run directory, for other launchers.")
    ] = False,
) -> None:
    """Train on this machine, under the deepspeed launcher; stopped at any point, the same command goes on.

    Exit codes: 0 done; 75 stopped on request, saved; 2, 3, 4 do not try again; any other: try again.

    Example: deltalm train recipes/multi30k_en_de.yaml --out runs/multi30k --ranks 2 batch.tokens_per_step=4000
    """
    from deltalm_ds.errors import STOPPED_EXIT_CODE
    from deltalm_ds.launch.local import default_ranks, train_on_this_machine
    from deltalm_ds.recipe.loading import load_recipe
    from deltalm_ds.streams import survive_lost_terminal
    from deltalm_ds.training.prepare import prepare_run

    survive_lost_terminal()
    prepare_run(load_recipe(recipe, overrides or ()), out, accept_changed_data, trains_here=not prepare)
    if prepare:
        return
    code = train_on_this_machine(out, ranks or default_ranks(), again)
    if code == STOPPED_EXIT_CODE:
        typer.echo(f"deltalm: stopped; the same command goes on in {out}.", err=True)
    sys.exit(code)


def demo(
    out: Annotated[Path, typer.Option(help="Where everything goes; run again, it goes on or says it is done.")] = Path(
        "demo"
    ),
    ranks: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """From nothing to an evaluated, exported translation model of ten languages, in under ten minutes on a laptop.

    Example: deltalm demo --out demo
    """
    from deltalm_ds.demo import run_demo

    _print_demo(run_demo(out, ranks), out, ranks)


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


def _print_demo(summary: dict[str, Any], out: Path, num_ranks: int) -> None:
    from deltalm_ds.data_tools.cldr import DEMO_PHRASES

    bleu, translations = summary["bleu"], summary["translations"]
    rows = [(name, f"{bleu[f'en-{name}']:.1f}", f"{bleu[f'{name}-en']:.1f}") for name in translations]
    title = "BLEU on 200 unseen phrases a direction (sacreBLEU 13a, beam 5)"
    print_table(("", "en→xx", "xx→en"), rows, align="lrr", title=title)
    print(f"average of the {len(bleu)} directions: {summary['average_bleu']:.1f}\n")
    for place, phrase in enumerate(DEMO_PHRASES):
        print(phrase)
        for name, texts in translations.items():
            print(f"  {name}  {texts[place]}")
    print(f"""
Done in {summary["seconds"]["total"]:.0f} s. In {out}:
  report.html     open it in a browser: loss, sampling, BLEU, sample translations
  model/          the averaged model       ctranslate2/   the same, int8, for serving
  summary.json    all numbers above        finetuning/    the run: recipe, metrics, checkpoints
Try next:
  echo "12 minutes ago" | deltalm translate {out}/ctranslate2 --target-lang fr
  (cd {out} && deltalm plan finetuning/recipe.yaml --ranks {num_ranks})""")

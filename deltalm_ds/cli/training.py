"""`deltalm plan | train | report | demo`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from deltalm_ds.cli.options import AsJson

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
    from deltalm_ds.training.plan import make_plan, plan_lines

    result = make_plan(load_recipe(recipe, overrides or ()), ranks)
    print(json.dumps(result, ensure_ascii=False) if as_json else "\n".join(plan_lines(result)))


def train(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option(help="The run directory; a run that is in it goes on.")],
    overrides: Overrides = None,
    ranks: Annotated[int | None, typer.Option(min=1, help="Default: one per GPU, or one without GPUs.")] = None,
    accept_changed_data: Annotated[
        bool, typer.Option("--accept-changed-data", help="Go on with other data than the run had; it is recorded.")
    ] = False,
) -> None:
    """Train on this machine, under the deepspeed launcher; stopped at any point, the same command goes on.

    Example: deltalm train recipes/multi30k_en_de.yaml --out runs/multi30k --ranks 2 batch.tokens_per_step=4000
    """
    from deltalm_ds.errors import STOPPED_EXIT_CODE
    from deltalm_ds.launch.local import default_ranks, train_on_this_machine
    from deltalm_ds.recipe.loading import load_recipe
    from deltalm_ds.training.prepare import prepare_run

    prepare_run(load_recipe(recipe, overrides or ()), out, accept_changed_data)
    code = train_on_this_machine(out, ranks or default_ranks())
    if code == STOPPED_EXIT_CODE:
        typer.echo(f"deltalm: stopped; the same command goes on in {out}.", err=True)
    sys.exit(code)


def report(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    out: Annotated[Path | None, typer.Option(help="Default: RUN/report.html.")] = None,
) -> None:
    """Write one HTML page about a run: loss, learning rate, temperature, sampling, BLEU, sample translations.

    Example: deltalm report runs/multi30k
    """
    from deltalm_ds.report.run_page import write_report

    path = out or run / "report.html"
    write_report(run, path)
    print(path)


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

    run_demo(out, ranks)

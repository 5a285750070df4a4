"""`deltalm train | demo`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from deltalm_ds.cli.options import AcceptChangedData, Again, Overrides, RecipePath
from deltalm_ds.cli.output import print_table


def train(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option(help="The run directory; a run that is in it goes on.")],
    overrides: Overrides = None,
    ranks: Annotated[int | None, typer.Option(min=1, help="Default: one per GPU, or one without GPUs.")] = None,
    accept_changed_data: AcceptChangedData = False,
    again: Again = False,
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
    from deltalm_ds.streams import say, survive_lost_terminal
    from deltalm_ds.training.prepare import prepare_run

    survive_lost_terminal()
    prepare_run(load_recipe(recipe, overrides or ()), out, accept_changed_data, trains_here=not prepare)
    if prepare:
        return
    code = train_on_this_machine(out, ranks or default_ranks(), again)
    if code == STOPPED_EXIT_CODE:
        say(f"stopped; the same command goes on in {out}.")
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

"""`deltalm env | init | inspect | average`: the machine, and model directories."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from deltalm_ds.cli.options import AsJson
from deltalm_ds.cli.output import print_json, print_table, print_values
from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics import METRICS, higher_is_better

AVERAGED = 5  # checkpoints, as for the paper's WMT-10 models [facts: fine-tuning]


def env(
    device: Annotated[
        str | None, typer.Option(help="A GPU that need not be here, as v100: what would serve each op there, and why.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show versions, processor or GPUs: what a result was made with.

    Example: deltalm env --json
    """
    from deltalm_ds.environment import environment, environment_of

    _print(environment() if device is None else environment_of(device), as_json)


def init(
    from_: Annotated[
        Path, typer.Option("--from", help="A pre-trained checkpoint (XLM-R, DeltaLM, …): a file, or its directory.")
    ],
    out: Annotated[Path, typer.Option(help="New model directory.")],
    vocab: Annotated[Path | None, typer.Option(help="Vocabulary of the new model; default: the source's own.")] = None,
    dict_: Annotated[
        Path | None, typer.Option("--dict", help="The source's fairseq dict.txt; default: the one beside it.")
    ] = None,
    spm: Annotated[
        Path | None, typer.Option(help="The source's SentencePiece model; default: the one beside it, if any.")
    ] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads, where the source does not say.")] = None,
    layer_map: Annotated[
        str | None,
        typer.Option(
            help="Of each decoder block two encoder layers of the source, '0,1 2,3' (vanilla: one, '0 1'), or one of "
            "its decoder blocks."
        ),
    ] = None,
    decoder: Annotated[
        Literal["interleaved", "vanilla"] | None,
        typer.Option(help="Form of the decoder for a source without one; default: interleaved."),
    ] = None,
    cross_attention: Annotated[
        Literal["copied", "random"],
        typer.Option(help="Start the decoder's cross-attention from the source, or at random as in a new model."),
    ] = "copied",
    encoder_layers: Annotated[
        str | None, typer.Option(help="The source's layers that make the encoder, such as '0 1 2 5'; default: all.")
    ] = None,
    ffn_order: Annotated[
        Literal["official", "swapped"],
        typer.Option(help="Of DeltaLM files: swapped as the community's converter has it."),
    ] = "official",
    positions: Annotated[int | None, typer.Option(min=1, help="Longest sequence; default: the source's.")] = None,
    fit_positions: Annotated[
        Literal["truncate", "extend"] | None, typer.Option(help="Allow other --positions than the source's.")
    ] = None,
    copy_row: Annotated[
        list[str] | None, typer.Option(help="NEW=OLD: a new token starts from the row of one of the source's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the rows of new tokens, and of random cross-attention.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Start a model from an XLM-R, InfoXLM or DeltaLM checkpoint, and show where every weight comes from.

    Example: deltalm init --from xlm-roberta-base --vocab vocabulary --out models/base
    """
    from deltalm_ds.checkpoints.initialise import initialise, own_vocabulary, summary
    from deltalm_ds.checkpoints.layer_map import make_layer_map
    from deltalm_ds.checkpoints.sources import recognise
    from deltalm_ds.vocabulary import Vocabulary

    source = recognise(from_)
    report = initialise(
        source,
        out,
        make_layer_map(source.sizes, encoder_layers, layer_map, ffn_order, decoder, cross_attention),
        own_vocabulary(source, dict_, spm),
        Vocabulary.load(vocab) if vocab else None,
        copies=_copies(copy_row or []),
        num_heads=heads,
        max_positions=positions,
        fit=fit_positions,
        seed=seed,
    )
    if as_json:
        print_json(report)
    else:
        _print_origins(summary(report))


def _copies(pairs: list[str]) -> dict[str, str]:
    """The source's token of each new one, from NEW=OLD."""
    copies = {}
    for pair in pairs:
        new, _, old = pair.partition("=")
        if not new or not old:
            raise InputError(f"--copy-row {pair!r} is not NEW=OLD, two tokens.")
        copies[new] = old
    return copies


def _print_origins(report: dict[str, Any]) -> None:
    """Where every weight of a new model comes from, and what of the source was not taken."""
    rows, positions = report["rows"], report["positions"]
    print(f"{report['directory']}: {report['parameters']:,} parameters")
    print(f"source: {report['source']} ({report['kind']})")
    for fate in ("kept", "copied", "new", "dropped", "unnamed_dropped"):
        first = ", ".join(rows.get(f"first_{fate}", []))
        more = ", …" if first and rows[fate] > len(rows[f"first_{fate}"]) else ""
        print(f"token rows {fate.replace('_', ', ')}: {rows[fate]:,}{f' ({first}{more})' if first else ''}")
    sources = ", ".join(f"{count:,} of {name}" for name, count in positions["source"].items())
    print(f"positions: {positions['model']:,} from {sources}{', ' + positions['fit'] if positions['fit'] else ''}")
    print_table(("weights", "made from"), report["tensors"].items(), align="ll")
    if report["unused"]:
        print_table(("not taken", "because"), report["unused"].items(), align="ll")
    else:
        print("not taken: nothing")


def inspect(
    path: Annotated[
        Path, typer.Argument(help="A model, checkpoint, run, export, vocabulary or data set, of any kind.")
    ],
    as_json: AsJson = False,
) -> None:
    """Say what a file or directory is: kind, sizes, number of weights, dtypes, vocabulary, where it came from.

    Example: deltalm inspect xlm-roberta-base
    """
    from deltalm_ds.checkpoints.description import describe

    _print(describe(path), as_json)


def average(
    models: Annotated[list[Path], typer.Argument(help="A run directory, or several models or checkpoints.")],
    out: Annotated[Path, typer.Option(help="New model directory.")],
    last: Annotated[
        int | None, typer.Option(min=1, help=f"How many of a run's newest checkpoints; default: {AVERAGED}.")
    ] = None,
    best: Annotated[int | None, typer.Option(min=1, help="How many of a run's best checkpoints, instead.")] = None,
    metric: Annotated[
        str, typer.Option(help=f"Of --best, what the validation measured: loss, nll, {', '.join(METRICS)}.")
    ] = "loss",
    ema: Annotated[
        bool,
        typer.Option("--ema", help="The running average that the run keeps (training.average); of one checkpoint."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Average the weights of checkpoints: the newest or the best ones of a run, or those named.

    Example: deltalm average runs/multi30k --last 5 --out models/multi30k
    """
    from deltalm_ds.checkpoints.average import average_models
    from deltalm_ds.runs.checkpoints import LOSSES, best_checkpoints, newest_checkpoints

    if last and best:
        raise InputError("Give either --last or --best.")
    if (last or best) and len(models) > 1:
        raise InputError("The several models are all averaged: leave out --last and --best.")
    if len(models) > 1:
        chosen = models
    elif best:
        highest = metric not in LOSSES and higher_is_better(metric)
        chosen = best_checkpoints(models[0], best, metric, higher_is_better=highest)
    else:
        chosen = newest_checkpoints(models[0], last or (1 if ema else AVERAGED))
    average_models(chosen, out, running=ema)
    for model in chosen:
        typer.echo(f"averaged {model}", err=True)
    if as_json:
        print_json({"out": str(out), "averaged": [str(model) for model in chosen]})
    else:
        print(out)


def _print(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(values)
    else:
        print_values(values)

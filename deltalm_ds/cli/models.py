"""`deltalm env | init | inspect | average`: the machine, and model directories."""

import json
from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


def env(as_json: Json = False) -> None:
    """Show versions, processor or GPUs: what a result was made with.

    Example: deltalm env --json
    """
    from deltalm_ds.environment import environment

    _print(environment(), as_json)


def init(
    from_: Annotated[Path, typer.Option("--from", help="A released or fine-tuned official DeltaLM file (.pt).")],
    out: Annotated[Path, typer.Option(help="New model directory.")],
    dict_: Annotated[Path, typer.Option("--dict", help="The fairseq dict.txt that belongs to it.")],
    spm: Annotated[Path | None, typer.Option(help="The spm.model that belongs to it; without it: ids only.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads, for sizes of no preset.")] = None,
) -> None:
    """Make a model directory from a checkpoint of Microsoft's code.

    Example: deltalm init --from deltalm-base.pt --dict dict.txt --spm spm.model --out models/base
    """
    from deltalm_ds.checkpoints.official import convert_official

    _print(convert_official(from_, dict_, spm, heads, out), as_json=False)


def inspect(
    directory: Annotated[Path, typer.Argument(help="A model directory or a checkpoint of a run.")],
    as_json: Json = False,
) -> None:
    """Show what a model directory holds: shape, number of weights, vocabulary, where it came from.

    Example: deltalm inspect runs/multi30k/checkpoints/step_00001000
    """
    from deltalm_ds.checkpoints.description import describe_model

    _print(describe_model(directory), as_json)


def average(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    out: Annotated[Path, typer.Option(help="New model directory.")],
    last: Annotated[int, typer.Option(min=1, help="How many of the newest checkpoints.")] = 5,
) -> None:
    """Average the weights of the last checkpoints of a run into one model.

    Example: deltalm average runs/multi30k --last 5 --out models/multi30k
    """
    from deltalm_ds.checkpoints.average import average_checkpoints

    for checkpoint in average_checkpoints(run, last, out):
        typer.echo(f"averaged {checkpoint}", err=True)
    print(out)


def _print(values: dict[str, object], as_json: bool) -> None:
    if as_json:
        print(json.dumps(values, ensure_ascii=False))
        return
    for name, value in values.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, inner in value.items():
                print(f"  {key}: {inner}")
        else:
            print(f"{name}: {value}")

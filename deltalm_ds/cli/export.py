"""`deltalm export`: a model in another engine's format."""

from itertools import cycle
from pathlib import Path
from typing import Annotated

import typer

from deltalm_ds.cli.options import AsJson
from deltalm_ds.cli.output import print_json
from deltalm_ds.errors import InputError
from deltalm_ds.export.formats import FORMATS


def export(
    model: Annotated[Path, typer.Argument(help="A model directory.", show_default=False)],
    out: Annotated[Path, typer.Option(help="New directory for the exported model.", show_default=False)],
    to: Annotated[str, typer.Option(help=f"The format: {', '.join(FORMATS)}.")] = FORMATS[0],
    precision: Annotated[
        str,
        typer.Option(help="float32 (exact), float16, bfloat16, int8, …: a format that has not this one names its own."),
    ] = "float32",
    check_file: Annotated[
        Path | None, typer.Option(help="Sentences to check the export with; by default random ones.")
    ] = None,
    target_lang: Annotated[str | None, typer.Option(help="Of --check-file; by default all languages in turn.")] = None,
    as_json: AsJson = False,
) -> None:
    """Export to another engine and check that it gives what the model gives; if not, nothing is written (exit 4).

    Its README.md says how to load it.

    Example: deltalm export models/cldr --to ctranslate2 --precision int8 --out models/cldr-int8
    """
    from deltalm_ds.export.package import export as export_model

    sources = _check_sources(model, check_file, target_lang) if check_file else None
    report = export_model(model, out, to, precision, sources)
    if as_json:
        print_json({"out": str(out), "format": to, "precision": precision, **report.as_dict()})
    else:
        print(out)
    typer.echo(f"checked: {report}", err=True)


def _check_sources(model: Path, check_file: Path, target_lang: str | None) -> list[list[int]]:
    """The sentences of a file as ids, for the language given or for all in turn; empty lines are left out."""
    from deltalm_ds.generation.translate import encoder_for
    from deltalm_ds.lines import read_lines
    from deltalm_ds.vocabulary import Vocabulary

    vocabulary = Vocabulary.load(model)
    lines = [line for line in read_lines(check_file) if line.strip()]
    if not lines:
        raise InputError(f"{check_file} has no sentences to check the export with.")
    languages: tuple[str | None, ...] = (target_lang,) if target_lang else vocabulary.languages or (None,)
    encoders = cycle([encoder_for(vocabulary, language) for language in languages])
    return [list(encode(line)) for encode, line in zip(encoders, lines, strict=False)]

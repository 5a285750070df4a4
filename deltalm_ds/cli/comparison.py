"""`deltalm compare`: two outputs side by side."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from deltalm_ds.cli.evaluation import reference_settings, split_names
from deltalm_ds.cli.options import AsJson, TargetLang
from deltalm_ds.cli.output import print_json, print_table
from deltalm_ds.evaluation.metrics import METRICS


def compare(
    first: Annotated[Path, typer.Argument(help="Outputs, one a line.", metavar="A")],
    second: Annotated[Path, typer.Argument(help="Other outputs for the same sources.", metavar="B")],
    reference: Annotated[list[Path], typer.Option(help="Their references; named again for further ones.")],
    source: Annotated[Path | None, typer.Option(help="Their sources, shown, and for metrics that need them.")] = None,
    target_lang: TargetLang = None,
    metrics: Annotated[
        str, typer.Option(help=f"Of {', '.join(METRICS)}; the first one ranks sentences.")
    ] = "chrf,bleu",
    tokenizer: Annotated[str | None, typer.Option(help="As for evaluate.")] = None,
    languages: Annotated[str | None, typer.Option(help="As for evaluate.")] = None,
    sentences: Annotated[int, typer.Option(min=0, help="How many of those that differ most are shown.")] = 5,
    html: Annotated[Path | None, typer.Option(help="Write it as a page, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Which of two outputs is better, how sure that is, and where they differ.

    Example: deltalm compare old.de new.de --reference test.de --target-lang de --html compared.html
    """
    from deltalm_ds.evaluation.comparison import compare_outputs
    from deltalm_ds.evaluation.comparison_tables import sentence_lines, tables_of, write_page
    from deltalm_ds.evaluation.test_sets import read_references

    settings = reference_settings(target_lang, tokenizer, languages)
    (ours, theirs), references = read_references([first, second], reference, source, settings)
    found = compare_outputs(ours, theirs, references, split_names(metrics), sentences)
    names = (first.name, second.name) if first.name != second.name else (str(first), str(second))
    if html is not None:
        write_page(found, names, html)
    for note in found.notes:
        print(f"Note: {note}", file=sys.stderr)
    if as_json:
        print_json({"first": str(first), "second": str(second), **found.as_dict()})
        return
    for each in tables_of(found, names):
        print_table(each.header, each.rows, align="l" + "r" * (len(each.header) - 1), title=f"{each.title}:")
        print(f"{each.note}\n" if each.note else "")
    for sentence in found.sentences:
        for label, text in sentence_lines(sentence, names, METRICS[found.ranked_by].title):
            print(f"{label}: {text}")
        print()
    for pair in found.metrics:
        print(f"{pair.title}: {pair.signature}")

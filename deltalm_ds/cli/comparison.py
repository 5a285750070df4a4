"""`deltalm compare`: two outputs side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltalm_ds.cli.evaluation import DEFAULT_SPLIT, prepared_task, reference_settings, split_names
from deltalm_ds.cli.options import AsJson, TargetLang, refuse
from deltalm_ds.cli.output import print_json, print_notes, print_table
from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics import METRICS

if TYPE_CHECKING:
    from deltalm_ds.evaluation.comparison import Comparison

DEFAULT = "chrf,bleu"


def compare(
    first: Annotated[
        Path, typer.Argument(help="Outputs, one a line; or a directory of such, as evaluate --out writes.", metavar="A")
    ],
    second: Annotated[Path, typer.Argument(help="Other outputs for the same sources.", metavar="B")],
    reference: Annotated[
        list[Path] | None, typer.Option(help="The references of files; named again for further ones.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Of directories with en-de.hyp, …: where the test sets are, as for evaluate.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="What --data was prepared for; its split and metrics.")] = None,
    split: Annotated[str | None, typer.Option(help="As for evaluate.")] = None,
    directions: Annotated[str, typer.Option(help="Such as en-de,de-en; or all that both have.")] = "all",
    source: Annotated[Path | None, typer.Option(help="Their sources, shown, and for metrics that need them.")] = None,
    target_lang: TargetLang = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help=f"Of {', '.join(METRICS)}; the first one ranks sentences. By default {DEFAULT}, or the task's."
        ),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="As for evaluate.")] = None,
    languages: Annotated[str | None, typer.Option(help="As for evaluate.")] = None,
    sentences: Annotated[int, typer.Option(min=0, help="How many of those that differ most are shown.")] = 5,
    html: Annotated[Path | None, typer.Option(help="Write it as a page, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Which of two outputs is better, how sure that is, and where they differ; also of many directions at once.

    Example: deltalm compare old.de new.de --reference test.de --target-lang de --html compared.html
    Example: deltalm compare results/hypotheses/old results/hypotheses/new --task wmt10 --data wmt10
    """
    from deltalm_ds.evaluation.comparison import Pair, compare_outputs
    from deltalm_ds.evaluation.comparison_tables import write_page
    from deltalm_ds.evaluation.output_pairs import read_pairs
    from deltalm_ds.evaluation.test_sets import read_references, read_test_sets

    settings = reference_settings(target_lang, tokenizer, languages)
    prepared = prepared_task(task, data)
    if data is not None:
        refuse("with --data", {"--reference": reference, "--source": source, "--target-lang": target_lang})
        wanted = None if directions == "all" else split_names(directions)
        test_sets = (
            prepared.test_sets(split, wanted) if prepared else read_test_sets(data, split or DEFAULT_SPLIT, wanted)
        )
        pairs = read_pairs(first, second, test_sets, settings)
    elif reference:
        refuse("without --data", {"--split": split, "--directions": directions != "all"})
        (ours, theirs), references = read_references([first, second], reference, source, settings)
        pairs = [Pair(references.language or "given", ours, theirs, references)]
    else:
        raise InputError("Give the references of files (--reference) or, of directories, the test sets (--data).")
    by_default = prepared.form.metrics if prepared else split_names(DEFAULT)
    found = compare_outputs(pairs, split_names(metrics) if metrics else by_default, sentences)
    names = (first.name, second.name) if first.name != second.name else (str(first), str(second))
    if html is not None:
        write_page(found, names, html)
    print_notes(found.notes)
    if as_json:
        print_json({"first": str(first), "second": str(second), **found.as_dict()})
    else:
        _print(found, names)


def _print(found: "Comparison", names: tuple[str, str]) -> None:
    from deltalm_ds.evaluation.comparison_tables import sentence_lines, signature_lines, tables_of

    for each in tables_of(found, names):
        print_table(each.header, each.rows, align="l" + "r" * (len(each.header) - 1), title=f"{each.title}:")
        print(f"{each.note}\n" if each.note else "")
    for sentence in found.sentences:
        for label, text in sentence_lines(sentence, names, METRICS[found.ranked_by].title):
            print(f"{label}: {text}")
        print()
    for line in signature_lines(found):
        print(line)

"""`deltalm data`: raw text to token shards, and what is in them."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from deltalm_ds.data.manifest import Manifest
    from deltalm_ds.data_tools.build import CorpusSpec
    from deltalm_ds.data_tools.sources import Source

app = typer.Typer(no_args_is_help=True, help="Build, inspect and verify token shards.")

Directory = Annotated[Path, typer.Argument(help="A data set made by `deltalm data build`.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
OVERLONG_HELP = "What happens to a longer side: truncate cuts it, drop leaves the row out. Both are counted."


@app.command()
def build(
    vocab: Annotated[Path, typer.Option(help="Vocabulary directory.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Directory of the new data set.", show_default=False)],
    parallel: Annotated[list[str] | None, typer.Option(help="Two text files: en-de=train.en,train.de")] = None,
    mono: Annotated[list[str] | None, typer.Option(help="A text file: de=mono.de.xz")] = None,
    tsv: Annotated[
        list[str] | None, typer.Option(help="en-de=pairs.tsv, or with column numbers en-de=pairs.tsv.xz:2,3")
    ] = None,
    jsonl: Annotated[
        list[str] | None, typer.Option(help="en-de=pairs.jsonl (fields source, target; or text), or fr=f.jsonl:title")
    ] = None,
    processes: Annotated[int, typer.Option(help="Processes that tokenise.", min=1)] = 1,
    max_tokens: Annotated[int | None, typer.Option(help="Longest side in tokens; any length if not given.")] = None,
    overlong: Annotated[str, typer.Option(help=OVERLONG_HELP, metavar="truncate|drop")] = "truncate",
    subword_samples: Annotated[
        int, typer.Option(help="Rows per record with drawn segmentations (subword regularisation); 0 for none.", min=0)
    ] = 0,
    sample_alpha: Annotated[float, typer.Option(help="Smoothing of the drawn segmentations.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the drawn segmentations.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Tokenise text into a new shard data set.

    Each option that names text may be given several times; the same name again adds files to that corpus.
    Files may end in .gz, .xz or .zst.

    Example: deltalm data build --vocab vocab --out shards --parallel en-de=train.en,train.de --mono de=de.txt.xz
    """
    from deltalm_ds.data_tools.build import build as build_data
    from deltalm_ds.vocabulary import Vocabulary

    corpora = _corpus_specs({None: [*(parallel or []), *(mono or [])], "tsv": tsv or [], "jsonl": jsonl or []})
    manifest = build_data(
        corpora,
        Vocabulary.load(vocab),
        out,
        num_processes=processes,
        max_tokens=max_tokens,
        overlong=overlong,
        subword_samples=subword_samples,
        sample_alpha=sample_alpha,
        seed=seed,
    )
    _print_manifest(out, manifest, as_json)


@app.command()
def inspect(directory: Directory, as_json: AsJson = False) -> None:
    """Show the corpora of a data set and what was dropped when it was built; reads no shard.

    Example: deltalm data inspect shards
    """
    from deltalm_ds.data.shards import ShardDataset

    _print_manifest(directory, ShardDataset.open(directory).manifest, as_json)


@app.command()
def verify(directory: Directory, as_json: AsJson = False) -> None:
    """Check every byte of a data set; list all faults and exit with 3 if there are any.

    Example: deltalm data verify shards
    """
    from deltalm_ds.data_tools.verify import verify as verify_data
    from deltalm_ds.errors import DataError

    result = verify_data(directory)
    if as_json:
        print(json.dumps({"directory": str(directory), **asdict(result)}, indent=1, ensure_ascii=False))
    else:
        for fault in result.faults:
            print(fault)
        print(f"{result.num_shards:,} shards, {result.num_rows:,} rows, {len(result.faults):,} faults")
    if result.faults:
        raise DataError(f"{directory} has {len(result.faults):,} faults: build the data set again.")


@app.command()
def stats(directory: Directory, as_json: AsJson = False) -> None:
    """Show lengths and the rate of unknown tokens of every side; reads all shards.

    Example: deltalm data stats shards --json
    """
    from deltalm_ds.data.shards import ShardDataset
    from deltalm_ds.data_tools.statistics import statistics

    sides = statistics(ShardDataset.open(directory))
    if as_json:
        print(json.dumps([asdict(side) for side in sides], indent=1, ensure_ascii=False))
        return
    _print_table(
        f"Lengths in tokens: {directory}",
        ("corpus", "side", "language", "rows", "tokens", "mean", "median", "90 %", "99 %", "longest", "unknown"),
        [
            (
                *(side.corpus, side.side, side.language, f"{side.rows:,}", f"{side.tokens:,}"),
                *(f"{side.mean_length:.1f}", side.median_length, side.p90_length, side.p99_length, side.max_length),
                f"{side.unknown_rate:.3%}",
            )
            for side in sides
        ],
        num_text_columns=3,
    )


@app.command()
def cldr(
    out: Annotated[Path, typer.Option(help="Directory of the text files.", show_default=False)],
    seed: Annotated[int, typer.Option(help="Seed of the drawn phrases.")] = 1,
    scale: Annotated[float, typer.Option(help="Size of the training part; 1.0 is about 144,500 pairs.")] = 1.0,
) -> None:
    """Write the built-in demo corpus: English and ten languages, phrases made from CLDR, without any download.

    Example: deltalm data cldr --out cldr
    """
    from deltalm_ds.data_tools.cldr import write_corpus

    print(json.dumps(write_corpus(out, seed, scale), indent=1, ensure_ascii=False))


def _corpus_specs(arguments_by_format: dict[str | None, list[str]]) -> "list[CorpusSpec]":
    """Corpora from arguments like `en-de=train.en,train.de`; the same name again adds to the same corpus."""
    from deltalm_ds.data_tools.build import CorpusSpec

    sources: dict[str, list[Source]] = {}
    for source_format, arguments in arguments_by_format.items():
        for argument in arguments:
            name, source = _parse_source(argument, source_format)
            sources.setdefault(name, []).append(source)
    return [CorpusSpec.from_name(name, sources_of_name) for name, sources_of_name in sources.items()]


def _parse_source(argument: str, source_format: str | None) -> "tuple[str, Source]":
    from deltalm_ds.data_tools.sources import Source
    from deltalm_ds.errors import InputError

    name, _, value = argument.partition("=")
    if not name or not value:
        raise InputError(f"{argument!r} does not name a corpus and its files: write it as in en-de=train.en,train.de.")
    if source_format is None:
        return name, Source(tuple(map(Path, value.split(","))))
    path, _, columns = value.partition(":")
    return name, Source((Path(path),), source_format, tuple(columns.split(",")) if columns else None)


def _print_manifest(directory: Path, manifest: "Manifest", as_json: bool) -> None:
    corpora = manifest.corpora
    if as_json:
        facts = [
            {
                "name": corpus.name,
                "kind": corpus.kind,
                "languages": corpus.languages,
                "rows": corpus.num_rows,
                "tokens": corpus.num_tokens,
                "shards": len(corpus.shards),
                "bytes": corpus.num_bytes,
                "dropped": corpus.dropped,
                "truncated": corpus.truncated,
            }
            for corpus in corpora
        ]
        vocabulary = {"hash": manifest.vocabulary_hash, "num_tokens": manifest.vocabulary_num_tokens}
        print(json.dumps({"directory": str(directory), "vocabulary": vocabulary, "corpora": facts}, indent=1))
        return
    _print_table(
        f"{directory} (vocabulary {manifest.vocabulary_hash[:12]}, {manifest.vocabulary_num_tokens:,} tokens)",
        ("corpus", "kind", "rows", "source tokens", "target tokens", "shards", "MB", "dropped", "truncated"),
        [
            (
                *(corpus.name, corpus.kind, f"{corpus.num_rows:,}"),
                *(f"{corpus.num_tokens[side]:,}" if side in corpus.sides else "" for side in ("source", "target")),
                *(len(corpus.shards), f"{corpus.num_bytes / 1e6:,.1f}"),
                *(_counts(corpus.dropped), _counts(corpus.truncated)),
            )
            for corpus in corpora
        ],
        num_text_columns=2,
    )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items()) or "0"


def _print_table(title: str, header: tuple[str, ...], rows: list[tuple[Any, ...]], num_text_columns: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index < num_text_columns else "right")
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)  # a pipe has no width to fit into

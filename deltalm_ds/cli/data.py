"""`deltalm data`: raw text to token shards, and what is in them."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltalm_ds.cli.options import AsJson
from deltalm_ds.cli.output import print_json, print_table
from deltalm_ds.data_tools.formats.table import FORMATS
from deltalm_ds.data_tools.published.table import PUBLISHED

if TYPE_CHECKING:
    from deltalm_ds.data.manifest import CorpusManifest, Manifest
    from deltalm_ds.data_tools.build import CorpusSpec
    from deltalm_ds.data_tools.statistics import SideStatistics

app = typer.Typer(no_args_is_help=True, help="Build, inspect and verify token shards.")

Directory = Annotated[Path, typer.Argument(help="A data set made by `deltalm data build`.", show_default=False)]
CORPUS_HELP = "One of these, with its files: " + "; ".join(f"{name} {row.files}" for name, row in PUBLISHED.items())
OVERLONG_HELP = "What happens to a longer side: truncate cuts it, drop leaves the row out. Both are counted."


def _with_an_option_per_format(command: Callable[..., None]) -> Callable[..., None]:
    """Make options of the table of input formats out of the keywords `**texts_by_format` that `command` takes."""
    *parameters, _ = signature(command).parameters.values()
    for name, input_format in FORMATS.items():
        option = typer.Option(help=f"As --parallel, --mono and --task, of files that are {input_format.description}.")
        annotation = Annotated[list[str] | None, option]
        keyword = name.replace("-", "_")
        parameters.append(Parameter(keyword, Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # where inspect, and so typer, looks
    return command


@app.command()
@_with_an_option_per_format
def build(
    vocab: Annotated[Path, typer.Option(help="Vocabulary directory.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Directory of the new data set.", show_default=False)],
    parallel: Annotated[list[str] | None, typer.Option(help="Pairs: en-de=train.en,train.de")] = None,
    mono: Annotated[list[str] | None, typer.Option(help="Text of one language: de=mono.de.xz")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Inputs and outputs: headlines:fr-fr=news.jsonl:text,title")
    ] = None,
    processes: Annotated[int, typer.Option(help="Processes that tokenise.", min=1)] = 1,
    documents: Annotated[
        bool, typer.Option(help="--mono texts are documents (blank lines between; a JSONL or Parquet record each).")
    ] = False,
    window_tokens: Annotated[
        int | None, typer.Option(help="Length of the rows that documents are cut into; 568 if not given.")
    ] = None,
    cross_documents: Annotated[
        bool, typer.Option(help="Windows run on into the next document; no token marks the place.")
    ] = False,
    max_tokens: Annotated[int | None, typer.Option(help="Longest side in tokens; any length if not given.")] = None,
    overlong: Annotated[str, typer.Option(help=OVERLONG_HELP, metavar="truncate|drop")] = "truncate",
    min_tokens: Annotated[int, typer.Option(help="Shortest side in tokens.")] = 1,
    max_ratio: Annotated[
        float | None, typer.Option(help="Longer side to shorter, in tokens; any if not given.")
    ] = None,
    min_script_share: Annotated[
        float | None,
        typer.Option(help="Share of the letters that are in the language's script; unchecked if not given."),
    ] = None,
    drop_control: Annotated[bool, typer.Option(help="Drop texts with control characters or U+FFFD.")] = False,
    deduplicate: Annotated[bool, typer.Option(help="Drop what occurred before in the same corpus.")] = False,
    subword_samples: Annotated[
        int, typer.Option(help="Rows per record with drawn segmentations (subword regularisation); 0 for none.", min=0)
    ] = 0,
    sample_alpha: Annotated[float, typer.Option(help="Smoothing of the drawn segmentations.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the drawn segmentations.")] = 0,
    rows_per_shard: Annotated[int, typer.Option(help="Rows of a shard at most.")] = 1_048_576,
    as_json: AsJson = False,
    **texts_by_format: list[str] | None,
) -> None:
    """Tokenise text into a new shard data set; the same command again goes on with one that was interrupted.

    Each option that names text may be given several times; the same name again adds files to that corpus. The fields
    or columns to read stand after a colon, as in pairs.tsv:2,3 or f.jsonl:translation.en,translation.de. Files may
    end in .gz, .xz, .bz2 or .zst, lie in a .zip (corpus.zip!*.en), be a pattern ("de/*.txt"), a list of files
    (@list.txt) or - for standard input; a comma or colon that belongs to a name is written \\, or \\: (in quotes for
    the shell). What a file is, its name tells; where it does not, use the option of its format in place of --parallel,
    --mono or --task. On several hosts: mpirun -n 33 deltalm data build … (one rank hands out, 32 work).

    Example: deltalm data build --vocab vocab --out shards --parallel en-de=train.en,train.de --mono de=de.txt.xz
    """
    from deltalm_ds.data_tools.build import build as build_data
    from deltalm_ds.data_tools.filters import Settings
    from deltalm_ds.data_tools.workers import start_workers
    from deltalm_ds.errors import InputError
    from deltalm_ds.vocabulary import Vocabulary

    if window_tokens is not None and not documents:
        raise InputError("Windows are cut from documents: give --documents too, or leave --window-tokens out.")
    texts = [*(parallel or []), *(mono or []), *(task or [])]
    with start_workers(processes) as workers:
        if workers is None:  # a rank whose work is done
            return
        by_format: dict[str | None, list[str]] = {None: texts}
        by_format |= {name: texts_by_format[name.replace("-", "_")] or [] for name in FORMATS}
        corpora = _corpus_specs(by_format)
        _check_languages("--mono", mono or [], "one language, as in de=, pt-BR= or zh_Hans=", 1)
        _check_languages("--parallel", parallel or [], "a pair, as in en-de= or en-pt-BR=", 2)
        settings = Settings(
            max_tokens=max_tokens,
            overlong=overlong,
            min_tokens=min_tokens,
            max_ratio=max_ratio,
            min_script_share=min_script_share,
            drop_control=drop_control,
            deduplicate=deduplicate,
            window_tokens=(568 if window_tokens is None else window_tokens) if documents else None,
            cross_documents=cross_documents,
            subword_samples=subword_samples,
            sample_alpha=sample_alpha,
            seed=seed,
            rows_per_shard=rows_per_shard,
        )
        manifest = build_data(corpora, Vocabulary.load(vocab), out, settings, workers)
        _print_manifest(out, manifest, as_json)


@app.command()
def inspect(directory: Directory, as_json: AsJson = False) -> None:
    """Show the corpora of a data set and what was dropped when it was built; reads no shard.

    Example: deltalm data inspect shards
    """
    from deltalm_ds.data.shards import ShardDataset

    _print_manifest(directory, ShardDataset.open(directory).manifest, as_json)


@app.command()
def verify(
    directory: Directory,
    repair: Annotated[
        bool, typer.Option("--repair", help="Take damaged shards out (they go to the folder `damaged`); say the loss.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check every byte of a data set; list all faults and exit with 3 if there are any that were not repaired.

    Example: deltalm data verify shards --repair
    """
    from deltalm_ds.data_tools.verify import repair as repair_data
    from deltalm_ds.data_tools.verify import verify as verify_data
    from deltalm_ds.errors import DataError

    result = verify_data(directory)
    losses = repair_data(directory, result.damaged) if repair and result.damaged else []
    if as_json:
        facts = {"directory": str(directory), **asdict(result), "lost": [asdict(loss) for loss in losses]}
        print_json(facts)
    else:
        for fault in result.faults:
            print(fault)
        print(f"shards {result.num_shards:,}, rows {result.num_rows:,}, faults {len(result.faults):,}")
        for loss in losses:
            print(
                f"{loss.corpus} lost {loss.rows:,} rows (shards: {loss.shards:,}) and {_counts(loss.tokens)} tokens; "
                + (f"{loss.rows_left:,} rows are left" if loss.rows_left else "nothing of it is left")
            )
    if result.faults and not repair:
        raise DataError(
            f"{directory} has faults ({len(result.faults):,}): build the data set again, or go on without the damaged "
            "shards with --repair."
        )


@app.command()
def stats(
    directory: Directory,
    vocab: Annotated[
        Path | None, typer.Option(help="Vocabulary of the data set: adds tokens per word and characters per token.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the lengths, into a page: lengths.html")] = None,
    as_json: AsJson = False,
) -> None:
    """Show lengths, the rate of unknown tokens, and fertility of every side; reads all shards.

    Example: deltalm data stats shards --vocab vocabulary --plot lengths.html
    """
    from deltalm_ds.data.shards import ShardDataset
    from deltalm_ds.data_tools.statistics import plot_lengths, statistics
    from deltalm_ds.errors import InputError
    from deltalm_ds.vocabulary import Vocabulary

    if plot and plot.suffix not in (".html", ".htm"):
        raise InputError(f"--plot {plot}: the chart is an HTML page; name it {plot.with_suffix('.html')}.")
    vocabulary = Vocabulary.load(vocab) if vocab else None
    sides = statistics(ShardDataset.open(directory, vocabulary.hash if vocabulary else None), vocabulary)
    if plot:
        plot_lengths(sides, plot)
    if as_json:
        print_json([asdict(side) for side in sides])
    else:
        _print_statistics(directory, sides, with_text=vocabulary is not None)


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

    print_json(write_corpus(out, seed, scale))


@app.command()
def convert(
    corpus: Annotated[str, typer.Argument(show_default=False, metavar="CORPUS", help=CORPUS_HELP)],
    files: Annotated[list[Path], typer.Argument(help="Its files; .gz, .xz, .bz2, .zst too.", show_default=False)],
    out: Annotated[str, typer.Option(help="pairs.jsonl; or texts and their references: test.en-de.en,test.en-de.de")],
    as_json: AsJson = False,
) -> None:
    """Turn a published corpus that `build` does not read as it is into pairs for it, or into a test set.

    An item with several references is a row for each of them in JSONL.

    Example: deltalm data convert webnlg en/train/*/*.xml --out webnlg.jsonl
    """
    from deltalm_ds.data_tools.convert import convert as convert_corpus

    conversion = convert_corpus(corpus, files, [Path(name) for name in out.split(",")])
    if as_json:
        print_json(asdict(conversion))
    else:
        print(f"{conversion.items:,} items, {conversion.rows:,} rows; left out: {_counts(conversion.dropped)}")


def _check_languages(option: str, arguments: list[str], wanted: str, count: int) -> None:
    """InputError where the name of a corpus (`en-de=…`) has more or fewer languages than its option takes."""
    from deltalm_ds.errors import InputError
    from deltalm_ds.languages import split_codes

    for argument in arguments:
        name = argument.partition("=")[0]
        if ":" not in name and len(split_codes(name)) != count:
            raise InputError(f"{option} takes {wanted}; {name!r} is not that.")


def _corpus_specs(arguments_by_format: dict[str | None, list[str]]) -> "list[CorpusSpec]":
    """Corpora from arguments like `en-de=train.en,train.de`; the same name again adds to the same corpus."""
    from deltalm_ds.data_tools.build import CorpusSpec
    from deltalm_ds.data_tools.sources import TextSource, find_sources
    from deltalm_ds.errors import InputError

    sources: dict[str, list[TextSource]] = {}
    for source_format, arguments in arguments_by_format.items():
        for argument in arguments:
            name, _, value = argument.partition("=")
            if not name or not value:
                raise InputError(
                    f"{argument!r} does not name a corpus and its files: write it as in en-de=train.en,train.de."
                )
            sources.setdefault(name, []).extend(find_sources(value, source_format))
    return [CorpusSpec.from_name(name, sources_of_name) for name, sources_of_name in sources.items()]


def _print_statistics(directory: Path, sides: "Sequence[SideStatistics]", with_text: bool) -> None:
    columns = "corpus", "side", "language", "rows", "tokens", "mean", "median", "90 %", "99 %", "longest", "unknown"
    of_text = ("tokens/word", "characters/token") if with_text else ()
    rows = []
    for side in sides:
        row: list[str | int] = [
            side.corpus,
            side.side,
            side.language,
            side.rows,
            side.tokens,
            f"{side.mean_length:.1f}",
        ]
        row += [side.median_length, side.p90_length, side.p99_length, side.max_length, f"{side.unknown_rate:.3%}"]
        if with_text:
            row += [f"{side.tokens_per_word:.2f}", f"{side.characters_per_token:.2f}"]
        rows.append(row)
    align = "lll" + "r" * (len(columns) - 3 + len(of_text))
    print_table((*columns, *of_text), rows, align, title=f"Lengths in tokens: {directory}")


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
        print_json({"directory": str(directory), "vocabulary": vocabulary, "corpora": facts})
        return
    rows = [_manifest_row(corpus.name, corpus.kind, [corpus]) for corpus in corpora]
    print_table(
        ("corpus", "kind", "rows", "source tokens", "target tokens", "shards", "MB", "dropped", "truncated"),
        [*rows, _manifest_row("total", "", corpora)],
        align="llrrrrrrr",
        title=f"{directory} (vocabulary {manifest.vocabulary_hash[:12]}, {manifest.vocabulary_num_tokens:,} tokens)",
    )


def _manifest_row(name: str, kind: str, corpora: "Sequence[CorpusManifest]") -> tuple[str | int | None, ...]:
    """A row of the table: what the corpora have together."""
    tokens = _sum(corpus.num_tokens for corpus in corpora)
    return (
        name,
        kind,
        sum(corpus.num_rows for corpus in corpora),
        tokens.get("source"),
        tokens.get("target"),
        sum(len(corpus.shards) for corpus in corpora),
        f"{sum(corpus.num_bytes for corpus in corpora) / 1e6:,.1f}",
        _counts(_sum(corpus.dropped for corpus in corpora)),
        _counts(_sum(corpus.truncated for corpus in corpora)),
    )


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Of all, each name's number added up."""
    return dict(sum(map(Counter, counts), Counter[str]()))


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items()) or "0"

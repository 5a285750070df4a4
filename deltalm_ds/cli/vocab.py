"""`deltalm vocab`: make, import and look at vocabularies."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltalm_ds.cli.options import AsJson
from deltalm_ds.cli.output import print_json, print_table

if TYPE_CHECKING:
    from deltalm_ds.vocabulary import Vocabulary

app = typer.Typer(help="Train, import and inspect vocabularies.", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="New directory for vocabulary.json and spm.model.")]
Sentinels = Annotated[int, typer.Option(min=0, help="Sentinels for span corruption.")]
Languages = Annotated[str, typer.Option(help="Codes of the languages that get a tag, as in en,pt-BR,zh_Hans.")]
Tasks = Annotated[str, typer.Option(help="Task tokens, as in '[S],[QG]': one id each wherever a text has them.")]


@app.command()
def train(
    input: Annotated[
        list[str], typer.Option(help="Text named as for `data build`: de.txt.xz, 'de/*.txt', p.tsv:2; once a language.")
    ],
    size: Annotated[int, typer.Option(min=4, help="SentencePiece's pieces.")],
    out: Out,
    languages: Languages = "",
    model_type: Annotated[str, typer.Option(help="unigram or bpe.")] = "unigram",
    character_coverage: Annotated[float, typer.Option(min=0.9, max=1.0)] = 0.9995,
    split_digits: Annotated[bool, typer.Option(help="Every digit is a piece of its own.")] = False,
    alpha: Annotated[float, typer.Option(min=0, max=1, help="Share of an input of n texts ∝ n^alpha.")] = 0.3,
    sentinels: Sentinels = 100,
    tasks: Tasks = "",
) -> None:
    """Train a SentencePiece vocabulary on text.

    Example: deltalm vocab train --input train.en --input train.de --size 8000 --languages en,de --out vocab
    """
    from deltalm_ds.data_tools.train_vocabulary import train as train_vocabulary

    vocabulary = train_vocabulary(
        input,
        out,
        size,
        model_type=model_type,
        character_coverage=character_coverage,
        num_sentinels=sentinels,
        languages=_split(languages),
        tasks=_split(tasks),
        split_digits=split_digits,
        alpha=alpha,
    )
    _print_blocks(vocabulary)


@app.command(name="import")
def import_(
    out: Out,
    spm: Annotated[Path | None, typer.Option(help="The spm.model to import.")] = None,
    dict_: Annotated[
        Path | None, typer.Option("--dict", help="The fairseq dict.txt that gives the ids their order.")
    ] = None,
    languages: Languages = "",
    sentinels: Annotated[
        int | None, typer.Option(min=0, help="At least so many sentinels; default: those of the dict.txt, or 100.")
    ] = None,
    tasks: Tasks = "",
) -> None:
    """Import an spm.model, a fairseq dict.txt, or both (a dict.txt alone: ids only, no text).

    Sentinels (<extra_id_0>), language tags (__en__) and task tokens behind them that a dict.txt ends with are kept as
    such; the options add to them.

    Example: deltalm vocab import --spm spm.model --dict dict.txt --languages en,de --out vocab
    """
    from deltalm_ds.errors import InputError
    from deltalm_ds.files import atomic_directory
    from deltalm_ds.vocabulary import Vocabulary

    blocks = sentinels, _split(languages), _split(tasks)
    if spm is not None:
        vocabulary = Vocabulary.from_spm(spm, dict_, *blocks)
    elif dict_ is not None:
        vocabulary = Vocabulary.from_dict(dict_, *blocks)
    else:
        raise InputError("Nothing to import: give --spm, --dict or both.")
    with atomic_directory(out) as directory:
        vocabulary.save(directory)
    _note_stray_tags(vocabulary)
    _print_blocks(vocabulary)


@app.command()
def inspect(
    directory: Annotated[Path, typer.Argument(help="A directory with a vocabulary.json.")],
    as_json: AsJson = False,
) -> None:
    """Show the blocks of a vocabulary, and verify its files.

    Example: deltalm vocab inspect vocab --json
    """
    from deltalm_ds.vocabulary import Vocabulary

    vocabulary = Vocabulary.load(directory)
    if as_json:
        print_json(_summary(vocabulary))
    else:
        _print_blocks(vocabulary)


def _split(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(",") if name.strip())


def _summary(vocabulary: "Vocabulary") -> dict[str, object]:
    """What scripts want to know: sizes, blocks and, with an spm.model, where its pieces and the ids differ."""
    only_in_vocabulary, only_in_spm = vocabulary.piece_differences() if vocabulary.has_text else (None, None)
    return {
        "size": vocabulary.size,
        "num_tokens": vocabulary.num_tokens,
        "hash": vocabulary.hash,
        "languages": vocabulary.languages,
        "blocks": {
            name: {"start": vocabulary.block_start(name), "count": len(tokens)}
            for name, tokens in vocabulary.blocks.items()
        },
        "pieces_only_in_vocabulary": only_in_vocabulary,
        "pieces_only_in_spm": only_in_spm,
    }


def _note_stray_tags(vocabulary: "Vocabulary") -> None:
    """Say on stderr which pieces look like language tags but are none, because of where they stand."""
    from deltalm_ds.vocabulary.blocks import is_tag

    if stray := list(filter(is_tag, vocabulary.blocks["pieces"])):
        print(
            f"Note: {', '.join(stray[:10])} {'is a piece' if len(stray) == 1 else 'are pieces'} like any other: "
            "language tags are those that a dict.txt ends with, behind the sentinels.",
            file=sys.stderr,
        )


def _print_blocks(vocabulary: "Vocabulary") -> None:
    print_table(
        ("block", "first id", "tokens", "such as"),
        [
            (name, vocabulary.block_start(name), len(tokens), " ".join(tokens[:8]))
            for name, tokens in vocabulary.blocks.items()
        ],
        align="lrrl",
    )
    summary = _summary(vocabulary)
    print(f"{vocabulary.num_tokens:,} tokens, {vocabulary.size:,} rows; hash {vocabulary.hash[:16]}")
    if not vocabulary.has_text:
        print("Ids only: no spm.model, so text cannot be encoded or decoded.")
    elif summary["pieces_only_in_vocabulary"] or summary["pieces_only_in_spm"]:
        print(
            f"{summary['pieces_only_in_vocabulary']:,} pieces are not in the spm.model (never produced); "
            f"{summary['pieces_only_in_spm']:,} of its pieces are not in the vocabulary (become <unk>)."
        )

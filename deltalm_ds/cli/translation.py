"""`deltalm translate | score`: text through a finished model."""

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from deltalm_ds.cli.options import (
    AsDocument,
    AsIds,
    AsJson,
    Beam,
    Check,
    Device,
    Dtype,
    EngineName,
    FormatName,
    LengthPenalty,
    MaxLength,
    MaxLengthRatio,
    MinLength,
    MinLengthRatio,
    Model,
    NoRepeatNgramSize,
    Out,
    Prefix,
    Protect,
    Seed,
    SourceLang,
    TargetLang,
    Temperature,
    Threads,
    TopK,
    TopP,
)
from deltalm_ds.cli.output import print_json
from deltalm_ds.errors import InputError
from deltalm_ds.files import atomic_file
from deltalm_ds.generation.documents import format_of
from deltalm_ds.generation.documents.protected import IN_DOCUMENTS
from deltalm_ds.lines import STDIN, read_lines, read_parallel_lines, read_whole

if TYPE_CHECKING:
    from deltalm_ds.generation.interface import Engine, Hypothesis, SearchOptions

Codec = tuple[Callable[[str], Sequence[int]], Callable[[Iterable[int]], str]]  # line -> ids, ids -> line


def translate(
    model: Model,
    input: Annotated[
        Path, typer.Option(help="UTF-8 text, a sentence a line, plain or .gz and the like; - is standard input.")
    ] = STDIN,
    target_lang: TargetLang = None,
    beam: Beam = 5,
    n_best: Annotated[int, typer.Option(help="Outputs a line, as number<TAB>score<TAB>text if more than 1.")] = 1,
    length_penalty: LengthPenalty = 1.0,
    min_length: MinLength = 1,
    max_length: MaxLength = 200,
    min_length_ratio: MinLengthRatio = 0.0,
    max_length_ratio: MaxLengthRatio = 0.0,
    no_repeat_ngram_size: NoRepeatNgramSize = 0,
    prefix: Prefix = "",
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    engine: EngineName = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = 0,
    ids: AsIds = False,
    as_json: AsJson = False,
    check: Check = False,
    document: AsDocument = False,
    format: FormatName = None,
    source_lang: SourceLang = None,
    protect: Protect = None,
    out: Out = None,
) -> None:
    """Translate lines, in order; an empty line gives an empty line. With --json one object a line.

    Lines that are typed, or come through a pipe one by one, are answered one by one. With --document all of a text is
    translated, sentence by sentence, and written in its own layout.

    Example: echo "3.5 kilometers" | deltalm translate models/cldr --target-lang de
    """
    from deltalm_ds.generation.interface import SearchOptions

    bounds = (min_length, max_length, no_repeat_ngram_size, min_length_ratio, max_length_ratio)
    options = SearchOptions(beam, n_best, length_penalty, *bounds, (), temperature, top_k, top_p, seed)
    runs_on: dict[str, Any] = {"engine": engine, "threads": threads, "device": device, "dtype": dtype}
    layout = _Layout(format, source_lang, protect, out)
    if document:
        _refuse("with --document", {"--n-best": n_best > 1, "--ids": ids, "--json": as_json})
        _refuse("with --document", {"--check": check, "--prefix": prefix})
        _translate_document(model, input, target_lang, options, runs_on, layout)
    else:
        from deltalm_ds.generation.loading import load_engine

        given = zip(("--format", "--source-lang", "--protect", "--out"), layout, strict=True)
        _refuse("without --document", dict(given))
        _refuse("with --ids", {"--check": check and ids})
        runner = load_engine(model, **runs_on)
        codec = _codec(model, runner, target_lang, ids)
        options = replace(options, prefix=_prefix_ids(model, runner, prefix, ids))
        _print_translations(runner, input, codec, options, _Shown(ids, as_json, check))


class _Layout(NamedTuple):
    """What concerns documents only; see `options`."""

    format: str | None
    source_lang: str | None
    protect: str | None
    out: Path | None


def _refuse(when: str, given: dict[str, Any]) -> None:
    """Options that would be ignored."""
    for name, value in given.items():
        if value:
            raise InputError(f"{name} means nothing {when}: leave it out.")


def _translate_document(
    model: Path,
    input: Path,
    target_lang: str | None,
    options: "SearchOptions",
    runs_on: dict[str, Any],
    layout: _Layout,
) -> None:
    """The whole document to standard output or a file, and what was done to stderr."""
    from deltalm_ds.generation.translator import Translator

    kind = format_of(input, layout.format)
    if layout.out is None and not kind.is_text:
        raise InputError(f"A document in {kind.title} is no text: name a file for it with --out.")
    names = IN_DOCUMENTS if layout.protect is None else filter(None, layout.protect.split(","))
    data = read_whole(input)
    translator = Translator(model, **runs_on, options=options)
    found, counts = translator.document(data, kind, target_lang, layout.source_lang, names, input)
    print(f"translate: {counts}", file=sys.stderr)
    if layout.out is None:
        print(found.decode(), end="")
    else:
        with atomic_file(layout.out, "wb") as file:
            file.write(found)


class _Shown(NamedTuple):
    """What is printed of outputs."""

    ids: bool
    as_json: bool
    check: bool


def _print_translations(engine: "Engine", input: Path, codec: Codec, options: "SearchOptions", shown: _Shown) -> None:
    """The translation of each line, when it and those that came with it are done."""
    from deltalm_ds.generation.checks import findings
    from deltalm_ds.generation.translate import no_progress, translate_chunks
    from deltalm_ds.progress import progress

    encode, decode = codec
    chunks, num_lines = _chunks(input)
    showing = nullcontext(no_progress) if num_lines is None else progress("translate", num_lines)
    has_scores = shown.as_json or options.n_best > 1
    number = num_wrong = 0
    with showing as advance:
        for lines, results in translate_chunks(engine, chunks, encode, options, has_scores, advance=advance):
            for line, found in zip(lines, results, strict=True):
                wrong = [findings(line, decode(one.ids), encode(line), one.ids) for one in found if shown.check]
                if shown.as_json:
                    print_json(_translation(line, found, None if shown.ids else decode, wrong))
                else:
                    _print_translation(number if options.n_best > 1 else None, found, decode)
                number += 1
                if wrong and wrong[0]:
                    num_wrong += 1
                    print(f"translate: line {number}: {'; '.join(wrong[0])}", file=sys.stderr)
            sys.stdout.flush()
    if shown.check:
        print(f"translate: {num_wrong} of {number} outputs look wrong.", file=sys.stderr)


def score(
    model: Model,
    source: Annotated[Path, typer.Option(help="UTF-8 sources, one a line.", show_default=False)],
    target: Annotated[Path, typer.Option(help="UTF-8 targets, as many lines.", show_default=False)],
    target_lang: TargetLang = None,
    engine: EngineName = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = 0,
    ids: AsIds = False,
    as_json: AsJson = False,
) -> None:
    """Log-probability (nats) of given targets: the sum<TAB>each token's and that of </s>; --json: an object a line.

    Example: deltalm score models/cldr --source test.en --target test.de --target-lang de
    """
    from deltalm_ds.generation.loading import load_engine
    from deltalm_ds.generation.score import score as score_targets
    from deltalm_ds.generation.translate import parse_ids, tag_of
    from deltalm_ds.progress import progress
    from deltalm_ds.vocabulary import Vocabulary

    sources, targets = read_parallel_lines(source, target)
    runner = load_engine(model, engine, threads, device, dtype)
    if ids:
        source_ids, target_ids = ([parse_ids(s, runner.vocabulary_size) for s in side] for side in (sources, targets))
    else:
        vocabulary = Vocabulary.load(model)
        tag = tag_of(vocabulary, target_lang)
        source_ids = [[*tag, *tokens.tolist()] for tokens in vocabulary.encode_batch(sources)]
        target_ids = [tokens.tolist() for tokens in vocabulary.encode_batch(targets)]
    with progress("score", len(sources)) as advance:
        found = score_targets(runner, source_ids, target_ids, advance)
    for source_line, target_line, tokens, scores in zip(sources, targets, target_ids, found, strict=True):
        if as_json:
            values = {"source": source_line, "target": target_line, "ids": tokens}
            print_json(values | {"score": sum(scores), "token_scores": scores})
        else:
            print(f"{sum(scores):.6f}\t{' '.join(f'{value:.6f}' for value in scores)}")


def _chunks(path: Path) -> tuple[Iterable[Sequence[str]], int | None]:
    """The lines to translate in chunks, and their number where it is known: not while they are being written."""
    from deltalm_ds.generation.live_input import is_live, live_lines
    from deltalm_ds.generation.translate import chunks_of

    if path == STDIN and is_live():
        return live_lines(), None
    lines = read_lines(path)
    return chunks_of(lines), len(lines)


def _codec(model: Path, engine: "Engine", target_lang: str | None, ids: bool) -> Codec:
    """Line -> ids and ids -> line: by the vocabulary beside the model, or as numbers."""
    from deltalm_ds.generation.translate import encoder_for, parse_ids
    from deltalm_ds.vocabulary import Vocabulary

    if ids:
        return lambda line: parse_ids(line, engine.vocabulary_size), lambda tokens: " ".join(map(str, tokens))
    vocabulary = Vocabulary.load(model)
    return encoder_for(vocabulary, target_lang), vocabulary.decode


def _prefix_ids(model: Path, engine: "Engine", prefix: str, ids: bool) -> tuple[int, ...]:
    from deltalm_ds.generation.translate import parse_ids
    from deltalm_ds.vocabulary import Vocabulary

    if not prefix:
        return ()
    return tuple(parse_ids(prefix, engine.vocabulary_size) if ids else Vocabulary.load(model).encode(prefix).tolist())


def _print_translation(number: int | None, found: "list[Hypothesis]", decode: Callable[[Iterable[int]], str]) -> None:
    """The text alone, or with a line's number number<TAB>score<TAB>text of each of its outputs."""
    for hypothesis in found:
        text = decode(hypothesis.ids)
        if number is not None:
            text = f"{number}\t{hypothesis.score:.6f}\t{text.replace(chr(9), ' ')}"
        print(text)


def _translation(
    line: str,
    found: "list[Hypothesis]",
    decode: Callable[[Iterable[int]], str] | None,
    wrong: list[list[str]],
) -> dict[str, Any]:
    """One object of --json. Without `decode` (--ids) hypotheses have no text, without `wrong` (--check) no checks."""
    hypotheses = [({"text": decode(hypothesis.ids)} if decode else {}) | asdict(hypothesis) for hypothesis in found]
    for hypothesis, checks in zip(hypotheses, wrong, strict=False):
        hypothesis["checks"] = checks
    return {"source": line, "hypotheses": hypotheses}

"""`deltalm translate | score`: text through a finished model."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from deltalm_ds.cli.options import (
    Alignments,
    AsDocument,
    AsIds,
    AsJson,
    BanFile,
    Beam,
    Check,
    Device,
    Dtype,
    EngineName,
    FormatName,
    GlossaryFile,
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
    Rerank,
    RerankWeight,
    ReverseModelPath,
    Seed,
    SourceLang,
    TargetLang,
    Temperature,
    Threads,
    TopK,
    TopP,
    refuse,
)
from deltalm_ds.cli.output import print_json
from deltalm_ds.cli.translated_lines import Shown, translate_lines
from deltalm_ds.errors import InputError
from deltalm_ds.files import atomic_file
from deltalm_ds.generation.documents import format_of
from deltalm_ds.generation.documents.protected import IN_DOCUMENTS
from deltalm_ds.lines import STDIN, read_parallel_lines, read_whole
from deltalm_ds.streams import say

if TYPE_CHECKING:
    from deltalm_ds.generation.choosing import Wishes
    from deltalm_ds.generation.interface import SearchOptions


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
    alignments: Alignments = None,
    glossary: GlossaryFile = None,
    ban: BanFile = None,
    rerank: Rerank = None,
    rerank_weight: RerankWeight = None,
    reverse_model: ReverseModelPath = None,
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
    from deltalm_ds.generation.loading import is_foreign

    bounds = (min_length, max_length, no_repeat_ngram_size, min_length_ratio, max_length_ratio)
    options = SearchOptions(beam, n_best, length_penalty, *bounds, (), temperature, top_k, top_p, seed)
    runs_on: dict[str, Any] = {"engine": engine, "threads": threads, "device": device, "dtype": dtype}
    shown = Shown(ids, as_json, check, alignments)
    refuse("without --rerank", {} if rerank else {"--rerank-weight": rerank_weight, "--reverse-model": reverse_model})
    asked = _Asked(glossary, ban, rerank, rerank_weight, reverse_model, source_lang)
    if document:
        refuse("with --document", {"--n-best": n_best > 1, "--ids": ids, "--json": as_json, "--check": check})
        refuse("with --document", {"--prefix": prefix, "--alignments": alignments})
        layout = _Layout(format, source_lang, protect, out)
        _translate_document(model, input, target_lang, options, asked.wishes(), runs_on, layout)
    else:
        for_documents = None if rerank == "reverse" or check or is_foreign(model) else source_lang
        refuse("without --document", {"--format": format, "--source-lang": for_documents, "--out": out})
        if ids:
            refuse("with --ids", {"--check": check, "--protect": protect, "--alignments": alignments})
            refuse("with --ids", {"--glossary": glossary, "--ban": ban, "--rerank": rerank})
        refuse("without --json or --check", {"--alignments": alignments and not (as_json or check)})
        languages = target_lang, source_lang
        translate_lines(model, input, languages, prefix, options, asked.wishes(), protect, runs_on, shown)


class _Asked(NamedTuple):
    """What is asked of outputs; see `options`."""

    glossary: Path | None
    ban: Path | None
    rerank: str | None
    rerank_weight: float | None
    reverse_model: Path | None
    source_lang: str | None

    def wishes(self) -> "Wishes":
        """It, read and opened: before a model is, as far as that needs none."""
        from deltalm_ds.generation.choosing import Wishes
        from deltalm_ds.generation.glossary import Glossary
        from deltalm_ds.generation.phrases import read_phrases
        from deltalm_ds.generation.rerank import reranker_of

        glossary = Glossary.read(self.glossary) if self.glossary else None
        banned = tuple(read_phrases(self.ban)) if self.ban else ()
        reranker = None
        if self.rerank:
            reranker = reranker_of(self.rerank, self.rerank_weight, self.reverse_model, self.source_lang)
        return Wishes(glossary, banned, reranker)


class _Layout(NamedTuple):
    """What concerns documents only; see `options`."""

    format: str | None
    source_lang: str | None
    protect: str | None
    out: Path | None


def _translate_document(
    model: Path,
    input: Path,
    target_lang: str | None,
    options: "SearchOptions",
    wishes: "Wishes",
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
    with atomic_file(layout.out, "wb") if layout.out else nullcontext() as file:  # if it cannot be, nothing is begun
        translator = Translator(model, **runs_on, options=options, wishes=wishes, shows_progress=True)
        found, counts = translator.document(data, layout.format, target_lang, layout.source_lang, names, input)
        say(counts, "translate")
        if file is None:
            print(found.decode(), end="")
        else:
            file.write(found)


def score(
    model: Model,
    source: Annotated[Path, typer.Option(help="UTF-8 sources, one a line.", show_default=False)],
    target: Annotated[Path, typer.Option(help="UTF-8 targets, as many lines.", show_default=False)],
    target_lang: TargetLang = None,
    source_lang: SourceLang = None,
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
    from deltalm_ds.generation.loading import is_foreign, load_engine, load_vocabulary
    from deltalm_ds.generation.score import score as score_targets
    from deltalm_ds.generation.translate import parse_ids
    from deltalm_ds.progress import progress

    refuse("with a model of ours", {"--source-lang": None if is_foreign(model) else source_lang})
    sources, targets = read_parallel_lines(source, target)
    runner = load_engine(model, engine, threads, device, dtype)
    if ids:
        source_ids, target_ids = ([parse_ids(s, runner.vocabulary_size) for s in side] for side in (sources, targets))
    else:
        vocabulary = load_vocabulary(model)
        tag = vocabulary.source_tag(target_lang, source_lang)
        source_ids = [[*tag, *vocabulary.encode(line).tolist()] for line in sources]
        target_ids = [vocabulary.encode_output(line).tolist() for line in targets]
    with progress("score", len(sources)) as advance:
        found = score_targets(runner, source_ids, target_ids, advance)
    for source_line, target_line, tokens, scores in zip(sources, targets, target_ids, found, strict=True):
        if as_json:
            values = {"source": source_line, "target": target_line, "ids": tokens}
            print_json(values | {"score": sum(scores), "token_scores": scores})
        else:
            print(f"{sum(scores):.6f}\t{' '.join(f'{value:.6f}' for value in scores)}")

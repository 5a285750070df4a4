"""`deltalm evaluate`: how good the outputs of a model, or given ones, are."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltalm_ds.cli.options import (
    AsJson,
    Beam,
    Device,
    Dtype,
    EngineName,
    LengthPenalty,
    NoRepeatNgramSize,
    SourceLang,
    TargetLang,
    Threads,
    refuse,
)
from deltalm_ds.cli.output import print_json, print_notes, print_table
from deltalm_ds.cli.suites import TABLE_FORMATS, TEXT, SuiteOptions, evaluate_suite, threads_of_each
from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics import DEFAULT_METRICS, METRICS
from deltalm_ds.evaluation.tasks import TASKS

if TYPE_CHECKING:
    from deltalm_ds.evaluation.metrics.interface import References
    from deltalm_ds.evaluation.scores import DirectionScore
    from deltalm_ds.evaluation.suites import PreparedTask
    from deltalm_ds.evaluation.test_sets import TestSet

DEFAULT_SPLIT, DEFAULT_MAX_LENGTH = "test", 200


DataDirectory = Annotated[Path | None, typer.Option(help="Directory of files such as test.en-de.en, test.en-de.de.")]
TaskName = Annotated[
    str | None, typer.Option(help=f"What --data was prepared for, of {', '.join(TASKS)}: its split, search, metrics.")
]
SuiteName = Annotated[str | None, typer.Option(help="A task again: several --systems, in the tables of the paper.")]
Systems = Annotated[
    str | None,
    typer.Option(
        help="Of --suite: models, files of outputs, copy, lead, memory:…, pivot:… (docs/tasks.md); NAME= before."
    ),
]
Baseline = Annotated[
    str | None, typer.Option(help="Of --suite: the system that the others are compared with; by default the first.")
]
Processes = Annotated[
    int, typer.Option(min=1, help="Of --suite: processes that translate, each with its share of the cores.")
]
TableFormat = Annotated[str, typer.Option(help=f"Of --suite: {', '.join(TABLE_FORMATS)}.")]
Split = Annotated[
    str | None, typer.Option(help=f"Which files of --data; by default {DEFAULT_SPLIT}, or what the paper scores.")
]
Directions = Annotated[str, typer.Option(help="Such as en-de,de-en; or all.")]
Source = Annotated[Path | None, typer.Option(help="Instead of --data: sources, one a line.")]
ReferenceFiles = Annotated[
    list[Path] | None,
    typer.Option(help="The references of --source or --hypotheses; named again for further ones (empty: none)."),
]
Hypotheses = Annotated[Path | None, typer.Option(help="Score these outputs against --reference.")]
TaskMaxLength = Annotated[
    int | None,
    typer.Option(help=f"Most tokens of an output, without </s>; by default {DEFAULT_MAX_LENGTH}, or the task's."),
]
MetricNames = Annotated[
    str | None,
    typer.Option(
        help=f"Of {', '.join(METRICS)}; several with commas between. By default {','.join(DEFAULT_METRICS)}, "
        "or the task's."
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(help="For BLEU sacreBLEU's, for ROUGE rouge_score or unicode; by default that of the language."),
]
Languages = Annotated[
    str | None, typer.Option(help="Of --hypotheses: those that off_target is to tell apart, such as en,de.")
]
EvaluationOut = Annotated[
    Path | None,
    typer.Option(help="New directory for the outputs and scores.json; of --suite one that keeps them from run to run."),
]


def evaluate(
    model: Annotated[Path | None, typer.Argument(help="A model directory or export; none with --hypotheses.")] = None,
    data: DataDirectory = None,
    task: TaskName = None,
    suite: SuiteName = None,
    systems: Systems = None,
    baseline: Baseline = None,
    processes: Processes = 1,
    table: TableFormat = TEXT,
    split: Split = None,
    directions: Directions = "all",
    source: Source = None,
    reference: ReferenceFiles = None,
    hypotheses: Hypotheses = None,
    target_lang: TargetLang = None,
    source_lang: SourceLang = None,
    beam: Beam = 5,
    length_penalty: LengthPenalty = 1.0,
    max_length: TaskMaxLength = None,
    no_repeat_ngram_size: NoRepeatNgramSize = 0,
    engine: EngineName = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = 0,
    metrics: MetricNames = None,
    tokenizer: Tokenizer = None,
    languages: Languages = None,
    out: EvaluationOut = None,
    as_json: AsJson = False,
) -> None:
    """How good the outputs of a model are per direction, or given ones: values ± half of a 95 % interval, signatures.

    Example: deltalm evaluate models/cldr --data corpus --directions en-de,de-en
    Example: deltalm evaluate --suite webnlg --data webnlg --systems run,copy,memory:webnlg --out results
    """
    from deltalm_ds.evaluation.scores import DirectionScorer
    from deltalm_ds.evaluation.test_sets import read_references
    from deltalm_ds.evaluation.translation import evaluate_directions
    from deltalm_ds.files import atomic_directory
    from deltalm_ds.generation.interface import EngineOptions, SearchOptions
    from deltalm_ds.generation.loading import load_engine, load_vocabulary

    prepared = prepared_task(task or suite, data)
    if max_length is None:
        max_length = prepared.task.search.max_length if prepared else DEFAULT_MAX_LENGTH
    options = SearchOptions(
        beam, length_penalty=length_penalty, max_length=max_length, no_repeat_ngram_size=no_repeat_ngram_size
    )
    names = split_names(metrics) if metrics else list(prepared.form.metrics if prepared else DEFAULT_METRICS)
    wanted = None if directions == "all" else split_names(directions)
    if suite is not None or systems is not None:
        refuse("with --suite", {"--tokenizer": tokenizer, "--source-lang": source_lang, "--languages": languages})
        if prepared is None or suite is None or systems is None or out is None or model is not None or task is not None:
            raise InputError("--suite goes with --systems, --data and --out; models are among the systems.")
        asked = SuiteOptions(split_names(systems), baseline, processes, table, out)
        computing = EngineOptions(device, dtype, threads_of_each(threads, processes))
        test_sets = prepared.test_sets(split, wanted)
        evaluate_suite(prepared, asked, test_sets, options, engine, computing, names, as_json)
        return
    refuse("without --suite", {"--table": table != TEXT, "--baseline": baseline, "--processes": processes > 1})
    refuse("without --hypotheses", {"--languages": hypotheses is None and languages})
    with atomic_directory(out) if out else nullcontext() as out_directory:
        if hypotheses is not None:
            if model is not None or data is not None:
                raise InputError("--hypotheses goes with --reference and --source: no model, no --data.")
            settings = reference_settings(target_lang, tokenizer, languages)
            (outputs,), references = read_references([hypotheses], reference or [], source, settings)
            scores = [DirectionScorer(references.language or "given", references, names).score(outputs)]
        else:
            if prepared is not None:
                test_sets = prepared.test_sets(split, wanted)
            else:
                test_sets = _test_sets(data, split or DEFAULT_SPLIT, wanted, source, reference, target_lang)
            if source_lang is not None:
                test_sets = [test.with_source(source_lang) for test in test_sets]
            if model is None:
                raise InputError("Name the model directory to evaluate, or outputs to score with --hypotheses.")
            opened = load_engine(model, engine, threads, device, dtype)
            scores = evaluate_directions(opened, load_vocabulary(model), test_sets, options, names, tokenizer)
        if out_directory is not None:
            _write_evaluation(out_directory, scores)
    print_notes([*(prepared.warnings if prepared else ()), *(note for result in scores for note in result.notes)])
    _print_scores(scores, as_json)


def reference_settings(target_lang: str | None, tokenizer: str | None, languages: str | None) -> "References":
    """What the command line says of outputs that are given; InputError where a language is no code."""
    from deltalm_ds.evaluation.metrics.interface import References
    from deltalm_ds.languages import check_code

    among = [check_code(code) for code in split_names(languages)] if languages else []
    return References(language=target_lang and check_code(target_lang), tokenizer=tokenizer, languages=among)


def split_names(names: str) -> list[str]:
    """`a, b` -> [a, b]."""
    return [name.strip() for name in names.split(",")]


def prepared_task(task: str | None, data: Path | None) -> "PreparedTask | None":
    """The task that is named, with its data; None where none is."""
    from deltalm_ds.evaluation.suites import PreparedTask

    if task is None:
        return None
    if data is None:
        raise InputError(f"Name the directory that `deltalm data prepare {task}` wrote (--data).")
    return PreparedTask.open(task, data)


def _test_sets(
    data: Path | None,
    split: str,
    directions: list[str] | None,
    source: Path | None,
    reference: list[Path] | None,
    target_lang: str | None,
) -> "list[TestSet]":
    from deltalm_ds.evaluation.test_sets import TestSet, further_references, read_test_sets
    from deltalm_ds.languages import check_code
    from deltalm_ds.lines import read_all_parallel_lines

    if data is not None and source is None and not reference:
        return read_test_sets(data, split, directions)
    if data is None and source is not None and reference and target_lang is not None:
        sources, first, *others = read_all_parallel_lines([source, *reference])
        return [TestSet(check_code(target_lang), sources, first, further_references(others) if others else ())]
    raise InputError("Give either --data, or --source with --reference and --target-lang.")


def _write_evaluation(directory: Path, scores: "list[DirectionScore]") -> None:
    """`{direction}.hyp` with the outputs, and `scores.json`."""
    from deltalm_ds.evaluation.scores import summarize
    from deltalm_ds.files import write_json

    for result in scores:
        text = "".join(f"{line}\n" for line in result.hypotheses)
        (directory / f"{result.direction}.hyp").write_text(text, encoding="utf-8")
    write_json(directory / "scores.json", summarize(scores))


def _print_scores(scores: "list[DirectionScore]", as_json: bool) -> None:
    from deltalm_ds.evaluation.scores import summarize
    from deltalm_ds.evaluation.significance import margin

    summary = summarize(scores)
    if as_json:
        print_json(summary)
        return
    titles = {name: metric["title"] for name, metric in summary["metrics"].items()}
    rows: list[list[str | int | None]] = []
    for score in scores:
        values = [f"{score.scores[name]:.2f}{margin(score.intervals.get(name))}" for name in titles]
        rows.append([score.direction, *values, score.num_sentences])
    if len(scores) > 1:
        averages = [f"{summary[f'average_{name}']:.2f}" for name in titles]
        rows.append(["average", *averages, sum(score.num_sentences for score in scores)])
    print_table(("direction", *titles.values(), "sentences"), rows, align="l" + "r" * (len(titles) + 1))
    for name, title in titles.items():
        for signature in summary["signatures"][name]:
            print(f"{title}: {signature}")

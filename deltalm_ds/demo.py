"""`deltalm demo`: raw phrases to an evaluated, exported, translating model, by the same steps a user would take.

Every stage leaves something complete in the demo's directory and is left out when that is there: started again after
an interruption, the demo goes on; started again after its end, it shows the result.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from deltalm_ds.checkpoints.average import average_models
from deltalm_ds.data_tools import cldr
from deltalm_ds.data_tools.build import CorpusSpec, build
from deltalm_ds.data_tools.sources import TextSource
from deltalm_ds.data_tools.train_vocabulary import train as train_vocabulary
from deltalm_ds.environment import environment
from deltalm_ds.evaluation.scores import summarize
from deltalm_ds.evaluation.test_sets import read_test_sets
from deltalm_ds.evaluation.translation import evaluate_directions
from deltalm_ds.export.package import export
from deltalm_ds.files import read_json, write_json
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.generation.loading import load_engine
from deltalm_ds.generation.translate import encoder_for, translate
from deltalm_ds.launch.local import train_on_this_machine
from deltalm_ds.recipe.loading import load_recipe, recipe_path
from deltalm_ds.report.run_page import write_report
from deltalm_ds.runs.checkpoints import checkpoint_directories, newest_checkpoints, read_state
from deltalm_ds.training.prepare import prepare_run
from deltalm_ds.vocabulary import Vocabulary

NUM_PIECES = 3000
NUM_SENTINELS = 64
NUM_CHECK_SENTENCES = 4  # of every direction, in the export's parity check
NUM_SAMPLES = 3  # of every direction, in the report
SEARCH = SearchOptions(beam=5, max_length=100)
PAIRS = tuple(f"en-{language}" for language in cldr.NUM_TRAIN)

# in the demo's directory, which is the current one while it runs: the recipes name their inputs relative to it
CORPUS, VOCABULARY, SHARDS = Path("corpus"), Path("vocabulary"), Path("shards")
PRETRAINING, FINETUNING, MODEL, EXPORT = Path("pretraining"), Path("finetuning"), Path("model"), Path("ctranslate2")
EVALUATION, TRANSLATIONS, REPORT = FINETUNING / "evaluation.json", Path("translations.json"), Path("report.html")
SECONDS, SUMMARY = Path("seconds.json"), Path("summary.json")


@dataclass(frozen=True)
class Stage:
    """A step of the demo; it is done when `is_done` says so."""

    name: str
    run: Callable[[], None]
    is_done: Callable[[], bool]


def run_demo(out: Path, num_ranks: int) -> dict[str, Any]:
    """Run the stages that are not done in `out`, which becomes the current directory.

    Returns:
        The summary, as in summary.json: scores, seconds of the stages, translations of `cldr.DEMO_PHRASES`.

    Raises:
        SystemExit: training was stopped or failed; the exit code is its own.
    """
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)
    if SUMMARY.exists():
        print("The demo is done already; remove its directory to run it anew.", file=sys.stderr)
    else:
        _run_stages(_stages(num_ranks))
    return read_json(SUMMARY)


def _stages(num_ranks: int) -> list[Stage]:
    return [
        Stage("phrases in eleven languages from CLDR", _write_corpus, CORPUS.exists),
        Stage("vocabulary", _train_vocabulary, VOCABULARY.exists),
        Stage("token shards", _build_shards, (SHARDS / "dev" / "manifest.json").exists),
        Stage("pre-training", lambda: _train("demo_pretrain", PRETRAINING, num_ranks), lambda: _ended(PRETRAINING)),
        Stage("fine-tuning", lambda: _train("demo_finetune", FINETUNING, num_ranks), lambda: _ended(FINETUNING)),
        Stage("average of the last 5 checkpoints", _average, MODEL.exists),
        Stage("BLEU on unseen phrases", _evaluate, EVALUATION.exists),
        Stage("export to CTranslate2 int8, checked", _export, EXPORT.exists),
        Stage("translations", _translate, TRANSLATIONS.exists),
        Stage("report", lambda: write_report(FINETUNING, REPORT), REPORT.exists),
    ]


def _run_stages(stages: list[Stage]) -> None:
    seconds: dict[str, float] = read_json(SECONDS) if SECONDS.exists() else {}
    for number, stage in enumerate(stages, 1):
        if stage.is_done():
            continue
        print(f"[{number}/{len(stages)}] {stage.name}", file=sys.stderr, flush=True)
        start = time.monotonic()
        stage.run()
        seconds[stage.name] = round(time.monotonic() - start, 1)
        write_json(SECONDS, seconds)
    evaluation = read_json(EVALUATION)
    summary = {
        "bleu": {score["direction"]: round(score["bleu"], 2) for score in evaluation["directions"]},
        "average_bleu": round(evaluation["average_bleu"], 2),
        "average_chrf": round(evaluation["average_chrf"], 2),
        "seconds": seconds | {"total": round(sum(seconds.values()), 1)},
        "export_parity": read_json(EXPORT / "deltalm.json")["parity"],
        "translations": read_json(TRANSLATIONS),
        "environment": environment(),
    }
    write_json(SUMMARY, summary)


def _write_corpus() -> None:
    cldr.write_corpus(CORPUS)


def _train_vocabulary() -> None:
    train_vocabulary(
        sorted(CORPUS.glob("train.*")),
        VOCABULARY,
        NUM_PIECES,
        character_coverage=1.0,
        num_sentinels=NUM_SENTINELS,
        languages=("en", *cldr.NUM_TRAIN),
    )


def _build_shards() -> None:
    vocabulary = Vocabulary.load(VOCABULARY)
    for split in ("train", "dev"):
        if (SHARDS / split / "manifest.json").exists():
            continue
        corpora = []
        for pair in PAIRS:
            english, other = (CORPUS / f"{split}.{pair}.{language}" for language in pair.split("-"))
            corpora.append(CorpusSpec.from_name(pair, [TextSource((english, other))]))
        build(corpora, vocabulary, SHARDS / split)


def _train(recipe: str, run: Path, num_ranks: int) -> None:
    prepare_run(load_recipe(recipe_path(recipe)), run)
    code = train_on_this_machine(run, num_ranks, again=True)  # somebody watches
    if code:
        sys.exit(code)


def _ended(run: Path) -> bool:
    """Whether a run has the checkpoint of its last step."""
    checkpoints = checkpoint_directories(run)
    return bool(checkpoints) and read_state(checkpoints[-1]).step == load_recipe(run / "recipe.yaml").training.max_steps


def _average() -> None:
    average_models(newest_checkpoints(FINETUNING, 5), MODEL)


def _evaluate() -> None:
    tests = read_test_sets(CORPUS, "test")
    scores = evaluate_directions(load_engine(MODEL), Vocabulary.load(MODEL), tests, SEARCH)
    samples = [
        {"direction": test.direction, "source": source, "reference": reference, "hypothesis": hypothesis}
        for test, score in zip(tests, scores, strict=True)
        for source, reference, hypothesis in islice(
            zip(test.sources, test.references, score.hypotheses, strict=True), NUM_SAMPLES
        )
    ]
    write_json(FINETUNING / "samples.json", samples)
    write_json(EVALUATION, summarize(scores))


def _export() -> None:
    vocabulary = Vocabulary.load(MODEL)
    sources = [
        encoder_for(vocabulary, test.target_lang)(line)
        for test in read_test_sets(CORPUS, "dev")
        for line in test.sources[:NUM_CHECK_SENTENCES]
    ]
    print(f"checked: {export(MODEL, EXPORT, 'ctranslate2', 'int8', sources)}", file=sys.stderr)


def _translate() -> None:
    engine, vocabulary = load_engine(EXPORT), Vocabulary.load(EXPORT)
    translations = {}
    for language in cldr.NUM_TRAIN:
        outputs = translate(engine, cldr.DEMO_PHRASES, encoder_for(vocabulary, language), SEARCH)
        translations[language] = [vocabulary.decode(found[0].ids) for found in outputs]
    write_json(TRANSLATIONS, translations)

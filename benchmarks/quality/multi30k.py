"""Image captions from scratch: Multi30k, English to German, French or Czech, the whole way from text to BLEU.

Raw and cased, test 2016, sacreBLEU 13a, beam 5, the mean of the last five checkpoints; the commands are those that a
user would give. Published at this size, English to German: 36.99 ± 0.24 over three seeds [facts: yardsticks].

    python -m benchmarks.quality.multi30k                                  German, one seed: 40 minutes on two cores
    python -m benchmarks.quality.multi30k --targets de fr cs --seeds 1 2 3 --record
    python -m benchmarks.quality.multi30k --settings recipe one_segmentation    what several segmentations are worth
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.quality.captions import read, write_lines
from benchmarks.quality.outcome import mean_and_deviation
from benchmarks.quality.study import Study, give_way, zero1
from benchmarks.recording import parser, report
from deltalm_ds.evaluation.metrics.interface import References
from deltalm_ds.evaluation.scores import DirectionScorer
from deltalm_ds.files import atomic_directory
from deltalm_ds.recipe.loading import recipe_path
from deltalm_ds.runs.metrics import read_metrics

RECIPE = recipe_path("multi30k_en_de")
SAMPLED, PLAIN = ("--subword-samples", 8, "--sample-alpha", 0.3), ()
# By name: how shards are made, what of the recipe differs, and how many checkpoints are averaged.
SETTINGS: dict[str, tuple[tuple[Any, ...], tuple[str, ...], int]] = {
    "recipe": (SAMPLED, (), 5),
    "one_segmentation": (PLAIN, (), 5),
    "dropout_0.1": (SAMPLED, ("model.dropout=0.1",), 5),
    "no_smoothing": (SAMPLED, ("training.label_smoothing=0.0",), 5),
    "last_checkpoint": (SAMPLED, (), 1),
    "r_drop": (SAMPLED, ("training.r_drop=5.0", "training.max_steps=5000"), 5),  # each step is two
    "r_drop_long": (SAMPLED, ("training.r_drop=5.0", "training.max_steps=8000"), 5),
}


def main() -> None:
    """Do every part that is not done, and show the scores."""
    options = parser(__doc__)
    options.add_argument("--targets", nargs="+", default=["de"], choices=["de", "fr", "cs"], help="languages")
    options.add_argument("--seeds", type=int, nargs="+", default=[1], help="of the training")
    options.add_argument(
        "--settings", nargs="+", default=["recipe"], choices=list(SETTINGS), help="the recipe's, changed"
    )
    arguments = options.parse_args()
    give_way()
    study = Study("multi30k")
    cases = itertools.product(arguments.targets, arguments.settings)
    rows = [_row(study, target, setting, arguments.seeds) for target, setting in cases]
    words = {name: " ".join(map(str, getattr(arguments, name))) for name in ("targets", "seeds", "settings")}
    command = " ".join(["python -m benchmarks.quality.multi30k", *(f"--{name} {words[name]}" for name in words)])
    report(arguments, "Multi30k, test 2016, from English", command, rows)


def _row(study: Study, target: str, setting: str, seeds: Sequence[int]) -> dict[str, Any]:
    """A language and a setting: means over seeds ± standard deviation."""
    runs = [_train(study, target, setting, seed) for seed in seeds]
    scores = [_score(study, target, model) for model, _ in runs]
    records = [record for _, run in runs for record in read_metrics(study.path(run)) if record["kind"] == "train"]
    return {
        "into": target,
        "setting": setting.replace("_", " "),
        "BLEU": mean_and_deviation([score["bleu"] for score in scores]),
        "chrF": mean_and_deviation([score["chrf"] for score in scores]),
        "median tokens/s": median(record["tokens_per_second"] for record in records),
        "CPU s of a run": max(study.seconds(run) for _, run in runs),
    }


def prepare(study: Study, target: str, sampling: tuple[Any, ...] = SAMPLED) -> tuple[str, str, str]:
    """Text of all languages; of one vocabulary, training and validation shards, the names of which it returns."""
    study.make("text", _write_text)
    vocabulary, shards, validation = (
        f"{target}/vocabulary",
        f"{target}/{'sampled' if sampling else 'plain'}",
        f"{target}/dev",
    )
    texts = ["--input", "text/train.en", "--input", f"text/train.{target}"]
    size = ("--size", 6000, "--character-coverage", "1.0", "--languages", f"en,{target}")
    study.deltalm(vocabulary, "vocab", "train", *texts, *size)
    for part, split, options in ((shards, "train", sampling), (validation, "dev", ())):
        pair = f"en-{target}=text/{split}.en,text/{split}.{target}"
        study.deltalm(part, "data", "build", "--vocab", vocabulary, "--parallel", pair, "--processes", 2, *options)
    return vocabulary, shards, validation


def _train(study: Study, target: str, setting: str, seed: int) -> tuple[str, str]:
    """The parts of a model and of the run that it is of."""
    sampling, overrides, averaged = SETTINGS[setting]
    vocabulary, shards, validation = prepare(study, target, sampling)
    run = f"{target}/{setting if overrides or not sampling else 'recipe'}_{seed}"
    data = [f"vocabulary={vocabulary}", f"data.train.0.path={shards}", f"validation.shards={validation}"]
    study.deltalm(run, "train", RECIPE, "--ranks", 2, f"seed={seed}", zero1(), *data, *overrides)
    model = f"{target}/models/{setting}_{seed}"
    study.deltalm(model, "average", run, "--last", averaged)
    return model, run


def _score(study: Study, target: str, model: str) -> dict[str, float]:
    files = ("--source", "text/test.en", "--reference", f"text/test.{target}", "--target-lang", target)
    out = study.deltalm(f"{model.replace('models', 'evaluation')}", "evaluate", model, *files)
    (outputs,) = out.glob("*.hyp")
    scorer = DirectionScorer(target, References(_lines(study.path(f"text/test.{target}")), target))
    return scorer.score(_lines(outputs)).scores


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _write_text(out: Path) -> None:
    with atomic_directory(out) as new:
        for split in ("train", "dev", "test"):
            for language in ("en", "de", "fr", "cs"):
                write_lines(new / f"{split}.{language}", read(split, language))


if __name__ == "__main__":
    main()

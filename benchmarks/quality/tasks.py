"""The paper's six tasks on samples: tiny models from scratch beside their floors, from published files to the tables.

Of each task the sample recipe, with the interleaved and with a vanilla decoder that has as many FFNs; the last
checkpoint, decoded and scored as the paper does. The commands are those that a user would give.

    python -m benchmarks.quality.tasks --record              minutes a task and decoder; stopped, it goes on
    python -m benchmarks.quality.tasks --tasks webnlg xqg    some of them
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality.study import SHARED, Study, give_way, zero1
from benchmarks.recording import parser, report
from deltalm_ds.recipe.loading import load_recipe, recipe_path

# By task: the folder of its sample in ../shared/data, the size of the vocabulary, and the floors.
SAMPLES = {
    "webnlg": ("webnlg", 4000, ("copy", "memory")),
    "xqg": (".", 6000, ("copy", "memory")),
    "xgiga": ("summarisation", 4000, ("copy", "lead", "memory")),
    "wikilingua": ("summarisation", 4000, ("copy", "lead", "memory")),
    "zero_shot_summarisation": ("summarisation", 6000, ("copy", "lead")),  # training has no targets in their languages
    "wmt10": ("l10n10", 8000, ("copy", "memory")),
}
DECODERS = {"interleaved": (), "vanilla": ("model.decoder=vanilla", "model.num_decoder_blocks=2")}


def main() -> None:
    """Do every part that is not done, and show the tables."""
    options = parser(__doc__)
    options.add_argument("--tasks", nargs="+", default=list(SAMPLES), choices=list(SAMPLES), help="which")
    arguments = options.parse_args()
    give_way()
    study = Study("tasks")
    rows, tables = [], []
    for task in arguments.tasks:
        recipe = load_recipe(_recipe(task))
        data = recipe.vocabulary.parent
        seconds = _train(study, task, data)
        rows.append({"task": task, "steps": recipe.training.max_steps, **seconds})
        tables.append(_evaluate(study, task, data))
    command = f"python -m benchmarks.quality.tasks --tasks {' '.join(arguments.tasks)}"
    report(arguments, "The paper's tasks on samples, tiny models from scratch", command, rows, tables)


def _train(study: Study, task: str, data: Path) -> dict[str, float]:
    """The task's data and a run for each decoder; the seconds of the runs."""
    folder, pieces, _ = SAMPLES[task]
    study.deltalm(str(data), "data", "prepare", task, SHARED / folder, "--vocab-size", pieces)
    for decoder, overrides in DECODERS.items():
        study.deltalm(_run(task, decoder), "train", _recipe(task), "--ranks", 2, zero1(), *overrides)
    return {f"CPU s, {decoder}": study.seconds(_run(task, decoder)) for decoder in DECODERS}


def _evaluate(study: Study, task: str, data: Path) -> str:
    """The task's tables, in Markdown."""
    models = [f"{decoder}={_newest_checkpoint(study, task, decoder)}" for decoder in DECODERS]
    asked = ("--systems", ",".join([*models, *systems(SAMPLES[task][2], data)]), "--baseline", "copy")
    suite = ("evaluate", "--suite", task, "--data", data, *asked, "--processes", 2, "--table", "markdown")
    return study.printed(f"results/{task}", *suite).strip()


def systems(floors: Sequence[str], data: Path) -> list[str]:
    """Floors as `--systems` takes them."""
    return [f"memory=memory:{data}" if floor == "memory" else floor for floor in floors]


def _recipe(task: str) -> Path:
    return recipe_path(f"tasks/{task}_sample")


def _run(task: str, decoder: str) -> str:
    return f"runs/{task}_{decoder}"


def _newest_checkpoint(study: Study, task: str, decoder: str) -> str:
    checkpoint = max(study.path(_run(task, decoder)).glob("checkpoints/step_*"))
    return str(checkpoint.relative_to(study.directory))


if __name__ == "__main__":
    main()

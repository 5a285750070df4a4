"""English and ten languages, both ways, in one model from scratch: interface text, from its files to BLEU on test.

Beside its floors, the source itself and the translation memory; the commands are those that a user would give.

    python -m benchmarks.quality.l10n10 --record     hours on two cores; stopped, it goes on
"""

import json
from statistics import fmean
from typing import Any

from benchmarks.quality.study import SHARED, Study, give_way, zero1
from benchmarks.recording import parser, report
from deltalm_ds.evaluation.tasks.wmt10 import INTO_ENGLISH, OUT_OF_ENGLISH, YEARS
from deltalm_ds.recipe.loading import recipe_path

RECIPE = recipe_path("l10n10")
DATA, MODEL, MEMORY = "wmt10", "model", "memory"
SYSTEMS = f"{MODEL},{MEMORY}=memory:{DATA},copy"
SIDES = {"into English": INTO_ENGLISH, "from English": OUT_OF_ENGLISH}


def main() -> None:
    """Do every part that is not done, and show the scores."""
    arguments = parser(__doc__).parse_args()
    give_way()
    study = Study("l10n10")
    study.deltalm(DATA, "data", "prepare", "wmt10", SHARED / "l10n10", "--vocab-size", 8000)
    study.deltalm("run", "train", RECIPE, "--ranks", 2, zero1())
    study.deltalm(MODEL, "average", "run", "--last", 5)
    suite = ("evaluate", "--suite", "wmt10", "--data", DATA, "--systems", SYSTEMS, "--processes", 2)
    out = study.deltalm("results", *suite)
    results = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    notes = [above_memory(results), f"Training: {study.seconds('run'):,.0f} s of a core."]
    report(arguments, "l10n10, test", "python -m benchmarks.quality.l10n10", rows(results), notes)


def rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """BLEU, a row for each system into English and one for each from it."""
    bleu = {(result["system"], result["direction"]): result["scores"]["bleu"] for result in results}
    found = []
    for side, directions in SIDES.items():
        for system in dict.fromkeys(result["system"] for result in results):
            scores = {language: bleu[system, direction] for language, direction in zip(YEARS, directions, strict=True)}
            found.append({"BLEU": f"{side}, {system}", **scores, "mean": fmean(scores.values())})
    return found


def above_memory(results: list[dict[str, Any]]) -> str:
    """How far the model, with which all are compared, is above the memory; in how many directions surely."""
    memory = {one["direction"]: one["differences"]["bleu"] for one in results if one["system"] == MEMORY}
    above = {direction: -difference["value"] for direction, difference in memory.items()}
    surely = [direction for direction in above if above[direction] > 0 and memory[direction]["p"] < 0.05]
    least, most = min(above, key=above.__getitem__), max(above, key=above.__getitem__)
    return (
        f"Model less memory: {above[least]:+.2f} ({least}) to {above[most]:+.2f} ({most}); above it with p < 0.05 in "
        f"{len(surely)} of {len(above)} directions."
    )


if __name__ == "__main__":
    main()

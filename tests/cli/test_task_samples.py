"""Every task from free data to the paper's table, by the commands of docs/tasks.md; a tiny model from scratch."""

import json
from pathlib import Path

import pytest
from command import must
from published_tasks import lines

from benchmarks.quality.study import SHARED
from benchmarks.quality.tasks import SAMPLES, systems
from deltalm_ds.recipe.loading import load_recipe, recipe_path
from deltalm_ds.runs.metrics import read_metrics

NUM_SENTENCES = 100  # of a test set: as many as a few steps of training are worth
# task: steps, the metric by which a model beats a copy of its source so early; others take the fewest
LEARNED = {"webnlg": (800, "rouge2"), "xqg": (300, "rougel")}
FEWEST = (60, None)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} (real corpora, in no clone) is not here")
@pytest.mark.parametrize("task", SAMPLES)
def test_from_free_data_to_the_table(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, pieces, floors = SAMPLES[task]
    steps, beaten_by = LEARNED.get(task, FEWEST)
    recipe = recipe_path(f"tasks/{task}_sample")
    data = load_recipe(recipe).vocabulary.parent
    monkeypatch.chdir(tmp_path)
    must("data", "prepare", task, SHARED / folder, "--vocab-size", pieces, "--out", data)
    for path in (tmp_path / data / "text").iterdir():
        lines(path, path.read_text(encoding="utf-8").splitlines()[:NUM_SENTENCES])

    must("train", recipe, "--out", "run", f"training.max_steps={steps}", f"training.save_every={steps}")
    losses = [record["loss"] for record in read_metrics(tmp_path / "run") if record["kind"] == "train"]
    assert losses[-1] < 0.95 * losses[0]

    (model,) = (tmp_path / "run" / "checkpoints").iterdir()
    command = ("evaluate", "--suite", task, "--data", data, "--out", "results", "--beam", 2, "--processes", 2, "--json")
    content = json.loads(must(*command, "--systems", ",".join([f"tiny={model}", *systems(floors, data)])))
    for table in content["tables"]:
        cells = {row["system"]: row["cells"] for row in table["rows"]}
        assert all(cell is not None for cell in cells["tiny"])
        intervals = {row["system"]: row["intervals"] for row in table["rows"]}
        for cell, (low, high) in zip(cells["tiny"], intervals["tiny"], strict=True):
            assert low <= cell <= high
        if beaten_by is not None:
            column = [title.lower().replace("-", "") for title in table["columns"]].index(beaten_by)
            assert cells["tiny"][column] > cells["copy"][column]

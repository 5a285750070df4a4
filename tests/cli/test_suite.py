"""`deltalm evaluate --suite` and `--task` by the command line, on a prepared task and a model of random weights."""

import json
from pathlib import Path

import pytest
import torch
from command import deltalm, must
from published_tasks import small_vocabulary, webnlg

from deltalm_ds.checkpoints.directory import save_model
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.vocabulary import Vocabulary

SUITE = ("evaluate", "--suite", "webnlg", "--data", "webnlg", "--out", "results", "--max-length", "8", "--beam", "2")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared task, and a model for its vocabulary."""
    directory = tmp_path_factory.mktemp("world")
    webnlg(directory / "published", {"train": "Tom", "dev": "Tom"})
    vocabulary = small_vocabulary(directory)
    must("data", "prepare", "webnlg", directory / "published", "--vocab", vocabulary, "--out", directory / "webnlg")
    own = Vocabulary.load(directory / "webnlg" / "vocabulary")
    config = DeltaLMConfig.preset("tiny", vocabulary_size=own.num_tokens, hidden_size=32, ffn_size=32, max_positions=64)
    torch.manual_seed(0)
    save_model(directory / "model", config, DeltaLM(config).state_dict(), own, {"made": "here"})
    return directory


@pytest.fixture(autouse=True)
def in_world(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)


def test_a_table_of_systems_whose_outputs_are_kept(world: Path) -> None:
    first = deltalm(*SUITE, "--systems", "ours=model,copy,lead,memory:webnlg", "--json")
    assert first.code == 0, first.stderr
    assert "Note: 1 of 2 sources of dev.en-en are in the training data." in first.stderr
    content = json.loads(first.stdout)
    (table,) = content["tables"]
    assert table["columns"] == ["ROUGE-1", "ROUGE-2", "ROUGE-L"]
    cells = {row["system"]: row["cells"] for row in table["rows"]}
    assert cells["DeltaLM (published)"] == [59.2, 39.4, 52.2]
    assert list(cells)[1:] == ["ours", "copy", "lead", "memory:webnlg"]
    assert cells["memory:webnlg"][0] > cells["copy"][0] >= 0  # it has seen one of the two texts
    assert [row["p"][0] is None for row in table["rows"]] == [True, True, False, False, False]  # ours is the baseline
    kept = sorted((world / "results" / "outputs").iterdir())
    assert len(kept) == 4  # of model and memory, two directions each
    times = [path.stat().st_mtime_ns for path in kept]
    lines = (world / "results" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["provenance"] for line in lines if '"system": "ours"' in line] == [{"made": "here"}] * 2
    text = must(*SUITE, "--systems", "ours=model,memory:webnlg", "--baseline", "memory:webnlg")
    assert "WebNLG, validation sets" in text and "rouge1: " in text
    assert "* differs from memory:webnlg, p < 0.05 (paired bootstrap" in text
    assert [path.stat().st_mtime_ns for path in kept] == times
    (world / "model" / "extra").write_text("another content")  # another model, as far as one can know
    must(*SUITE, "--systems", "ours=model")
    assert len(list((world / "results" / "outputs").iterdir())) == 6


def test_several_processes_make_the_same(world: Path) -> None:
    command = (*SUITE[:5], "--max-length", "8", "--beam", "2", "--systems", "ours=model,pivot:model+copy+model")
    tables = [must(*command, "--out", f"by_{n}", "--processes", n) for n in (1, 2)]
    assert tables[0] == tables[1]
    first, second = ({p.name: p.read_text() for p in (world / f"by_{n}").rglob("*.hyp")} for n in (1, 2))
    assert first == second and set(first) == {"en-en.hyp", "en-ru.hyp"}


def test_the_table_for_a_paper(world: Path) -> None:
    latex = must(*SUITE, "--systems", "copy", "--table", "latex")
    assert latex.startswith(r"\begin{table}") and "DeltaLM (published) & 59.20 & 39.40 & 52.20" in latex
    assert "| copy | " in must(*SUITE, "--systems", "copy", "--table", "markdown")


def test_a_task_gives_evaluate_its_split_and_metrics() -> None:
    command = ("evaluate", "model", "--task", "webnlg", "--data", "webnlg", "--max-length", "8", "--beam", "1")
    scores = json.loads(must(*command, "--json"))
    assert [score["direction"] for score in scores["directions"]] == ["en-en", "en-ru"]
    assert set(scores["metrics"]) == {"rouge1", "rouge2", "rougel"}
    assert scores["directions"][0]["num_sentences"] == 2
    other = json.loads(must(*command, "--metrics", "chrf", "--directions", "en-ru", "--json"))
    assert (set(other["metrics"]), len(other["directions"])) == ({"chrf"}, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (*SUITE, "--systems", "copy", "--table", "latexx"),
            "There is no table format 'latexx', the nearest is 'latex'",
        ),
        ((*SUITE, "--systems", "nowhere"), "There is no system 'nowhere': name a model directory"),
        ((*SUITE, "--systems", "copy", "--baseline", "cop"), "There is no system 'cop' here, the nearest is 'copy'"),
        (("evaluate", "model", "--processes", "2"), "--processes means nothing without --suite"),
        (SUITE, "--suite goes with --systems, --data and --out"),
        (("evaluate", "model", "--systems", "copy"), "--suite goes with --systems"),
        (("evaluate", "model", "--task", "xqg", "--data", "webnlg"), "webnlg was prepared for webnlg, not for xqg"),
        (("evaluate", "model", "--task", "xqgg", "--data", "webnlg"), "There is no task 'xqgg', the nearest is 'xqg'"),
        (("evaluate", "model", "--task", "xqg"), "Name the directory that `deltalm data prepare xqg` wrote"),
        (("evaluate", "model", "--task", "xqg", "--data", "model"), "model/task.json does not exist"),
    ],
)
def test_what_does_not_go_together(arguments: tuple[str, ...], message: str) -> None:
    outcome = deltalm(*arguments)
    assert outcome.code == 2
    assert message in outcome.stderr

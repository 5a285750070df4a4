"""The whole way with the commands of the README, on a small part of the CLDR corpus: a model that really learned."""

import json
from pathlib import Path

import pytest
import yaml

from deltalm_ds.cli import app
from deltalm_ds.runs.metrics import read_metrics

RECIPE = {
    "name": "small",
    "vocabulary": "vocabulary",
    "model": {"preset": "tiny", "dropout": 0.0},
    "data": {"train": [{"path": "shards/train"}], "max_source_tokens": 64, "max_target_tokens": 64},
    "sampling": {"temperature_start": 1.0, "temperature_end": 5.0, "change_steps": 60},
    "batch": {"tokens_per_step": 1500, "micro_batch_tokens": 1500},
    "schedule": {"kind": "inverse_sqrt", "peak_lr": 4e-3, "warmup_steps": 40},
    "validation": {"shards": "shards/dev", "text": "corpus", "max_sentences": 10},
    "training": {"max_steps": 120, "save_every": 60, "log_every": 20, "matmul_precision": "medium"},
}


def deltalm(*arguments: str, capture: pytest.CaptureFixture[str]) -> str:
    """Run a command in this process; its standard output."""
    capture.readouterr()
    with pytest.raises(SystemExit) as end:
        app(list(arguments))
    output, messages = capture.readouterr()
    assert end.value.code in (0, None), messages
    return output


@pytest.fixture
def in_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return tmp_path


def test_from_text_to_a_served_translation(in_workspace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pairs = ["en-fr", "en-de"]
    deltalm("data", "cldr", "--out", "corpus", "--scale", "0.05", capture=capfd)
    texts = [
        argument for file in sorted(in_workspace.glob("corpus/train.en-[fd]*")) for argument in ("--input", str(file))
    ]
    sizes = ["--size", "600", "--character-coverage", "1.0", "--languages", "en,fr,de"]
    deltalm("vocab", "train", *texts, *sizes, "--out", "vocabulary", capture=capfd)
    for split in ("train", "dev"):
        files = [f"{pair}=corpus/{split}.{pair}.en,corpus/{split}.{pair}.{pair[-2:]}" for pair in pairs]
        parallel = [argument for file in files for argument in ("--parallel", file)]
        deltalm("data", "build", "--vocab", "vocabulary", "--out", f"shards/{split}", *parallel, capture=capfd)
    for path in in_workspace.glob("corpus/dev.*"):  # the validation text: only the two pairs that are trained
        if not any(pair in path.name for pair in pairs):
            path.unlink()

    deltalm("train", "recipe.yaml", "--out", "run", "--ranks", "2", capture=capfd)
    metrics = read_metrics(in_workspace / "run")
    losses = [record["loss"] for record in metrics if record["kind"] == "train"]
    validations = [record for record in metrics if record["kind"] == "validation"]
    assert losses[-1] < 0.7 * losses[0]
    assert [record["step"] for record in validations] == [60, 120]
    assert set(validations[-1]["bleu_of"]) == {"en-fr", "fr-en", "en-de", "de-en"}
    assert len(metrics[0]["nll_of"]) == len(metrics[0]["probability"]) == 4

    deltalm("average", "run", "--last", "2", "--out", "model", capture=capfd)
    command = [
        "evaluate",
        "model",
        "--data",
        "corpus",
        "--split",
        "dev",
        "--directions",
        "en-de",
        "--beam",
        "2",
        "--json",
    ]
    scores = json.loads(deltalm(*command, capture=capfd))
    assert scores["directions"][0]["bleu"] > 3  # copying the source scores below 1 here
    deltalm("export", "model", "--out", "served", "--precision", "float32", capture=capfd)
    (in_workspace / "lines").write_text("5 hours\n\n12 minutes ago\n")
    translations = [
        deltalm("translate", model, "--input", "lines", "--target-lang", "de", "--beam", "2", capture=capfd)
        for model in ("model", "served")
    ]
    assert translations[0] == translations[1]
    assert [bool(line) for line in translations[0].split("\n")] == [True, False, True, False]
    deltalm("report", "run", capture=capfd)
    assert "<svg" in (in_workspace / "run" / "report.html").read_text()

"""The command line in this process, and a small world of files for it to work on."""

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import yaml

from deltalm_ds.checkpoints.directory import save_model
from deltalm_ds.cli import main
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.vocabulary import Vocabulary

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUM_LINES = 40
NUM_PIECES = 28


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: its exit code and what it wrote."""

    code: int
    stdout: str
    stderr: str

    @property
    def messages(self) -> list[str]:
        """The sentences on stderr that tell a failure; progress and notes are left out."""
        return [line for line in self.stderr.splitlines() if line.startswith("deltalm: ")]


def deltalm(*arguments: object, stdin: bytes = b"") -> Outcome:
    """Run `deltalm` through its real entry point; whatever would be a traceback is raised."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["deltalm", *map(str, arguments)]),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin))),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


def must(*arguments: object, stdin: bytes = b"") -> str:
    """The standard output of a command that works."""
    outcome = deltalm(*arguments, stdin=stdin)
    assert outcome.code == 0, outcome.stderr
    return outcome.stdout


def make_world(directory: Path) -> None:
    """Write `text.en`, `text.de`, `vocabulary`, `shards`, `model` (random weights) and `recipe.yaml`."""
    lines = [" ".join(WORDS[(number + shift) % 10] for shift in range(1 + number % 7)) for number in range(NUM_LINES)]
    for language in ("en", "de"):
        (directory / f"text.{language}").write_text("".join(f"{line}\n" for line in lines))
    texts = directory / "text.en", directory / "text.de"
    settings = "--size", NUM_PIECES, "--sentinels", 2, "--languages", "en,de"
    must("vocab", "train", "--input", texts[0], *settings, "--out", directory / "vocabulary")
    pair = f"en-de={texts[0]},{texts[1]}"
    must("data", "build", "--vocab", directory / "vocabulary", "--out", directory / "shards", "--parallel", pair)
    vocabulary = Vocabulary.load(directory / "vocabulary")
    config = DeltaLMConfig.preset("tiny", vocabulary_size=vocabulary.num_tokens, max_positions=40)
    torch.manual_seed(0)
    # weights as large as these make outputs that differ from line to line
    weights = {
        name: 4 * tensor if tensor.ndim == 2 else tensor for name, tensor in DeltaLM(config).state_dict().items()
    }
    save_model(directory / "model", config, weights, vocabulary, {})
    recipe = {
        "name": "world",
        "vocabulary": str(directory / "vocabulary"),
        "model": {"preset": "tiny", "hidden_size": 32, "ffn_size": 64, "max_positions": 40},
        "data": {"train": [{"path": str(directory / "shards")}], "max_source_tokens": 40, "max_target_tokens": 40},
        "batch": {"tokens_per_step": 200, "micro_batch_tokens": 200},
        "schedule": {"peak_lr": 1e-3, "warmup_steps": 2},
        "training": {"max_steps": 4, "save_every": 2},
    }
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def snapshot(directory: Path) -> dict[str, bytes | None]:
    """Every path below a directory with its content; None for directories."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in directory.rglob("*")
    }

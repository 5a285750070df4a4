"""A tiny experiment with everything on, the processes that train it, and what must come again when it is repeated."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from deltalm_ds.data.manifest import CorpusManifest, Manifest, token_type
from deltalm_ds.data.shards import ragged_batch, write_corpus
from deltalm_ds.runs.checkpoints import checkpoint_directories, read_state
from deltalm_ds.runs.events import read_events
from deltalm_ds.runs.metrics import read_metrics
from deltalm_ds.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[2]
TRAIN = "from deltalm_ds.cli import main; main()"
NUM_PIECES = 60
ROWS = {"train": {"en-de": 400, "en-fr": 100}, "dev": {"en-de": 20, "en-fr": 10}}
LONGEST_END_S = 300.0
COMPARED = {
    "train": (
        "loss",
        "nll",
        "nll_of",
        "learning_rate",
        "gradient_norm",
        "skipped_updates",
        "temperature",
        "probability",
    ),
    "validation": ("loss", "nll"),
}


def write_experiment(directory: Path, **sections: dict[str, Any]) -> Path:
    """Write vocabulary, shards and a recipe of three objectives; returns the recipe.

    Args:
        directory: where everything goes.
        sections: of the recipe, to merge into its own.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "dict.txt").write_text("".join(f"piece{i} 1\n" for i in range(NUM_PIECES)))
    vocabulary = Vocabulary.from_dict(directory / "dict.txt", num_sentinels=10, languages=("de", "en", "fr"))
    vocabulary.save(directory / "vocabulary")
    for seed, (split, corpora) in enumerate(ROWS.items()):
        _write_shards(directory / split, vocabulary, corpora, np.random.default_rng(seed))
    objectives = ("seq2seq", "span_corruption", "translation_span_corruption")
    recipe: dict[str, Any] = {
        "name": "tiny",
        "vocabulary": str(directory / "vocabulary"),
        "deepspeed": "fp32_zero2",
        "model": {"preset": "tiny", "hidden_size": 32, "ffn_size": 64, "max_positions": 32},
        "data": {
            "train": [{"path": str(directory / "train"), "objective": objective} for objective in objectives],
            "max_source_tokens": 32,
            "max_target_tokens": 32,
        },
        "sampling": {"rise_steps": 100},
        "batch": {"tokens_per_step": 200, "micro_batch_tokens": 160},
        "optimizer": {"weight_decay": 0.01},
        "schedule": {"peak_lr": 3e-3, "warmup_steps": 20},
        "validation": {"shards": str(directory / "dev")},
        "training": {"max_steps": 100, "save_every": 10, "log_every": 1, "keep_last": 3, "clip_norm": 0.5},
    }
    for name, values in sections.items():
        recipe[name] |= values
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def _write_shards(directory: Path, vocabulary: Vocabulary, corpora: dict[str, int], rng: np.random.Generator) -> None:
    """Targets are sources, reversed and shifted by one id."""
    directory.mkdir(exist_ok=True)
    written = []
    for pair, num_pairs in corpora.items():
        lengths = rng.integers(1, 12, num_pairs)
        sources = [rng.integers(4, 3 + NUM_PIECES, length) for length in lengths]
        sides = {
            "source": (np.concatenate(sources), lengths),
            "target": (np.concatenate([source[::-1] + 1 for source in sources]), lengths),
        }
        manifest = Manifest(vocabulary.hash, vocabulary.num_tokens)
        corpus = CorpusManifest(pair, "parallel", tuple(pair.split("-")))
        batch = ragged_batch(sides, token_type(vocabulary.num_tokens))
        written.append(write_corpus(directory, manifest, corpus, [batch]))
    Manifest(vocabulary.hash, vocabulary.num_tokens, tuple(written)).write(directory)


class Training:
    """A start of a run by `deltalm train`, with what can be seen of it; `log`: beside the run where it is not given."""

    def __init__(self, recipe: Path, run: Path, ranks: int, *overrides: str, log: Path | None = None) -> None:
        self.run = run
        self._starts = self._num_started()
        self._log = open(log or run.with_name(f"{run.name}.log"), "ab")  # noqa: SIM115 (the process has it, too)
        self._log_begins = self._log.tell()
        arguments = ["train", str(recipe), "--out", str(run), "--ranks", str(ranks), "--again", *overrides]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.starter = psutil.Popen(
            [sys.executable, "-c", TRAIN, *arguments], env=environment, stdout=self._log, stderr=self._log
        )

    def _num_started(self) -> int:
        return sum(event["kind"] == "started" for event in read_events(self.run))

    @property
    def has_started(self) -> bool:
        """Whether it has made its first step."""
        return self._num_started() > self._starts

    @property
    def messages(self) -> str:
        """What it said."""
        return Path(self._log.name).read_bytes()[self._log_begins :].decode(errors="replace")

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Those that live, by what they are: `starter`, `launcher`, `ranks`."""
        found: dict[str, list[psutil.Process]] = {"starter": [], "launcher": [], "ranks": []}
        for process, command in _processes_with(str(self.run.absolute())):
            is_launcher = "deepspeed.launcher.launch" in command
            is_rank = not is_launcher and "deltalm_ds.training.train" in command
            found["launcher" if is_launcher else "ranks" if is_rank else "starter"].append(process)
        return found

    def await_that(self, condition: Callable[[], bool], seconds: float = LONGEST_END_S) -> bool:
        """Wait for a condition; False if the start ends before it holds."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if condition():
                return True
            if self.starter.poll() is not None:
                return condition()
            time.sleep(0.005)
        raise AssertionError(f"{self.run}: waited {seconds:.0f} s in vain: {self.messages[-3000:]}")

    def await_end(self, seconds: float = LONGEST_END_S) -> int:
        """The exit code, once no process of this run is left."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            code = self.starter.poll()
            if code is not None and not any(self.processes().values()):
                self._log.close()
                return code
            time.sleep(0.1)
        raise AssertionError(f"{self.run}: processes are left: {self.processes()}; {self.messages[-3000:]}")


def _processes_with(argument: str) -> Iterator[tuple[psutil.Process, list[str]]]:
    for process in psutil.process_iter(["cmdline", "status"]):
        command = process.info["cmdline"] or []
        if argument in command and process.info["status"] != psutil.STATUS_ZOMBIE:
            yield process, command


def has_ended(run: Path, last_step: int) -> bool:
    """Whether a run has the checkpoint of its last step."""
    names = [path.name for path in checkpoint_directories(run)]
    return bool(names) and names[-1] == f"step_{last_step:08d}"


def records(run: Path, kind: str) -> dict[int, dict[str, Any]]:
    """What must come again, by step."""
    return {
        record["step"]: {name: record.get(name) for name in COMPARED[kind]}
        for record in read_metrics(run)
        if record["kind"] == kind
    }


def differences(run: Path, expected: Path, last_step: int) -> list[str]:
    """Where a run differs from one never disturbed: in records of any step, or the files of the last weights."""
    found = []
    for kind in COMPARED:
        ours, theirs = records(run, kind), records(expected, kind)
        found += [f"{kind}: no record of step {step}" for step in sorted(theirs.keys() - ours.keys())]
        found += [f"{kind}, step {step}: {ours[step]}, not {one}" for step, one in theirs.items() if ours[step] != one]
    if len(records(run, "train")) != last_step:
        found.append(f"{len(records(run, 'train'))} records of {last_step} steps")
    states = [read_state(checkpoint_directories(one)[-1]) for one in (run, expected)]
    sums, others = ({name: f.sha256 for name, f in s.files.items() if name.endswith(".safetensors")} for s in states)
    return found + [f"{name} differs" for name in sorted(others) if sums.get(name) != others[name]]


class Outcomes:
    """What has happened, a line of JSON each: a script that is started again goes on behind the last one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def add(self, **values: Any) -> None:
        """Append and show one."""
        self.lines.append(values)
        line = json.dumps(values)
        with open(self._path, "a") as file:
            file.write(line + "\n")
        print(line, file=sys.stderr, flush=True)

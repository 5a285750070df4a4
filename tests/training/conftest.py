"""Tiny shards of a task that can be learned, recipes for them, and processes that train."""

import json
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from jobs import Job

from deltalm_ds.data.manifest import CorpusManifest, Manifest, token_type
from deltalm_ds.data.shards import ragged_batch, write_corpus
from deltalm_ds.data_tools import train_vocabulary
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.training import checks
from deltalm_ds.training.prepare import prepare_run
from deltalm_ds.vocabulary import Vocabulary
from tests.ranks_here import exit_codes, places, start_rank

NUM_PIECES, NUM_PAIRS = 60, 400
RANKS_TIMEOUT_S = 300


@pytest.fixture(scope="module")
def with_slow(request):
    """Whether slow tests of the module are among those that are run: what these alone need is made for them alone."""
    items = [item for item in request.session.items if item.path == request.path]
    return any(item.get_closest_marker("slow") for item in items)


def write_shards(directory, vocabulary, sides):
    """A data set of one corpus; sides: the ids of `source` and `target`, end to end, with their lengths."""
    manifest = Manifest(vocabulary.hash, vocabulary.num_tokens)
    corpus = CorpusManifest("en-de", "parallel", ("en", "de"))
    directory.mkdir()
    batch = ragged_batch(sides, token_type(vocabulary.num_tokens))
    written = write_corpus(directory, manifest, corpus, [batch])
    Manifest(vocabulary.hash, vocabulary.num_tokens, (written,)).write(directory)


@pytest.fixture(scope="session")
def training_data(tmp_path_factory):
    """A directory with `vocab`, `train` and `dev`: the target is the source, reversed and shifted by one id."""
    directory = tmp_path_factory.mktemp("data")
    (directory / "dict.txt").write_text("".join(f"piece{i} 1\n" for i in range(NUM_PIECES)))
    vocabulary = Vocabulary.from_dict(directory / "dict.txt", num_sentinels=10, languages=("de", "en"))
    vocabulary.save(directory / "vocab")
    for number, (split, num_pairs) in enumerate((("train", NUM_PAIRS), ("dev", 30))):
        generator = np.random.default_rng(number)
        lengths = generator.integers(1, 12, num_pairs)
        sources = [generator.integers(4, 3 + NUM_PIECES, length) for length in lengths]
        sides = {
            "source": (np.concatenate(sources), lengths),
            "target": (np.concatenate([source[::-1] + 1 for source in sources]), lengths),
        }
        write_shards(directory / split, vocabulary, sides)
    return directory


@pytest.fixture(scope="session")
def text_changes(tmp_path_factory):
    """What makes of `make_recipe` a recipe on text, by which its validation is scored: targets are sources reversed."""
    directory = tmp_path_factory.mktemp("text")
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    draw = np.random.default_rng(5)
    sources = [" ".join(draw.choice(words, draw.integers(1, 6))) for _ in range(300)]
    sides = {"en": sources, "de": [" ".join(reversed(line.split())) for line in sources]}
    for language, lines in sides.items():
        (directory / f"dev.en-de.{language}").write_text("".join(f"{line}\n" for line in lines[:21]))
    vocabulary = train_vocabulary.train(
        [directory / "dev.en-de.en"], directory / "vocab", size=28, num_sentinels=2, languages=("en", "de")
    )
    rows = {"source": vocabulary.encode_rows(sides["en"]), "target": vocabulary.encode_rows(sides["de"])}
    ids = {side: (of_side.values, of_side.lengths) for side, of_side in rows.items()}
    write_shards(directory / "shards", vocabulary, ids)
    shards = str(directory / "shards")
    return {
        "vocabulary": str(directory / "vocab"),
        "data": {"train": [{"path": shards}]},
        "validation": {"shards": shards, "text": str(directory), "metrics": ["bleu", "chrf"], "max_length": 24},
    }


@pytest.fixture(scope="session")
def make_recipe(training_data):
    """A recipe of twenty steps; changes are sections to merge in."""

    def make(**changes):
        content = {
            "name": "test",
            "vocabulary": str(training_data / "vocab"),
            "model": {
                "preset": "tiny",
                "hidden_size": 32,
                "ffn_size": 64,
                "max_positions": 32,
                "dropout": 0.0,
            },
            "data": {
                "train": [{"path": str(training_data / "train")}],
                "max_source_tokens": 32,
                "max_target_tokens": 32,
            },
            "batch": {"tokens_per_step": 300, "micro_batch_tokens": 400},
            "optimizer": {"weight_decay": 0.01},
            "schedule": {"peak_lr": 3e-3, "warmup_steps": 5},
            "validation": {"shards": str(training_data / "dev")},
            "training": {"max_steps": 20, "save_every": 10, "log_every": 1, "clip_norm": 0.5},
        }
        for section, values in changes.items():
            content[section] = {**content.get(section, {}), **values} if isinstance(values, dict) else values
        return Recipe.model_validate(content)

    return make


@pytest.fixture(scope="session")
def make_run(make_recipe):
    """A prepared run directory."""

    def make(run: Path, **changes):
        with mock.patch.object(checks, "check_precision"):  # ranks.py runs fp16 on a processor, where it is refused
            prepare_run(make_recipe(**changes), run)
        return run

    return make


@pytest.fixture(scope="session")
def run_on_ranks():
    """Run jobs on `num_ranks` processes; returns what became of each, on which all ranks must agree."""

    def run(
        directory: Path, jobs: list[Job], num_ranks: int, variables: dict[str, str] | None = None
    ) -> list[int | str]:
        jobs_file = directory / f"jobs_on_{num_ranks}.json"
        jobs_file.write_text(json.dumps([asdict(job) for job in jobs], default=str))
        logs = [Path(f"{jobs_file}.log{rank}") for rank in range(num_ranks)]
        ranks = []
        for place, log in zip(places(num_ranks), logs, strict=True):
            with open(log, "w") as file:
                arguments = [Path(__file__).with_name("ranks.py"), jobs_file]
                ranks.append(start_rank(arguments, place | (variables or {}), stdout=file, stderr=file))
        codes = exit_codes(ranks, RANKS_TIMEOUT_S)
        assert not any(codes), "\n".join(log.read_text()[-6000:] for log in logs)
        outcomes = [json.loads(Path(f"{jobs_file}.{rank}").read_text()) for rank in range(num_ranks)]
        assert all(outcome == outcomes[0] for outcome in outcomes)
        return outcomes[0]

    return run

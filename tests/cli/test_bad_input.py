"""Whatever a user may give wrongly: one clear sentence, the right exit code, nothing half-written, no traceback."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import yaml
from command import NUM_LINES, NUM_PIECES, WORDS, deltalm, make_world, must, snapshot

from deltalm_ds.cli import main
from deltalm_ds.data.manifest import MANIFEST

USAGE, DAMAGED, CHECK = 2, 3, 4  # the documented exit codes of deltalm_ds.errors


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    make_world(directory)
    return directory


@pytest.fixture
def world(pristine, tmp_path, monkeypatch):
    """A copy of the small world, as the current directory: what a test damages stays its own."""
    directory = tmp_path / "world"
    shutil.copytree(pristine, directory)
    recipe = (directory / "recipe.yaml").read_text().replace(str(pristine), str(directory))
    (directory / "recipe.yaml").write_text(recipe)
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture
def no_training(monkeypatch):
    """Bad input must be found before the launcher is started."""

    def started(*_):
        raise AssertionError("training was started")

    monkeypatch.setattr("deltalm_ds.launch.local.train_on_this_machine", started)


def refused(directory, *arguments, code=USAGE, stdin=b""):
    """The one sentence of a command that must fail and leave everything as it was."""
    before = snapshot(directory)
    outcome = deltalm(*arguments, stdin=stdin)
    assert outcome.code == code, outcome
    assert outcome.stdout == ""
    assert len(outcome.messages) == 1, outcome.stderr
    # faults of a recipe are a list below the sentence; otherwise the sentence is the last that is written
    sentence = outcome.stderr[outcome.stderr.index("deltalm: ") :].rstrip("\n")
    assert "Traceback" not in outcome.stderr
    assert snapshot(directory) == before
    return sentence


# --- recipes ---


def change_recipe(world, **sections):
    recipe = yaml.safe_load((world / "recipe.yaml").read_text())
    (world / "recipe.yaml").write_text(yaml.safe_dump(recipe | sections))


@pytest.mark.parametrize(
    "verb", [("plan", "recipe.yaml"), ("train", "recipe.yaml", "--out", "run")], ids=lambda v: v[0]
)
class TestRecipes:
    """`plan` and `train` check the same."""

    @pytest.fixture(autouse=True)
    def _no_training(self, no_training):
        pass

    def test_all_unknown_and_contradictory_keys_at_once(self, world, verb):
        change_recipe(world, optimiser={}, training={"max_step": 4, "max_steps": 4, "save_every": 0})
        sentence = refused(world, *verb)
        assert "3 fault(s)" in sentence
        assert "optimiser: there is no such key; the nearest is 'optimizer'" in sentence
        assert "training.max_step: there is no such key; the nearest is 'max_steps'" in sentence
        assert "training.save_every: Input should be greater than 0" in sentence

    def test_contradiction_of_sections(self, world, verb):
        sentence = refused(world, *verb, "batch.micro_batch_tokens=79", "model=null")
        assert "micro_batch_tokens=79 cannot hold one pair" in sentence
        assert "either initial_model or model" in sentence

    def test_deepspeed_configuration_that_contradicts_the_recipe(self, world, verb):
        config = {"zero_optimization": {"stage": 0}, "gradient_clipping": 7.0, "optimizer": {}, "train_batch_size": 8}
        (world / "deepspeed.json").write_text(json.dumps(config))
        sentence = refused(world, *verb, "deepspeed=deepspeed.json")
        for fault in (
            "zero_optimization.stage",
            "gradient_clipping: is 7.0",
            "optimizer: belongs",
            "train_batch_size:",
        ):
            assert fault in sentence

    def test_missing_deepspeed_configuration(self, world, verb):
        assert "nearest is 'bf16_zero2'" in refused(world, *verb, "deepspeed=bf16_zero22")
        assert "deepspeed.json does not exist" in refused(world, *verb, "deepspeed=deepspeed.json")

    @pytest.mark.parametrize("override", ["training.max_steps", "data.train.5.weight=2", "name.x=1", "seed=[1"])
    def test_overrides(self, world, verb, override):
        assert repr(override) in refused(world, *verb, override)

    def test_vocabulary_that_does_not_match_the_shards(self, world, verb):
        must("vocab", "import", "--spm", "vocabulary/spm.model", "--languages", "en,fr", "--out", "other")
        assert "shards was built with the vocabulary" in refused(world, *verb, "vocabulary=other", code=DAMAGED)

    def test_altered_vocabulary(self, world, verb):
        path = world / "vocabulary" / "vocabulary.json"
        path.write_text(path.read_text().replace("__de__", "__fr__"))
        assert "vocabulary.json was altered" in refused(world, *verb, code=DAMAGED)

    def test_missing_files(self, world, verb):
        assert "nowhere is not a shard data set" in refused(world, *verb, "data.train.0.path=nowhere")
        assert "nowhere/vocabulary.json does not exist" in refused(world, *verb, "vocabulary=nowhere")
        assert "nowhere/vocabulary.json does not exist" in refused(world, *verb, "initial_model=nowhere", "model=null")

    def test_truncated_shard(self, world, verb):
        shard = next((world / "shards").glob("*.arrow"))
        os.truncate(shard, shard.stat().st_size - 1)
        assert f"{shard} has" in refused(world, *verb, code=DAMAGED)
        shard.unlink()
        assert f"{shard} is missing" in refused(world, *verb, code=DAMAGED)

    def test_validation_text_in_a_language_without_a_tag(self, world, verb):
        (world / "text").mkdir()
        for language in ("en", "fr"):
            shutil.copy(world / "text.en", world / "text" / f"dev.en-fr.{language}")
        change_recipe(world, validation={"shards": "shards", "text": "text"})
        assert "no tag for the language 'fr'" in refused(world, *verb)

    def test_fp16_without_a_gpu(self, world, verb):
        assert "fp16 needs a GPU, and there is none here" in refused(world, *verb, "deepspeed=fp16_zero1")

    def test_batches_so_small_that_steps_are_without_sequences(self, world, verb):
        sentence = refused(world, *verb, "batch.tokens_per_step=1", "training.max_steps=1000")
        assert "steps looked at have no sequence to learn from" in sentence
        assert "raise batch.tokens_per_step, now 1" in sentence

    def test_altered_manifest(self, world, verb):
        path = world / "shards" / MANIFEST
        path.write_text(path.read_text().replace(f'"rows": {NUM_LINES}', f'"rows": {NUM_LINES + 1}'))
        assert "was altered" in refused(world, *verb, code=DAMAGED)
        path.write_text("{")
        assert "is damaged" in refused(world, *verb, code=DAMAGED)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: [", b"- a\n", b""])
def test_recipe_that_is_none(world, content):
    (world / "bad.yaml").write_bytes(content)
    assert "bad.yaml" in refused(world, "plan", "bad.yaml")


def test_missing_recipe(world):
    assert "nowhere.yaml cannot be read" in refused(world, "plan", "nowhere.yaml")


def test_run_directory_of_another_recipe(world, monkeypatch):
    monkeypatch.setattr("deltalm_ds.launch.local.train_on_this_machine", lambda *_: 0)
    must("train", "recipe.yaml", "--out", "run")
    assert "another recipe (seed was 1, is 2)" in refused(world, "train", "recipe.yaml", "--out", "run", "seed=2")


# --- text ---


def build(*corpora):
    return "data", "build", "--vocab", "vocabulary", "--out", "new", *corpora


def test_parallel_files_of_different_length(world):
    (world / "short.de").write_text("one\ntwo\n")
    sentence = refused(world, *build("--parallel", "en-de=text.en,short.de"))
    assert f"text.en has {NUM_LINES} lines but short.de has 2" in sentence


@pytest.mark.parametrize("processes", [1, 2])
def test_invalid_utf8(world, processes):
    (world / "bad.de").write_bytes("".join(f"{word}\n" for word in WORDS[:3]).encode() + b"caf\xe9\n")
    sentence = refused(world, *build("--mono", "de=bad.de", "--processes", processes))
    assert "bad.de, line 4: not valid UTF-8" in sentence
    assert "bad.de, line 4" in refused(
        world, "vocab", "train", "--input", "bad.de", "--size", NUM_PIECES, "--out", "new"
    )
    assert "bad.de, line 4: not valid UTF-8" in refused(
        world, "translate", "model", "--target-lang", "de", "--input", "bad.de"
    )
    assert "standard input, line 1: not valid UTF-8" in refused(
        world, "translate", "model", "--target-lang", "de", stdin=b"\xff\n"
    )


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_empty_corpus(world, content):
    (world / "empty").write_text(content)
    outcome = deltalm(*build("--mono", "de=empty", "--mono", "en=text.en"))
    assert outcome.code == USAGE
    assert outcome.messages[-1].startswith("deltalm: Corpus de is empty")
    assert not (world / "new" / "manifest.json").exists()  # what was read of the other text is kept for the next try
    shutil.rmtree(world / "new")
    assert "no text in empty" in refused(
        world, "vocab", "train", "--input", "empty", "--size", NUM_PIECES, "--out", "new"
    )


def test_missing_text(world):
    assert "nowhere cannot be read: No such file" in refused(world, *build("--mono", "de=nowhere"))
    assert "nowhere/vocabulary.json" in refused(
        world, "data", "build", "--vocab", "nowhere", "--out", "new", "--mono", "de=text.de"
    )


def test_data_set_that_is_there_already(world):
    arguments = "data", "build", "--vocab", "vocabulary", "--out", "shards", "--mono", "de=text.de"
    assert "shards is a data set already" in refused(world, *arguments)


@pytest.mark.parametrize("policy", ["truncate", "drop"])
def test_overlong_sides_are_cut_or_left_out_and_counted(world, policy):
    longest = sorted(token_counts(world))[NUM_LINES // 2]
    arguments = "--mono", "en=text.en", "--max-tokens", longest, "--overlong", policy
    manifest = json.loads(must(*build(*arguments), "--json"))
    (corpus,) = manifest["corpora"]
    num_long = sum(length > longest for length in token_counts(world))
    assert 0 < num_long < NUM_LINES
    assert corpus["truncated"] == ({"source": num_long} if policy == "truncate" else {})
    assert corpus["dropped"] == ({"overlong": num_long} if policy == "drop" else {})
    assert corpus["rows"] == NUM_LINES - (num_long if policy == "drop" else 0)


def token_counts(world):
    """Of each line, by SentencePiece itself."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(world / "vocabulary" / "spm.model"))
    return [len(processor.encode(line)) for line in (world / "text.en").read_text().splitlines()]


def test_overlong_pairs_of_a_recipe_are_counted_by_the_plan(world):
    limits = "data.max_source_tokens=5", "data.max_target_tokens=5"
    plan = json.loads(must("plan", "recipe.yaml", *limits, "--json"))
    assert all(step["truncated"] > 0 and step["dropped"] == 0 for step in plan["steps"])
    plan = json.loads(must("plan", "recipe.yaml", *limits, "data.overlong=drop", "--json"))
    assert all(step["truncated"] == 0 and step["dropped"] > 0 for step in plan["steps"])


# --- damaged shards ---


def test_verify_finds_one_altered_bit(world):
    assert json.loads(must("data", "verify", "shards", "--json"))["faults"] == []
    shard = next((world / "shards").glob("*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    outcome = deltalm("data", "verify", "shards")
    assert outcome.code == DAMAGED
    assert f"{shard.relative_to(world)} was altered" in outcome.stdout  # the faults are the verb's result
    assert outcome.messages == [
        "deltalm: shards has faults (1): build the data set again, or go on without the damaged shards with --repair."
    ]


def test_shard_with_altered_structure(world):
    shard = next((world / "shards").glob("*.arrow"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-64] + b"\xff" * 64)
    assert f"{shard.name} is not a readable shard" in refused(world, "data", "stats", "shards", code=DAMAGED)


@pytest.mark.parametrize("verb", [("plan", "recipe.yaml"), ("train", "recipe.yaml", "--out", "run")])
def test_training_does_not_start_on_an_altered_shard(world, verb):
    shard = next((world / "shards").glob("*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert f"{shard.relative_to(world)} was altered" in refused(world, *verb, code=DAMAGED)


@pytest.mark.parametrize("verb", ["inspect", "verify", "stats"])
def test_directory_that_is_no_data_set(world, verb):
    assert "vocabulary is not a shard data set" in refused(world, "data", verb, "vocabulary")


# --- models ---


@pytest.mark.parametrize("directory", ["nowhere", "vocabulary", "recipe.yaml"])
def test_directory_that_is_no_model(world, directory):
    expected = f"{directory}/config.json does not exist: give a model directory"
    assert expected in refused(world, "translate", directory, "--target-lang", "de", stdin=b"one\n")
    assert expected in refused(world, "export", directory, "--out", "new")


def test_inspect_what_is_not_known(world):
    assert "nowhere does not exist" in refused(world, "inspect", "nowhere")
    assert "recipe.yaml is not a file of tensors" in refused(world, "inspect", "recipe.yaml", code=DAMAGED)
    (world / "empty").mkdir()
    assert "empty is nothing that deltalm knows" in refused(world, "inspect", "empty")


def test_damaged_model(world):
    path = world / "model" / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)
    for arguments in (("inspect", "model"), ("export", "model", "--out", "new")):
        assert "model.safetensors cannot be read" in refused(world, *arguments, code=DAMAGED)


def test_export_onto_an_existing_directory(world):
    assert "shards exists already" in refused(world, "export", "model", "--out", "shards")


def test_unknown_names(world):
    stdin = b"one\n"
    assert "to translate into (--target-lang): en, de" in refused(world, "translate", "model", stdin=stdin)
    assert "'xx'; it has: en, de" in refused(world, "translate", "model", "--target-lang", "xx", stdin=stdin)
    assert "no engine 'jax'" in refused(world, "translate", "model", "--engine", "jax", stdin=stdin)
    assert "model is for pytorch, not for ctranslate2" in refused(
        world, "translate", "model", "--engine", "ctranslate2", stdin=stdin
    )
    assert "no precision 'int2'" in refused(world, "export", "model", "--out", "new", "--precision", "int2")
    assert "no format 'jax' to export to" in refused(world, "export", "model", "--out", "new", "--to", "jax")
    assert "are not ids" in refused(world, "translate", "model", "--ids", stdin=b"4 five\n")
    assert "are not ids" in refused(world, "translate", "model", "--ids", stdin=b"4 100000\n")
    assert "are not ids" in refused(world, "translate", "model", "--ids", stdin=b"9" * 5000)


@pytest.mark.parametrize("option", [("--beam", 0), ("--n-best", 9), ("--min-length", 9, "--max-length", 8)], ids=str)
def test_impossible_search(world, option):
    refused(world, "translate", "model", "--target-lang", "de", *option, stdin=b"one\n")


def test_runs_without_what_is_needed(world):
    assert "has no checkpoints" in refused(world, "average", "model", "--out", "new")
    assert "has no metrics.jsonl" in refused(world, "report", "model")
    assert "has no test sets" in refused(world, "evaluate", "model", "--data", "shards")
    (world / "short").write_text("one\n")
    arguments = "evaluate", "--hypotheses", "short", "--reference", "text.de"
    assert f"short has 1 lines but text.de has {NUM_LINES}" in refused(world, *arguments)


def test_init_with_a_wrong_dictionary(world, fixtures):
    arguments = "init", "--from", fixtures / "official_base.pt", "--out", "new"
    (world / "dict.txt").write_text("".join(f"piece{number} 1\n" for number in range(300_000)))
    heads = "--heads", "4"
    assert "embedding rows, its dictionary 300,004 tokens" in refused(world, *arguments, *heads, "--dict", "dict.txt")
    assert "recipe.yaml, line 7: expected 'token count'" in refused(world, *arguments, "--dict", "recipe.yaml")
    assert "nowhere" in refused(world, *arguments, "--dict", "nowhere")
    assert "recipe.yaml is not a SentencePiece model" in refused(world, *arguments, "--spm", "recipe.yaml")
    assert "There is no vocabulary beside" in refused(world, *arguments)
    assert "has a vocabulary of its own" in refused(
        world, "init", "--from", "model", "--out", "new", "--dict", "dict.txt"
    )


def test_init_from_what_is_no_checkpoint(world):
    assert "nowhere.pt does not exist" in refused(world, "init", "--from", "nowhere.pt", "--out", "new")
    arguments = "init", "--from", "recipe.yaml", "--out", "new"
    assert "recipe.yaml is not a file of tensors" in refused(world, *arguments, code=DAMAGED)
    assert "has no file that could be the model" in refused(world, "init", "--from", "vocabulary", "--out", "new")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layer-map", "0,9"), "no encoder layer 9"),
        (("--layer-map", "0-1"), "no list of layers"),
        (("--encoder-layers", "7"), "no encoder layer 7"),
        (("--decoder", "vanilla"), "decoder is interleaved and cannot be made vanilla: leave out --decoder"),
        (("--positions", "50"), "allow it with --fit-positions extend"),
        (("--positions", "30", "--fit-positions", "extend"), "allow it with --fit-positions truncate"),
        (("--heads", "2"), "has 4 heads, not 2"),
        (("--copy-row", "__en__"), "is not NEW=OLD"),
        (("--copy-row", "__xx__=__de__"), "no token '__xx__' in the new vocabulary"),
        (("--vocab", "nowhere"), "nowhere/vocabulary.json does not exist"),
        (("--ffn-order", "wrong"), "'wrong' is not one of 'official', 'swapped'"),
        (("--out", "shards"), "shards exists already"),
    ],
    ids=str,
)
def test_init_with_wrong_options(world, options, message):
    before = snapshot(world)
    outcome = deltalm("init", "--from", "model", *(() if "--out" in options else ("--out", "new")), *options)
    assert (outcome.code, outcome.stdout) == (USAGE, "")
    assert message in " ".join(outcome.stderr.replace("│", " ").split())
    assert snapshot(world) == before


def test_export_that_does_not_hold_its_check(world, monkeypatch):
    monkeypatch.setattr("deltalm_ds.export.formats.ctranslate2._copy", lambda weight: weight.detach() * 1.5)
    refused(world, "export", "model", "--out", "new", code=CHECK)


# --- full disks ---


@pytest.mark.parametrize(
    "arguments",
    [
        build("--mono", "de=text.de"),
        ("vocab", "import", "--spm", "vocabulary/spm.model", "--out", "new"),
        ("data", "cldr", "--out", "new", "--scale", "0.001"),
        ("export", "model", "--out", "new"),
        ("init", "--from", "model", "--out", "new"),
        ("train", "recipe.yaml", "--out", "new"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_full_disk(world, arguments, monkeypatch, no_training):
    """Flushing to the disk is where the last write of anything fails."""

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    before = snapshot(world)
    outcome = deltalm(*arguments)
    assert (outcome.code, outcome.stdout) == (USAGE, "")
    (sentence,) = outcome.messages
    assert re.search(r"new.*(No space left on device|disk got full)|disk got full.*new", sentence)
    after = snapshot(world)
    assert after.pop("new", None) is None  # at most an empty directory
    assert after == before


def test_full_disk_under_the_weights(world, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpoint = world / "run" / "checkpoints" / "step_00000002"
    shutil.copytree(world / "model", checkpoint)
    (checkpoint / "state.json").write_text('{"step": 2, "updates": 2}')
    monkeypatch.setattr("deltalm_ds.checkpoints.directory.write_safetensors", full)
    sentence = refused(world, "average", "run", "--last", "1", "--out", "new")
    assert "new: No space left" in sentence


# --- usage ---


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-verb",),
        ("plan",),
        ("plan", "recipe.yaml", "--rank", "2"),
        ("plan", "recipe.yaml", "--ranks", "0"),
        ("translate", "model", "--beam", "many"),
        ("data", "build", "--out", "new"),
        ("vocab",),
    ],
    ids=" ".join,
)
def test_wrong_usage(world, arguments):
    before = snapshot(world)
    outcome = deltalm(*arguments)
    assert outcome.code == USAGE
    assert "Usage: deltalm " in outcome.stderr + outcome.stdout
    assert snapshot(world) == before


def test_bad_arguments_of_sources(world):
    assert "does not name a corpus and its files" in refused(world, *build("--mono", "text.de"))
    assert "needs two text files" in refused(world, *build("--parallel", "en-de=text.en"))
    assert "columns are numbers from 1" in refused(world, *build("--tsv", "en-de=text.en:0,1"))
    assert "Overlong rows" in refused(world, *build("--mono", "de=text.de", "--overlong", "split"))


def test_the_installed_command_ends_like_that_too(world):
    """In a process of its own, as a shell sees it."""
    command = [str(Path(sys.executable).with_name("deltalm")), "vocab", "inspect", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert done.stderr == "deltalm: nowhere/vocabulary.json does not exist.\n"


def test_unexpected_errors_keep_their_traceback(world, monkeypatch):
    """A fault of the program is not disguised as one of the user."""

    def broken():
        raise ZeroDivisionError

    monkeypatch.setattr("deltalm_ds.environment.environment", broken)
    monkeypatch.setattr(sys, "argv", ["deltalm", "env"])
    with pytest.raises(ZeroDivisionError):
        main()

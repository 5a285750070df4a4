"""Building shards: the same result whatever the number of processes, everything counted, nothing half-written."""

import contextlib
import errno
import fcntl
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import sentencepiece
from typer.testing import CliRunner

from deltalm_ds import files
from deltalm_ds.data.shards import ShardDataset
from deltalm_ds.data_tools import build as build_module
from deltalm_ds.data_tools.build import BUILDING, CorpusSpec, build
from deltalm_ds.data_tools.sources import Source
from deltalm_ds.data_tools.verify import verify
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.vocabulary import Vocabulary

TEXT = "the cat sees a small dog and the dog sees a big cat near old green trees by blue water"


def sentences(num_lines, seed, longest=12):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(TEXT.split(), size)) for size in random.integers(1, longest, num_lines)]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    directory = tmp_path_factory.mktemp("build")
    (directory / "train.en").write_text("\n".join(sentences(300, 1)) + "\n")
    (directory / "train.de").write_text("\n".join(sentences(300, 2)) + "\n")
    (directory / "mono.de.gz").write_bytes(gzip.compress("\n".join(["", *sentences(200, 3)]).encode()))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(300, 1)),
        model_prefix=str(directory / "spm"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    Vocabulary.from_spm(directory / "spm.model", num_sentinels=4, languages=("en", "de")).save(directory / "vocab")
    return directory


@pytest.fixture(scope="module")
def vocabulary(workspace):
    return Vocabulary.load(workspace / "vocab")


@pytest.fixture
def specs(workspace):
    return [
        CorpusSpec.from_name("en-de", [Source((workspace / "train.en", workspace / "train.de"))]),
        CorpusSpec.from_name("de", [Source((workspace / "mono.de.gz",))]),
    ]


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(build_module, "CHUNK_RECORDS", 16)


def mono_spec(tmp_path, lines):
    path = tmp_path / "mono.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return [CorpusSpec.from_name("de", [Source((path,))])]


def all_rows(directory):
    corpora = ShardDataset.open(directory).corpora
    return {
        (name, side): [row.tolist() for row in corpus.tokens(side, np.arange(corpus.num_rows))]
        for name, corpus in corpora.items()
        for side in corpus.sides
    }


def content_of(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_rows_are_what_sentencepiece_says(workspace, vocabulary, specs, tmp_path, small_chunks):
    """XLM-R's layout is SentencePiece's id + 1 [FACTS 1], so the processor itself is the reference."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(workspace / "spm.model"))
    manifest = build(specs, vocabulary, tmp_path / "out", rows_per_shard=64)
    expected = {
        ("en-de", "source"): sentences(300, 1),
        ("en-de", "target"): sentences(300, 2),
        ("de", "source"): sentences(200, 3),
    }
    rows = all_rows(tmp_path / "out")
    assert rows == {
        key: [[spm_id + 1 for spm_id in processor.encode(line)] for line in lines] for key, lines in expected.items()
    }
    pair, mono = manifest.corpora
    assert (pair.num_rows, pair.dropped, len(pair.shards)) == (300, {}, 5)
    assert (mono.num_rows, mono.dropped, mono.kind) == (200, {"empty": 1}, "mono")
    assert pair.num_tokens["target"] == sum(map(len, rows["en-de", "target"]))
    assert ShardDataset.open(tmp_path / "out", vocabulary.hash).manifest == manifest
    assert verify(tmp_path / "out").faults == ()
    assert not (tmp_path / "out" / BUILDING).exists()


@pytest.mark.parametrize("subword_samples", [0, 2])
def test_two_processes_write_the_same_bytes_as_one(vocabulary, specs, tmp_path, small_chunks, subword_samples):
    settings = {"max_tokens": 8, "rows_per_shard": 50, "subword_samples": subword_samples, "seed": 3}
    build(specs, vocabulary, tmp_path / "one", num_processes=1, **settings)
    build(specs, vocabulary, tmp_path / "two", num_processes=2, **settings)
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")


def test_overlong_rows_are_truncated_or_dropped_and_counted(vocabulary, specs, tmp_path):
    build(specs, vocabulary, tmp_path / "whole")
    truncated = build(specs, vocabulary, tmp_path / "truncated", max_tokens=8)
    dropped = build(specs, vocabulary, tmp_path / "dropped", max_tokens=8, overlong="drop")
    whole = all_rows(tmp_path / "whole")
    assert all_rows(tmp_path / "truncated") == {key: [row[:8] for row in rows] for key, rows in whole.items()}
    long = {key: [len(row) > 8 for row in rows] for key, rows in whole.items()}
    assert truncated.corpora[0].truncated == {side: sum(long["en-de", side]) for side in ("source", "target")}
    fits = [not (a or b) for a, b in zip(long["en-de", "source"], long["en-de", "target"], strict=True)]
    kept = all_rows(tmp_path / "dropped")
    for side in ("source", "target"):
        expected = [row for row, fit in zip(whole["en-de", side], fits, strict=True) if fit]
        assert kept["en-de", side] == expected and 0 < len(expected) < 300
    assert dropped.corpora[0].dropped == {"overlong": fits.count(False)}


def test_subword_samples_spell_the_same_text_differently(vocabulary, tmp_path):
    lines = sentences(40, 5)
    build(mono_spec(tmp_path, lines), vocabulary, tmp_path / "out", subword_samples=3)
    rows = all_rows(tmp_path / "out")["de", "source"]
    assert [vocabulary.decode(row) for row in rows] == lines * 3
    assert len({tuple(row) for row in rows}) > 80


def test_the_same_name_joins_files_in_order(vocabulary, tmp_path, workspace):
    sources = [Source((workspace / "train.en",)), Source((workspace / "train.de",))]
    build([CorpusSpec.from_name("en", sources)], vocabulary, tmp_path / "out")
    rows = all_rows(tmp_path / "out")["en", "source"]
    assert [vocabulary.decode(row) for row in rows] == sentences(300, 1) + sentences(300, 2)


def test_text_without_tokens_is_dropped_and_counted(vocabulary, tmp_path):
    manifest = build(mono_spec(tmp_path, ["a cat", "\u200b", "", "a dog"]), vocabulary, tmp_path / "out")
    assert (manifest.corpora[0].num_rows, manifest.corpora[0].dropped) == (2, {"empty": 2})


@pytest.mark.parametrize("name", ["", "en-", "en-de-fr", "a/b", "../x", "en de"])
def test_names_that_name_no_corpus(name):
    with pytest.raises(InputError, match="does not name a corpus"):
        CorpusSpec.from_name(name, [])


@pytest.mark.parametrize("lines", [[], ["", " "]])
def test_empty_corpus_leaves_nothing(vocabulary, tmp_path, lines):
    with pytest.raises(InputError, match="Corpus de is empty"):
        build(mono_spec(tmp_path, lines), vocabulary, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_corpus_of_which_nothing_is_kept_leaves_nothing(vocabulary, specs, tmp_path):
    long = CorpusSpec("fr", "mono", ("fr",), mono_spec(tmp_path, ["a cat sees a dog", "", "the cat"])[0].sources)
    with pytest.raises(InputError, match=r"Corpus fr is empty: every record was dropped \(1 empty, 2 overlong\)"):
        build([*specs, long], vocabulary, tmp_path / "out", max_tokens=1, overlong="drop")
    assert not (tmp_path / "out").exists()


def test_bad_input_in_a_later_corpus_is_found_before_anything_is_written(vocabulary, specs, tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "write_corpus", lambda *arguments: pytest.fail("wrote shards"))
    (tmp_path / "bad.txt").write_bytes(b"good\n\xff\n")
    bad = CorpusSpec.from_name("fr", [Source((tmp_path / "bad.txt",))])
    with pytest.raises(InputError, match=r"bad\.txt, line 2: not valid UTF-8"):
        build([*specs, bad], vocabulary, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [{"overlong": "cut"}, {"max_tokens": 0}, {"num_processes": 0}, {"subword_samples": -1}, {"rows_per_shard": 0}],
)
def test_impossible_settings(vocabulary, specs, tmp_path, arguments):
    with pytest.raises(InputError):
        build(specs, vocabulary, tmp_path / "out", **arguments)
    with pytest.raises(InputError, match="each corpus once"):
        build([specs[0], specs[0]], vocabulary, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class FullDisk:
    """A file that takes some bytes and then has no more room."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)


@pytest.mark.parametrize("room", [0, 500, 5_000])
def test_full_disk_is_one_sentence_and_leaves_nothing(vocabulary, specs, tmp_path, monkeypatch, room):
    open_file = open

    @contextlib.contextmanager
    def open_on_full_disk(*arguments, **options):
        with open_file(*arguments, **options) as file:
            yield FullDisk(file, room)

    monkeypatch.setattr(files, "open", open_on_full_disk, raising=False)
    with pytest.raises(InputError, match=r"The disk got full while writing to .*out"):
        build(specs, vocabulary, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "broken"), RuntimeError("bug")])
@pytest.mark.parametrize("call", [0, 3, 8, 10])
def test_failure_while_writing_leaves_nothing_and_is_not_disguised(
    vocabulary, specs, tmp_path, monkeypatch, error, call
):
    """Renaming number `call` fails: the pair's shards are 0-5, the monolingual ones 6-9, the manifest is 10."""
    replace, calls = os.replace, []

    def failing_replace(source, target):
        calls.append(target)
        if len(calls) > call:
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing_replace)
    with pytest.raises(type(error)):
        build(specs, vocabulary, tmp_path / "out", rows_per_shard=50)
    assert not (tmp_path / "out").exists()


def test_killed_build_is_started_over(workspace, vocabulary, specs, tmp_path):
    """kill -9 once shards are there; then the same build gives what an undisturbed one gives."""
    script = (
        "import sys, time; from pathlib import Path; from deltalm_ds.data_tools import build as b; "
        "from deltalm_ds.data_tools.sources import Source; from deltalm_ds.data import shards; "
        "from deltalm_ds.vocabulary import Vocabulary; b.CHUNK_RECORDS = 16; "
        "b.Encoder.__call__ = lambda self, chunk, call=b.Encoder.__call__: (time.sleep(0.1), call(self, chunk))[1]; "
        "w = Path(sys.argv[1]); spec = b.CorpusSpec.from_name('en-de', [Source((w/'train.en', w/'train.de'))]); "
        "b.build([spec], Vocabulary.load(w/'vocab'), sys.argv[2], rows_per_shard=16)"
    )
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", script, str(workspace), str(out)], stderr=subprocess.DEVNULL)
    try:
        while not list(out.glob("*.arrow")):
            assert process.poll() is None
            time.sleep(0.01)
        with pytest.raises(InputError, match="Another process is building"):
            build(specs, vocabulary, out)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (out / BUILDING).exists()
    with pytest.raises(InputError, match="not built to the end"):
        ShardDataset.open(out)
    build(specs, vocabulary, out)
    build(specs, vocabulary, tmp_path / "undisturbed")
    assert content_of(out) == content_of(tmp_path / "undisturbed")


def test_killed_worker_is_one_sentence(vocabulary, specs, tmp_path, small_chunks, monkeypatch):
    monkeypatch.setattr(build_module, "_encode_in_worker", os._exit)
    monkeypatch.setattr(build_module, "_start_worker", os._exit)
    with pytest.raises(InputError, match="A tokenising process died"):
        build(specs, vocabulary, tmp_path / "out", num_processes=2)
    assert not (tmp_path / "out").exists()


def test_worker_that_cannot_start_does_not_block(workspace, tmp_path):
    """A program read from stdin cannot be started anew in a worker; the vocabulary is larger than a pipe's buffer."""
    script = (
        "import sys; from pathlib import Path; from deltalm_ds.data_tools.build import CorpusSpec, build; "
        "from deltalm_ds.data_tools.sources import Source; from deltalm_ds.vocabulary import Vocabulary; "
        "w = Path(sys.argv[1]); spec = CorpusSpec.from_name('en', [Source((w / 'train.en',))]); "
        "build([spec], Vocabulary.load(w / 'vocab'), sys.argv[2], num_processes=2)"
    )
    command = [sys.executable, "-", str(workspace), str(tmp_path / "out")]
    result = subprocess.run(command, input=script, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode != 0 and "A tokenising process died" in result.stderr
    assert not (tmp_path / "out").exists()


def test_directories_in_use_are_refused_and_untouched(vocabulary, specs, tmp_path):
    out = tmp_path / "out"
    build(specs, vocabulary, out)
    before = content_of(out)
    with pytest.raises(InputError, match="is a data set already"):
        build(specs, vocabulary, out)
    assert content_of(out) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.arrow").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        build(specs, vocabulary, tmp_path / "other")
    assert content_of(tmp_path / "other") == {"precious.arrow": b"x"}


def test_a_file_system_without_locks_will_do(vocabulary, specs, tmp_path, monkeypatch):
    def no_locks(*arguments):
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    build(specs, vocabulary, tmp_path / "out")
    assert verify(tmp_path / "out").faults == ()


@pytest.fixture
def invoke():
    from deltalm_ds.cli.data import app

    return partial(CliRunner().invoke, app)


def test_command_line(workspace, tmp_path, vocabulary, invoke):
    (tmp_path / "g.tsv").write_text("group\ta cat\tein cat\n")
    out = str(tmp_path / "out")
    run = partial(invoke, catch_exceptions=False)
    arguments = ["build", "--vocab", str(workspace / "vocab"), "--out", out]
    arguments += ["--parallel", f"en-de={workspace}/train.en,{workspace}/train.de"]
    arguments += ["--mono", f"de={workspace}/mono.de.gz", "--tsv", f"en-de={tmp_path}/g.tsv:2,3"]
    built = run(arguments)
    assert built.exit_code == 0 and "301" in built.stdout

    facts = json.loads(run(["inspect", out, "--json"]).stdout)
    assert [(corpus["name"], corpus["rows"], corpus["dropped"]) for corpus in facts["corpora"]] == [
        ("en-de", 301, {}),
        ("de", 200, {"empty": 1}),
    ]
    assert facts["vocabulary"] == {"hash": vocabulary.hash, "num_tokens": vocabulary.num_tokens}

    rows = all_rows(tmp_path / "out")
    stats = json.loads(run(["stats", out, "--json"]).stdout)
    for side in stats:
        lengths = sorted(len(row) for row in rows[side["corpus"], side["side"]])
        ids = [token for row in rows[side["corpus"], side["side"]] for token in row]
        assert (side["rows"], side["tokens"]) == (len(lengths), sum(lengths))
        assert side["mean_length"] == pytest.approx(np.mean(lengths))
        expected = [np.percentile(lengths, percent, method="inverted_cdf") for percent in (50, 90, 99, 100)]
        assert [side[key] for key in ("median_length", "p90_length", "p99_length", "max_length")] == expected
        assert side["unknown_rate"] == pytest.approx(ids.count(3) / len(ids))
    assert [side["language"] for side in stats] == ["en", "de", "de"]
    assert "unknown" in run(["stats", out]).stdout
    assert "0 faults" in run(["verify", out]).stdout

    shard = tmp_path / "out" / "de.00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    result = invoke(["verify", out, "--json"])
    assert isinstance(result.exception, DataError) and result.exception.exit_code == 3
    assert "de.00000.arrow was altered" in json.loads(result.stdout)["faults"][0]


@pytest.mark.parametrize("argument", ["en-de", "=a,b", "en-de="])
def test_command_line_wants_name_and_files(workspace, tmp_path, argument, invoke):
    arguments = ["build", "--vocab", str(workspace / "vocab"), "--out", str(tmp_path / "o"), "--parallel", argument]
    result = invoke(arguments)
    assert isinstance(result.exception, InputError) and "en-de=train.en,train.de" in str(result.exception)

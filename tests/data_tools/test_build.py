"""Building shards: the same result whatever the number of processes, everything counted, and a build goes on."""

import contextlib
import errno
import fcntl
import gzip
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import psutil
import pytest
import sentencepiece
from typer.testing import CliRunner

from deltalm_ds import files
from deltalm_ds.data.shards import ShardDataset
from deltalm_ds.data_tools import build as build_module
from deltalm_ds.data_tools import workers as workers_module
from deltalm_ds.data_tools.build import BUILDING, SPECIFICATION, CorpusSpec, build
from deltalm_ds.data_tools.filters import Settings
from deltalm_ds.data_tools.sources import TextSource
from deltalm_ds.data_tools.verify import verify
from deltalm_ds.data_tools.workers import start_workers
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.vocabulary import Vocabulary

IMPORTED_BY = os.getpid()  # in a forked process another one's
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
        CorpusSpec.from_name("en-de", [TextSource((workspace / "train.en", workspace / "train.de"))]),
        CorpusSpec.from_name("de", [TextSource((workspace / "mono.de.gz",))]),
    ]


def mono_spec(tmp_path, lines):
    path = tmp_path / "mono.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return [CorpusSpec.from_name("de", [TextSource((path,))])]


def all_rows(directory):
    corpora = ShardDataset.open(directory).corpora
    return {
        (name, side): [row.tolist() for row in corpus.tokens(side, np.arange(corpus.num_rows))]
        for name, corpus in corpora.items()
        for side in corpus.sides
    }


def content_of(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_rows_are_what_sentencepiece_says(workspace, vocabulary, specs, tmp_path):
    """XLM-R's layout is SentencePiece's id + 1 [facts: token ids], so the processor itself is the reference."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(workspace / "spm.model"))
    manifest = build(specs, vocabulary, tmp_path / "out", Settings(rows_per_shard=64))
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


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (Settings(max_tokens=8, rows_per_shard=50), ["en-de", "de"]),
        (Settings(max_tokens=8, rows_per_shard=50, subword_samples=2, seed=3), ["en-de", "de"]),
        (Settings(deduplicate=True, min_tokens=3, max_ratio=2, rows_per_shard=50), ["en-de", "de"]),
        (Settings(window_tokens=20, cross_documents=True, rows_per_shard=30), ["de"]),
    ],
)
def test_two_processes_write_the_same_bytes_as_one(vocabulary, specs, tmp_path, settings, names):
    specs = [spec for spec in specs if spec.name in names]
    build(specs, vocabulary, tmp_path / "one", settings)
    with start_workers(2) as workers:
        build(specs, vocabulary, tmp_path / "two", settings, workers)
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")
    assert len(content_of(tmp_path / "one")) > 4 or names == ["de"]


def test_a_file_cut_in_spans_by_two_processes_is_that_of_one(vocabulary, tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "CHARACTERS_PER_PART", (300, 300))
    monkeypatch.setattr(build_module, "PARTS_PER_SPAN", 2)
    texts = sentences(300, 5)
    spec = mono_spec(tmp_path, texts)
    build(spec, vocabulary, tmp_path / "one")
    with start_workers(2) as workers:
        (corpus,) = build(spec, vocabulary, tmp_path / "two", workers=workers).corpora
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")
    assert len(corpus.shards) > 20
    rows = all_rows(tmp_path / "two")["de", "source"]
    assert rows == [vocabulary.encode(text).tolist() for text in texts]


def test_overlong_rows_are_truncated_or_dropped_and_counted(vocabulary, specs, tmp_path):
    build(specs, vocabulary, tmp_path / "whole")
    truncated = build(specs, vocabulary, tmp_path / "truncated", Settings(max_tokens=8))
    dropped = build(specs, vocabulary, tmp_path / "dropped", Settings(max_tokens=8, overlong="drop"))
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
    build(mono_spec(tmp_path, lines), vocabulary, tmp_path / "out", Settings(subword_samples=3))
    rows = all_rows(tmp_path / "out")["de", "source"]
    assert [vocabulary.decode(row) for row in rows] == lines * 3
    assert len({tuple(row) for row in rows}) > 80


def test_subword_samples_do_not_depend_on_the_size_of_shards(vocabulary, tmp_path):
    spec = mono_spec(tmp_path, sentences(40, 5))
    for size in (10, 1000):
        build(spec, vocabulary, tmp_path / str(size), Settings(subword_samples=2, rows_per_shard=size))
    small, large = (sorted(all_rows(tmp_path / size)["de", "source"]) for size in ("10", "1000"))
    assert small == large


def test_the_same_name_joins_files_in_order(vocabulary, tmp_path, workspace):
    sources = [TextSource((workspace / "train.en",)), TextSource((workspace / "train.de",))]
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
def test_empty_corpus(vocabulary, tmp_path, lines):
    with pytest.raises(InputError, match=rf"Corpus de is empty: .*mono.txt \({len(lines)} empty\)"):
        build(mono_spec(tmp_path, lines), vocabulary, tmp_path / "out")
    build(mono_spec(tmp_path, ["a cat"]), vocabulary, tmp_path / "out")
    assert all_rows(tmp_path / "out")["de", "source"] == [vocabulary.encode("a cat").tolist()]


def test_corpus_of_which_nothing_is_kept(vocabulary, specs, tmp_path):
    long = CorpusSpec("fr", "mono", ("fr",), mono_spec(tmp_path, ["a cat sees a dog", "", "the cat"])[0].sources)
    with pytest.raises(InputError, match=r"Corpus fr is empty: every record was dropped \(1 empty, 2 overlong\)"):
        build([*specs, long], vocabulary, tmp_path / "out", Settings(max_tokens=1, overlong="drop"))
    with pytest.raises(InputError, match="not built to the end"):
        ShardDataset.open(tmp_path / "out")


def test_bad_input_in_a_later_corpus_is_found_before_anything_is_tokenised(vocabulary, specs, tmp_path):
    """The corpora that were read are not read again once the bad file is mended, nor when it is left out."""
    bad_text = tmp_path / "bad.txt"
    bad_text.write_bytes(b"good\n\xff\n")
    bad = CorpusSpec.from_name("fr", [TextSource((bad_text,))])
    with pytest.raises(InputError, match=r"bad\.txt, line 2: not valid UTF-8"):
        build([*specs, bad], vocabulary, tmp_path / "out")
    assert content_of(tmp_path / "out") == {}
    parts = {path: path.stat().st_ino for path in (tmp_path / "out" / BUILDING).glob("*.arrow")}
    assert len(parts) == 2
    with pytest.raises(InputError, match=r"bad\.txt, line 2"):
        build([*specs, bad], vocabulary, tmp_path / "out")
    assert all(path.stat().st_ino == inode for path, inode in parts.items())
    bad_text.write_text("a cat\n")
    build([*specs, bad], vocabulary, tmp_path / "out")
    build([*specs, bad], vocabulary, tmp_path / "undisturbed")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "undisturbed")


def test_bad_input_alone_leaves_nothing(vocabulary, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"\xff\n")
    with pytest.raises(InputError, match="line 1"):
        build([CorpusSpec.from_name("fr", [TextSource((tmp_path / "bad.txt",))])], vocabulary, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_impossible_corpora(vocabulary, specs, tmp_path):
    with pytest.raises(InputError, match="each corpus once"):
        build([specs[0], specs[0]], vocabulary, tmp_path / "out")
    with pytest.raises(InputError, match="each corpus once"):
        build([], vocabulary, tmp_path / "out")
    twice = CorpusSpec.from_name("de", specs[1].sources * 2)
    with pytest.raises(InputError, match=r"mono\.de\.gz is given twice for the corpus de"):
        build([twice], vocabulary, tmp_path / "out")
    by_another_name = CorpusSpec.from_name(
        "en", [TextSource((Path("a.txt"),)), TextSource((Path("a.txt").absolute(),))]
    )
    with pytest.raises(InputError, match=r"a\.txt is given twice for the corpus en"):
        build([by_another_name], vocabulary, tmp_path / "out")
    with pytest.raises(InputError, match="only once"):
        build([CorpusSpec.from_name("en-de", [TextSource((Path("-"),) * 2)])], vocabulary, tmp_path / "out")
    piped = [CorpusSpec.from_name(name, [TextSource((Path("-"),))]) for name in ("en", "de")]
    with pytest.raises(InputError, match="only once"):
        build(piped, vocabulary, tmp_path / "out")
    with pytest.raises(InputError, match="script of 'xx' is not known"):
        build(
            [CorpusSpec.from_name("xx", specs[1].sources)], vocabulary, tmp_path / "out", Settings(min_script_share=1)
        )
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


@pytest.mark.parametrize("room", [0, 500, 5_000, 40_000])
def test_full_disk_is_one_sentence_and_the_build_goes_on(vocabulary, specs, tmp_path, monkeypatch, room):
    open_file = open

    @contextlib.contextmanager
    def open_on_full_disk(*arguments, **options):
        with open_file(*arguments, **options) as file:
            yield FullDisk(file, room)

    with monkeypatch.context() as patch:
        patch.setattr(files, "open", open_on_full_disk, raising=False)
        with pytest.raises(InputError, match=r"The disk got full while writing to .*out"):
            build(specs, vocabulary, tmp_path / "out")
    assert not list(tmp_path.rglob("*.tmp"))
    build(specs, vocabulary, tmp_path / "out")
    build(specs, vocabulary, tmp_path / "undisturbed")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "undisturbed")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "broken"), RuntimeError("bug")])
def test_failure_at_every_rename_is_not_disguised_and_the_build_goes_on(
    vocabulary, specs, tmp_path, monkeypatch, error
):
    """Every file appears by a rename; whichever fails, what was there before stays and the rest is made."""
    settings = Settings(rows_per_shard=100, deduplicate=True)
    build(specs, vocabulary, tmp_path / "undisturbed", settings)
    expected = content_of(tmp_path / "undisturbed")
    replace = os.replace
    for call in count(0, 3):
        left = call

        def failing_replace(source, target):
            nonlocal left
            left -= 1
            if left < 0:
                raise error
            replace(source, target)

        out = tmp_path / str(call)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", failing_replace)
            try:
                build(specs, vocabulary, out, settings)
            except type(error):
                pass
            else:
                break
        assert not list(tmp_path.rglob("*.tmp")) and not (out / "manifest.json").exists()
        shards = {path: path.stat().st_ino for path in out.glob("*.arrow")}
        build(specs, vocabulary, out, settings)
        assert content_of(out) == expected
        # At most the shard whose result was not yet written is made again.
        assert sum(path.stat().st_ino != inode for path, inode in shards.items()) <= 1
    assert call > 20


SLOW_BUILD = """
import sys, time
from pathlib import Path
from deltalm_ds import files
from deltalm_ds.data_tools import build as b
from deltalm_ds.data_tools.sources import TextSource
from deltalm_ds.data_tools.workers import start_workers
from deltalm_ds.vocabulary import Vocabulary
fsync = files.fsync_path
files.fsync_path = lambda path: (time.sleep(0.02), fsync(path))
if __name__ == "__main__":
    w = Path(sys.argv[1])
    specs = [b.CorpusSpec.from_name("en-de", [TextSource((w / "train.en", w / "train.de"))]),
             b.CorpusSpec.from_name("de", [TextSource((w / "mono.de.gz",))])]
    with start_workers(int(sys.argv[3])) as workers:
        print("starting", flush=True)
        b.build(specs, Vocabulary.load(w / "vocab"), sys.argv[2], b.Settings(rows_per_shard=20), workers)
"""


def start_slow_build(workspace, out, num_processes=1):
    script = workspace / "slow_build.py"
    script.write_text(SLOW_BUILD)
    command = [sys.executable, str(script), str(workspace), str(out), str(num_processes)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout.readline() == b"starting\n"
    return process


def build_until_killed(specs, vocabulary, out, settings, num_calls, before):
    """In a process of its own: kill -9 at a given call of fsync, of which every file that appears makes two."""
    fsync, left = os.fsync, num_calls

    def fsync_or_die(descriptor):
        nonlocal left
        left -= 1
        if not before:
            fsync(descriptor)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = fsync_or_die
    build(specs, vocabulary, out, settings)


@pytest.mark.parametrize("seed", [1, 2])
def test_build_killed_at_any_point_goes_on(vocabulary, specs, tmp_path, seed):
    """kill -9 at random distances, each time going on; then what an undisturbed build gives, and nothing made twice."""
    out, random, settings = tmp_path / "out", np.random.default_rng(seed), Settings(rows_per_shard=20, deduplicate=True)
    num_kills, made = 0, {}
    while not (out / "manifest.json").exists():
        arguments = (specs, vocabulary, out, settings, random.integers(1, 60), bool(random.integers(2)))
        process = multiprocessing.get_context("fork").Process(target=build_until_killed, args=arguments)
        process.start()
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL)
        num_kills += process.exitcode != 0
        made_before, made = made, {path.name: path.stat().st_ino for path in out.glob("*.arrow")}
        assert sum(made.get(name) != inode for name, inode in made_before.items()) <= 1
    build(specs, vocabulary, tmp_path / "undisturbed", settings)
    if (out / BUILDING).exists():
        build(specs, vocabulary, out, settings)
    assert content_of(out) == content_of(tmp_path / "undisturbed")
    assert num_kills >= 5


def test_two_builds_at_once_and_workers_of_a_killed_one(workspace, vocabulary, specs, tmp_path):
    out = tmp_path / "out"
    process = start_slow_build(workspace, out, num_processes=2)
    try:
        while not list(out.glob("*.arrow")):
            assert process.poll() is None
            time.sleep(0.01)
        with pytest.raises(InputError, match="Another process is building"):
            build(specs, vocabulary, out, Settings(rows_per_shard=20))
        assert process.poll() is None
        children = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()
    assert len(children) >= 2 and psutil.wait_procs(children, timeout=20)[1] == []
    with pytest.raises(InputError, match="not built to the end"):
        ShardDataset.open(out)
    build(specs, vocabulary, out, Settings(rows_per_shard=20))
    build(specs, vocabulary, tmp_path / "undisturbed", Settings(rows_per_shard=20))
    assert content_of(out) == content_of(tmp_path / "undisturbed")


@pytest.fixture
def half_built(workspace, vocabulary, specs, tmp_path, monkeypatch):
    """A directory of a build that failed when half of its shards were there."""
    out, replace = tmp_path / "out", os.replace

    def failing_replace(source, target):
        if Path(target).name.startswith("de.source00000.part00001.done"):
            raise RuntimeError("stop")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing_replace)
        with pytest.raises(RuntimeError, match="stop"):
            build(specs, vocabulary, out, Settings(rows_per_shard=50))
    return out


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{"), lambda path: path.write_text("{}")])
@pytest.mark.parametrize("what", [".building/*.done.json", "*.arrow", ".building/*source00000.json"])
def test_what_is_missing_or_damaged_is_made_again(vocabulary, specs, tmp_path, half_built, damage, what):
    damage(sorted(half_built.glob(what))[1])
    build(specs, vocabulary, half_built, Settings(rows_per_shard=50))
    build(specs, vocabulary, tmp_path / "undisturbed", Settings(rows_per_shard=50))
    assert content_of(half_built) == content_of(tmp_path / "undisturbed")


def test_another_build_is_not_mixed_in(workspace, vocabulary, specs, tmp_path, half_built):
    before = content_of(half_built) | content_of(half_built / BUILDING)
    with pytest.raises(InputError, match=r"what differs: max tokens, seed\. Go on"):
        build(specs, vocabulary, half_built, Settings(rows_per_shard=50, max_tokens=7, seed=1))
    with pytest.raises(InputError, match=r"what differs: the text of de\. Go on"):
        build(specs[:1], vocabulary, half_built, Settings(rows_per_shard=50))
    other = Vocabulary.from_spm(workspace / "spm.model", num_sentinels=5)
    with pytest.raises(InputError, match=r"what differs: the vocabulary\. Go on"):
        build(specs, other, half_built, Settings(rows_per_shard=50))
    os.utime(workspace / "train.en")
    with pytest.raises(InputError, match=r"what differs: the text of en-de\. Go on"):
        build(specs, vocabulary, half_built, Settings(rows_per_shard=50))
    assert content_of(half_built) | content_of(half_built / BUILDING) == before and SPECIFICATION in before


def test_text_that_changes_while_it_is_read(vocabulary, tmp_path, monkeypatch):
    specs = mono_spec(tmp_path, ["a cat"])
    replace = os.replace

    def replace_and_change(source, target):
        replace(source, target)
        (tmp_path / "mono.txt").write_text("a cat and more\n")

    monkeypatch.setattr(os, "replace", replace_and_change)
    with pytest.raises(InputError, match=r"mono.txt changed while it was read"):
        build(specs, vocabulary, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_text_from_standard_input(workspace, vocabulary, tmp_path):
    command = [Path(sys.executable).with_name("deltalm"), "data", "build", "--vocab", workspace / "vocab"]
    command += ["--out", tmp_path / "out", "--mono", "en=-"]
    subprocess.run(command, input=(workspace / "train.en").read_bytes(), check=True, capture_output=True)
    rows = all_rows(tmp_path / "out")["en", "source"]
    assert [vocabulary.decode(row) for row in rows] == sentences(300, 1)


def test_killed_worker_is_one_sentence(vocabulary, specs, tmp_path, monkeypatch):
    monkeypatch.setattr(workers_module, "_start_process", os._exit)
    with pytest.raises(InputError, match="A process died"), start_workers(2) as workers:
        build(specs, vocabulary, tmp_path / "out", workers=workers)
    assert not (tmp_path / "out").exists()


def test_worker_that_cannot_start_does_not_block(workspace, tmp_path):
    """A program read from stdin cannot be started anew in a worker, which one with threads needs."""
    command = [sys.executable, "-", str(workspace), str(tmp_path / "out"), "2"]
    thread = "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"
    program = f"{thread}\n{SLOW_BUILD}"
    result = subprocess.run(command, input=program, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode != 0 and "A process died" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("num_threads", [0, 1])
def test_workers_are_forked_where_no_thread_can_hold_a_lock(num_threads):
    """A lock that another thread holds at a fork is held in the worker for ever."""
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    is_alone = threading.active_count() == 1
    try:
        with start_workers(2) as workers:
            assert set(workers.run(_is_forked, range(4))) == {is_alone}
    finally:
        stop.set()


def _is_forked(_):
    return os.getpid() != IMPORTED_BY


def test_results_come_whatever_fails_and_nothing_more_is_begun():
    with start_workers(2) as workers:
        assert sorted(workers.run(abs, range(-20, 0))) == list(range(1, 21))
        with pytest.raises(TypeError, match="bad operand"):
            list(workers.run(abs, [1, 2, "three", *range(1000)]))


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


@pytest.mark.parametrize("last_removed", ["lock", SPECIFICATION])
def test_interrupted_at_its_very_end_it_is_not_taken_for_another_build(
    vocabulary, specs, tmp_path, monkeypatch, last_removed
):
    unlink = Path.unlink

    def interrupt(path, missing_ok=False):
        if path.name == last_removed:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", interrupt)
        build(specs, vocabulary, out)
    before = content_of(out)
    with pytest.raises(InputError, match="what differs: the text of de"):
        build(specs[:1], vocabulary, out)
    build(specs, vocabulary, out)
    assert content_of(out) == before and not (out / BUILDING).exists()


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
    assert "faults 0" in run(["verify", out]).stdout

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


def test_windows_without_documents_are_refused(workspace, tmp_path, invoke):
    out, text = str(tmp_path / "out"), f"de={workspace}/train.de"
    arguments = ["build", "--vocab", str(workspace / "vocab"), "--out", out, "--mono", text, "--window-tokens", "20"]
    assert "give --documents too" in str(invoke(arguments).exception)
    result = invoke([*arguments, "--documents"])
    assert result.exit_code == 0 and max(map(len, all_rows(tmp_path / "out")["de", "source"])) == 20

"""Building shards: the same result whatever the number of processes, everything counted, bad input refused."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from typer.testing import CliRunner

from deltalm_ds.data.shards import ShardDataset
from deltalm_ds.data_tools import build as build_module
from deltalm_ds.data_tools.build import BUILDING, CorpusSpec, build
from deltalm_ds.data_tools.filters import Settings
from deltalm_ds.data_tools.sources import TextSource
from deltalm_ds.data_tools.verify import verify
from deltalm_ds.data_tools.workers import start_workers
from deltalm_ds.errors import DataError, InputError
from tests.data_tools.building import all_rows, content_of, mono_spec, sentences


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


def test_text_from_standard_input(workspace, vocabulary, tmp_path):
    command = [Path(sys.executable).with_name("deltalm"), "data", "build", "--vocab", workspace / "vocab"]
    command += ["--out", tmp_path / "out", "--mono", "en=-"]
    subprocess.run(command, input=(workspace / "train.en").read_bytes(), check=True, capture_output=True)
    rows = all_rows(tmp_path / "out")["en", "source"]
    assert [vocabulary.decode(row) for row in rows] == sentences(300, 1)


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

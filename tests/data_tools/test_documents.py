"""Documents in windows for span corruption, and tasks for fine-tuning: from text to what a model is given."""

import json
from itertools import pairwise

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalm_ds.data.mixture import Component
from deltalm_ds.data.objectives.base import Limits
from deltalm_ds.data.objectives.seq2seq import Seq2Seq
from deltalm_ds.data.objectives.span_corruption import SpanCorruption
from deltalm_ds.data.shards import ShardDataset
from deltalm_ds.data.stream import BatchBuilder
from deltalm_ds.data_tools.build import CorpusSpec, build
from deltalm_ds.data_tools.encode import window_lengths
from deltalm_ds.data_tools.filters import Settings
from deltalm_ds.data_tools.sources import TextSource, find_sources
from deltalm_ds.token_ids import EOS_ID
from deltalm_ds.vocabulary import Vocabulary

TEXT = "the cat sees a small dog and the dog sees a big cat near old green trees by blue water"
WORDS = TEXT.split()


def document(seed, num_lines):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(3, 15))) for _ in range(num_lines)]


DOCUMENTS = [document(seed, num_lines) for seed, num_lines in enumerate([3, 1, 120, 2, 60, 1])]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    prefix = tmp_path_factory.mktemp("spm") / "spm"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(document(9, 300)),
        model_prefix=str(prefix),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    return Vocabulary.from_spm(f"{prefix}.model", num_sentinels=40, languages=("en", "fr"))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "documents.txt"
    path.write_text("\n\n".join("\n".join(lines) for lines in DOCUMENTS))
    return TextSource((path,))


def rows_of(out, name="en", side="source"):
    corpus = ShardDataset.open(out).corpora[name]
    return [np.array(row) for row in corpus.tokens(side, np.arange(corpus.num_rows))]


def windows(tokens, size):
    return [tokens[start : start + size].tolist() for start in range(0, len(tokens), size)]


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("as_jsonl", [False, True])
def test_windows_are_those_of_a_plain_definition(tmp_path, vocabulary, source, cross, as_jsonl):
    if as_jsonl:
        path = tmp_path / "documents.jsonl"
        path.write_text("\n".join(json.dumps({"text": "\n".join(lines)}) for lines in DOCUMENTS))
        source = TextSource((path,))
    spec = CorpusSpec.from_name("en", [source])
    build([spec], vocabulary, tmp_path / "out", Settings(window_tokens=100, cross_documents=cross))
    tokens = [np.concatenate([vocabulary.encode(line) for line in lines]) for lines in DOCUMENTS]
    if cross:
        tokens = [np.concatenate(tokens)]
    expected = [window for of_document in tokens for window in windows(of_document, 100)]
    assert [row.tolist() for row in rows_of(tmp_path / "out")] == expected


def test_windows_do_not_cross_languages_or_files(tmp_path, vocabulary, source):
    copy = tmp_path / "copy.txt"
    copy.write_bytes(source.files[0].read_bytes())
    specs = [CorpusSpec.from_name("en", [source, TextSource((copy,))]), CorpusSpec.from_name("fr", [source])]
    build(specs, vocabulary, tmp_path / "out", Settings(window_tokens=568, cross_documents=True))
    english, french = (rows_of(tmp_path / "out", name) for name in ("en", "fr"))
    assert [row.tolist() for row in english] == [row.tolist() for row in french] * 2


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=8), st.integers(1, 9), st.booleans())
def test_window_lengths(lengths, size, cross):
    of_documents = [sum(lengths)] if cross else lengths
    expected = [min(size, length - start) for length in of_documents for start in range(0, length, size)]
    assert window_lengths(np.array(lengths, np.int64), size, cross).tolist() == expected


def batches_of(out, name, objective, vocabulary, limits):
    """The sources and targets of every row as training reads them, sorted."""
    corpus = ShardDataset.open(out).corpora[name]
    builder = BatchBuilder([Component(corpus, objective)], vocabulary, limits, micro_batch_tokens=100_000)
    numbers = np.arange(corpus.num_rows)
    chosen = builder.select(np.zeros_like(numbers), numbers, numbers, numbers.astype(np.uint64))
    assert (chosen.num_truncated, chosen.num_overlong, chosen.num_too_short) == (0, 0, 0)
    (batch,) = builder.build(chosen, rank=0, world_size=1).micro_batches
    sources = np.split(batch.source.tokens.numpy(), batch.source.cu_seqlens[1:-1])
    targets = np.split(batch.labels.numpy(), batch.target_input.cu_seqlens[1:-1])
    return sorted((source.tolist(), target.tolist()) for source, target in zip(sources, targets, strict=True))


def test_windows_of_568_tokens_give_512_inputs_and_114_targets(tmp_path, vocabulary, source):
    """With `</s>` each [facts: span corruption]; shorter rows are corrupted too.

    Each is in its input and target whole.
    """
    build([CorpusSpec.from_name("en", [source])], vocabulary, tmp_path / "out", Settings(window_tokens=568))
    rows = rows_of(tmp_path / "out")
    assert 0 < sum(len(row) == 568 for row in rows) < len(rows)
    pairs = batches_of(tmp_path / "out", "en", SpanCorruption(), vocabulary, Limits(512, 114))
    assert sum((len(inputs), len(targets)) == (512, 114) for inputs, targets in pairs) == (
        sum(len(row) == 568 for row in rows)
    )
    sentinels = set(vocabulary.sentinel_ids.tolist())
    restored = []
    for inputs, targets in pairs:
        assert inputs.pop() == targets.pop() == EOS_ID
        starts = [place for place, token in enumerate(targets) if token in sentinels]
        spans = {targets[a]: targets[a + 1 : b] for a, b in pairwise([*starts, len(targets)])}
        restored.append([token for place in inputs for token in spans.get(place, [place])])
    assert sorted(restored) == sorted(row.tolist() for row in rows)


def test_only_monolingual_corpora_are_documents(tmp_path, vocabulary, source):
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("a cat\ta dog\na dog\ta cat\n")
    specs = [CorpusSpec.from_name("en", [source]), CorpusSpec.from_name("en-fr", [TextSource((pairs,))])]
    build(specs, vocabulary, tmp_path / "out", Settings(window_tokens=2))
    assert [vocabulary.decode(row) for row in rows_of(tmp_path / "out", "en-fr")] == ["a cat", "a dog"]


def test_a_task_from_jsonl_fields_to_training_rows(tmp_path, vocabulary):
    """Summarisation, say: its kind and languages are in the manifest, and seq2seq training reads it."""
    records = [{"document": " ".join(lines), "summary": lines[0]} for lines in DOCUMENTS]
    path = tmp_path / "news.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    spec = CorpusSpec.from_name("headlines:en-fr", find_sources(f"{path}:document,summary"))
    (corpus,) = build([spec], vocabulary, tmp_path / "out", Settings()).corpora
    assert (corpus.name, corpus.kind, corpus.languages) == ("headlines", "task", ("en", "fr"))
    pairs = batches_of(tmp_path / "out", "headlines", Seq2Seq(), vocabulary, Limits(5000, 500))
    end = EOS_ID
    assert pairs == sorted(
        (
            [vocabulary.language_id("fr"), *vocabulary.encode(record["document"]).tolist(), end],
            [*vocabulary.encode(record["summary"]).tolist(), end],
        )
        for record in records
    )

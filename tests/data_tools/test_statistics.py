"""Statistics against plain counting in Python over the same rows and their text."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from deltalm_ds.data.manifest import CorpusManifest, Manifest, token_type
from deltalm_ds.data.shards import ShardDataset, ragged_batch, write_corpus
from deltalm_ds.data_tools import statistics as statistics_module
from deltalm_ds.data_tools.statistics import plot_lengths, statistics
from deltalm_ds.data_tools.train_vocabulary import train
from deltalm_ds.token_ids import UNK_ID
from deltalm_ds.vocabulary import Vocabulary

SENTENCES = [
    "the cat sat on the mat",
    "a dog and a cat",
    "dogs chase cats over the hills and far away",
    "the hills are far away",
    "we saw the cat on the hills",
    "a mat",
] * 20


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Vocabulary:
    directory = tmp_path_factory.mktemp("text")
    path = directory / "train.txt"
    path.write_text("\n".join(SENTENCES), encoding="utf-8")
    return train([path], directory / "vocabulary", 30, languages=("en", "de"))


@pytest.fixture
def dataset(tmp_path, vocabulary) -> tuple[ShardDataset, list[str]]:
    texts = [*SENTENCES, "the ☃ sat", "☃"]
    ids = [np.asarray(vocabulary.encode(text)) for text in texts]
    columns = (np.concatenate(ids), np.array([len(row) for row in ids]))
    manifest = Manifest(vocabulary.hash, vocabulary.num_tokens)
    batch = ragged_batch({"source": columns, "target": columns}, token_type(vocabulary.num_tokens))
    corpus = write_corpus(tmp_path, manifest, CorpusManifest("en-de", "parallel", ("en", "de")), [batch], 50)
    replace(manifest, corpora=(corpus,)).write(tmp_path)
    return ShardDataset.open(tmp_path), texts


def test_against_plain_counting(dataset, vocabulary, monkeypatch):
    monkeypatch.setattr(statistics_module, "ROWS_AT_A_TIME", 7)
    data, texts = dataset
    source, target = statistics(data, vocabulary)
    assert (source.side, source.language, target.side, target.language) == ("source", "en", "target", "de")
    assert replace(target, side="source", language="en") == source
    rows = [np.asarray(vocabulary.encode(text)).tolist() for text in texts]
    lengths = sorted(map(len, rows))
    assert (source.rows, source.tokens, source.max_length) == (len(rows), sum(lengths), lengths[-1])
    assert source.mean_length == pytest.approx(np.mean(lengths))
    for share, found in ((0.5, source.median_length), (0.9, source.p90_length), (0.99, source.p99_length)):
        assert found == min(n for n in lengths if sum(m <= n for m in lengths) >= share * len(lengths))
    assert source.unknown_rate == sum(row.count(UNK_ID) for row in rows) / sum(lengths) > 0
    bounds = [*source.histogram]
    expected = Counter(min(bound for bound in bounds if bound >= length) for length in lengths)
    assert source.histogram == {bound: expected[bound] for bound in bounds}
    assert bounds[:8] == [0, 1, 2, 3, 4, 6, 8, 12]
    assert source.tokens_per_word == pytest.approx(sum(lengths) / sum(len(text.split()) for text in texts))
    # every text has one more character than it shows: the mark of its first word's start
    assert source.characters_per_token == pytest.approx((sum(map(len, texts)) + len(texts)) / sum(lengths))
    without = statistics(data)[0]
    assert without == replace(source, tokens_per_word=None, characters_per_token=None)


def test_plot(dataset, vocabulary, tmp_path):
    data, texts = dataset
    plot_lengths(statistics(data), tmp_path / "lengths.html")
    page = (tmp_path / "lengths.html").read_text(encoding="utf-8")
    chart = page[page.index("</head>") :]
    lines, _ = json.JSONDecoder().raw_decode(chart, chart.index("[{", chart.index("Plotly.newPlot(")))
    assert [line["name"] for line in lines] == ["en-de en", "en-de de"]
    lengths = [len(vocabulary.encode(text)) for text in texts]
    for length, percent in zip(lines[0]["x"], lines[0]["y"], strict=True):
        assert percent == pytest.approx(100 * sum(n <= length for n in lengths) / len(lengths))
    assert lines[0]["y"][-1] == 100 and lines[0]["x"][-1] >= max(lengths)

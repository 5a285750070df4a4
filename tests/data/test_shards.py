"""The shard format: what is written is read back, whole or refused."""

import os
import pickle
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalm_ds.data import shards as shards_module
from deltalm_ds.data.manifest import CorpusManifest, Manifest, token_type
from deltalm_ds.data.shards import ShardDataset, ragged_batch, ragged_views, read_record_batches, write_corpus
from deltalm_ds.errors import DataError, InputError

NUM_IDS = {"uint16": 65_536, "uint32": 65_537}
ROW = st.lists(st.integers(0, 65_535), max_size=6)
PAIRS = st.lists(st.tuples(ROW, ROW), min_size=1, max_size=40)


def write_dataset(directory, rows_by_side, rows_per_shard=7, num_ids=65_536, rows_per_chunk=3, name="en-de"):
    """Write one corpus from lists of lists, a few rows at a time."""
    directory.mkdir(exist_ok=True)
    sides = list(rows_by_side)
    kind, languages = ("parallel", ("en", "de")) if len(sides) == 2 else ("mono", ("de",))
    num_rows = len(rows_by_side[sides[0]])

    def batches():
        for begin in range(0, num_rows, rows_per_chunk):
            chunk = {side: rows[begin : begin + rows_per_chunk] for side, rows in rows_by_side.items()}
            columns = {
                side: (np.array(list(chain(*rows)), np.int64), np.array([len(row) for row in rows], np.int64))
                for side, rows in chunk.items()
            }
            yield ragged_batch(columns, token_type(num_ids))

    manifest = Manifest("v" * 64, num_ids)
    corpus = write_corpus(directory, manifest, CorpusManifest(name, kind, languages), batches(), rows_per_shard)
    Manifest("v" * 64, num_ids, (corpus,)).write(directory)
    return directory


def random_rows(num_rows, seed=0, longest=9):
    random = np.random.default_rng(seed)
    return [random.integers(0, 60_000, size).tolist() for size in random.integers(0, longest, num_rows)]


@settings(max_examples=60, deadline=None)
@given(
    pairs=PAIRS,
    rows_per_shard=st.integers(1, 12),
    rows_per_batch=st.integers(1, 5),
    rows_per_chunk=st.integers(1, 9),
    dtype=st.sampled_from(sorted(NUM_IDS)),
    data=st.data(),
)
def test_round_trip(tmp_path_factory, pairs, rows_per_shard, rows_per_batch, rows_per_chunk, dtype, data):
    expected = {"source": [pair[0] for pair in pairs], "target": [pair[1] for pair in pairs]}
    directory = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards_module, "ROWS_PER_BATCH", rows_per_batch)
        write_dataset(directory, expected, rows_per_shard, NUM_IDS[dtype], rows_per_chunk)
    corpus = ShardDataset.open(directory, "v" * 64).corpora["en-de"]
    rows = np.array(data.draw(st.lists(st.integers(0, len(pairs) - 1), max_size=60)), np.int64)

    assert corpus.num_rows == len(pairs)
    assert len(list(directory.glob("*.arrow"))) == -(-len(pairs) // rows_per_shard)
    for side, lists in expected.items():
        assert corpus.num_tokens[side] == sum(map(len, lists))
        views = corpus.tokens(side, rows)
        assert [view.tolist() for view in views] == [lists[row] for row in rows]
        assert all(view.dtype == dtype for view in views)
        assert corpus.lengths(side, rows).tolist() == [len(lists[row]) for row in rows]
        whole = [
            batch[side].tokens[begin:end].tolist()
            for batch in corpus.record_batches()
            for begin, end in zip(batch[side].offsets[:-1], batch[side].offsets[1:], strict=True)
        ]
        assert whole == lists


def test_shards_end_early_where_rows_are_long(tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "BYTES_PER_SHARD", 2_000)
    rows = [[index] * 100 for index in range(100)]
    corpus = ShardDataset.open(write_dataset(tmp_path / "d", {"source": rows}, 1_000, name="de")).corpora["de"]
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("d/*.arrow"))]
    assert len(sizes) >= 8 and max(sizes) < 6_000
    assert [row.tolist() for row in corpus.tokens("source", np.arange(100))] == rows


def test_views_are_read_only_and_into_the_mapped_file(tmp_path):
    directory = write_dataset(tmp_path / "d", {"source": random_rows(20)}, name="de")
    corpus = ShardDataset.open(directory).corpora["de"]
    allocated = pa.total_allocated_bytes()
    views = corpus.tokens("source", np.arange(20))
    assert not any(view.flags.writeable or view.flags.owndata for view in views)
    assert pa.total_allocated_bytes() == allocated


def test_files_do_not_stay_open(tmp_path):
    directory = write_dataset(tmp_path / "d", {"source": random_rows(100)}, rows_per_shard=2, name="de")
    corpus = ShardDataset.open(directory).corpora["de"]
    before = len(os.listdir("/proc/self/fd"))
    corpus.lengths("source", np.arange(100))
    assert len(os.listdir("/proc/self/fd")) == before


def test_views_outlive_the_data_set(tmp_path):
    rows = random_rows(30)
    directory = write_dataset(tmp_path / "d", {"source": rows}, name="de")
    views = ShardDataset.open(directory).corpora["de"].tokens("source", np.arange(30))
    assert [view.tolist() for view in views] == rows


def test_pickled_copy_maps_its_own(tmp_path):
    rows = random_rows(20)
    corpus = ShardDataset.open(write_dataset(tmp_path / "d", {"source": rows}, name="de")).corpora["de"]
    corpus.lengths("source", np.arange(20))
    content = pickle.dumps(corpus)
    assert len(content) < 4_000
    copied = pickle.loads(content).tokens("source", np.arange(20))
    assert [view.tolist() for view in copied] == rows


@pytest.mark.parametrize("row", [-1, 20])
def test_row_out_of_range(tmp_path, row):
    directory = write_dataset(tmp_path / "d", {"source": random_rows(20)}, name="de")
    with pytest.raises(IndexError, match="rows 0 to 19"):
        ShardDataset.open(directory).corpora["de"].lengths("source", np.array([3, row]))


def test_schema_says_what_a_shard_is(tmp_path):
    write_dataset(tmp_path / "d", {"source": [[1, 2], [3]], "target": [[4], [5]]})
    schema, batches = read_record_batches(tmp_path / "d" / "en-de.00000.arrow")
    expected = (
        b'{"format_version": 1, "vocabulary_hash": "' + b"v" * 64 + b'", "corpus": "en-de", "kind": "parallel", '
        b'"languages": ["en", "de"], "rows": 2, "tokens": {"source": 3, "target": 2}}'
    )
    assert schema.metadata == {b"deltalm": expected}
    assert schema.field("target").type == pa.list_(pa.uint16())
    assert ragged_views(batches[0])["source"].offsets.tolist() == [0, 2, 3]


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, "all but one byte"])
def test_truncated_shard_is_found_at_open(tmp_path, keep):
    directory = write_dataset(tmp_path / "d", {"source": random_rows(20)}, name="de")
    path = directory / "de.00001.arrow"
    size = path.stat().st_size
    os.truncate(path, size - 1 if keep == "all but one byte" else int(size * keep))
    with pytest.raises(DataError, match=r"de\.00001\.arrow has"):
        ShardDataset.open(directory)


def test_missing_shard_is_found_at_open(tmp_path):
    directory = write_dataset(tmp_path / "d", {"source": random_rows(20)}, name="de")
    (directory / "de.00002.arrow").unlink()
    with pytest.raises(DataError, match=r"de\.00002\.arrow is missing"):
        ShardDataset.open(directory)


def test_other_vocabulary_is_refused_and_both_named(tmp_path):
    directory = write_dataset(tmp_path / "d", {"source": [[1]]}, name="de")
    with pytest.raises(DataError, match=r"v{64}, not with w{64}"):
        ShardDataset.open(directory, "w" * 64)


def test_shard_of_another_data_set_is_refused_when_read(tmp_path):
    first = write_dataset(tmp_path / "a", {"source": [[1, 2], [3]]}, name="de")
    other = write_dataset(tmp_path / "b", {"source": [[1], [2, 3]]}, name="fr")
    shutil.copy(other / "fr.00000.arrow", first / "de.00000.arrow")
    with pytest.raises(DataError, match=r"de\.00000\.arrow is not the shard"):
        ShardDataset.open(first).corpora["de"].lengths("source", np.array([0]))


def test_garbage_of_the_right_size_is_refused_when_read(tmp_path):
    directory = write_dataset(tmp_path / "d", {"source": [[1, 2], [3]]}, name="de")
    path = directory / "de.00000.arrow"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match=r"de\.00000\.arrow is not a readable shard"):
        ShardDataset.open(directory).corpora["de"].lengths("source", np.array([0]))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"rows": 3', '"rows": 2', "was altered"),
        ('"format_version": 1', '"format_version": 2', "format version 2; this program reads version 1"),
        ('"corpora"', '"corpora', "is damaged"),
        ('"checksum"', '"check"', "is damaged"),
    ],
)
def test_altered_manifest_is_refused(tmp_path, old, new, message):
    directory = write_dataset(tmp_path / "d", {"source": [[1], [2], [3]]}, name="de")
    path = directory / "manifest.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        ShardDataset.open(directory)


def test_a_directory_without_manifest_is_no_data_set(tmp_path):
    with pytest.raises(InputError, match="is not a shard data set"):
        ShardDataset.open(tmp_path)


@pytest.mark.parametrize("call", [0, 1, 2])
def test_killed_writer_leaves_only_complete_shards(tmp_path, monkeypatch, call):
    """When renaming number `call` fails, the shards before it are there and nothing else is."""
    replace, calls = os.replace, []

    def failing_replace(source, target):
        calls.append(target)
        if len(calls) > call:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing_replace)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "d", {"source": random_rows(20)}, name="de")
    names = sorted(path.name for path in Path(tmp_path / "d").iterdir())
    assert names == [f"de.{index:05d}.arrow" for index in range(call)]

"""The shard format: what is written is read back, whole or refused."""

import json
import multiprocessing
import os
import pickle
import resource
import shutil
import threading
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalm_ds.arrays.mapped_files import MappedFiles
from deltalm_ds.data import manifest as manifest_module
from deltalm_ds.data import mapped_shards as mapped_shards_module
from deltalm_ds.data import shards as shards_module
from deltalm_ds.data.manifest import CorpusManifest, Manifest, _json_checksum, token_type
from deltalm_ds.data.mapped_shards import MappedShards, read_record_batches
from deltalm_ds.data.shards import ShardDataset, ragged_batch, write_corpus
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
        for module in (manifest_module, mapped_shards_module, shards_module):
            patch.setattr(module, "ROWS_PER_BATCH", rows_per_batch)
        write_dataset(directory, expected, rows_per_shard, NUM_IDS[dtype], rows_per_chunk)
        corpus = ShardDataset.open(directory, "v" * 64).corpora["en-de"]
        rows = np.array(data.draw(st.lists(st.integers(0, len(pairs) - 1), max_size=60)), np.int64)

        assert corpus.num_rows == len(pairs)
        assert len(list(directory.glob("*.arrow"))) == -(-len(pairs) // rows_per_shard)
        for side, lists in expected.items():
            assert corpus.num_tokens[side] == sum(map(len, lists))
            assert [row.tolist() for row in corpus.tokens(side, rows)] == [lists[row] for row in rows]
            lengths = corpus.lengths(side, rows)
            assert lengths.tolist() == [len(lists[row]) for row in rows]
            shortened = corpus.tokens(side, rows, lengths // 2)
            assert [row.tolist() for row in shortened] == [lists[row][: len(lists[row]) // 2] for row in rows]


def test_shards_of_other_record_batches_are_refused(tmp_path, monkeypatch):
    """Where a row lies follows from its number only while all record batches have the size of the format."""
    monkeypatch.setattr(shards_module, "ROWS_PER_BATCH", 2)
    directory = write_dataset(tmp_path / "d", {"source": random_rows(20)}, name="de")
    with pytest.raises(DataError, match=r"de\.00001\.arrow is damaged"):
        ShardDataset.open(directory).corpora["de"].lengths("source", np.array([8]))


def test_the_corpora_of_a_data_set_are_kept_apart(tmp_path):
    """Of both kinds, of several shards each, read in turn and shuffled."""
    rows = {"de": random_rows(15, 1), "en-de": random_rows(23, 2), "fr": random_rows(8, 3)}
    corpora = []
    for name, lists in rows.items():
        sides = {"source": lists, "target": lists[::-1]} if "-" in name else {"source": lists}
        write_dataset(tmp_path, sides, rows_per_shard=4, name=name)
        corpora += Manifest.read(tmp_path).corpora
    Manifest("v" * 64, 65_536, tuple(corpora)).write(tmp_path)
    opened = ShardDataset.open(tmp_path).corpora
    for name in ("en-de", "fr", "de", "en-de"):
        order = np.random.default_rng(0).permutation(len(rows[name]))
        assert [row.tolist() for row in opened[name].tokens("source", order)] == [rows[name][row] for row in order]
    assert [row.tolist() for row in opened["en-de"].tokens("target", np.arange(23))] == rows["en-de"][::-1]


def test_shards_end_early_where_rows_are_long(tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "BYTES_PER_SHARD", 2_000)
    rows = [[index] * 100 for index in range(100)]
    corpus = ShardDataset.open(write_dataset(tmp_path / "d", {"source": rows}, 1_000, name="de")).corpora["de"]
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("d/*.arrow"))]
    assert len(sizes) >= 8 and max(sizes) < 6_000
    assert [row.tolist() for row in corpus.tokens("source", np.arange(100))] == rows


def test_a_mapped_shard_is_a_read_only_view_of_the_file(tmp_path):
    directory = write_dataset(tmp_path / "d", {"source": random_rows(20)}, name="de")
    path = directory / "de.00000.arrow"
    allocated = pa.total_allocated_bytes()
    file = MappedFiles([path.stat().st_size]).map(0, path)
    assert file.tobytes() == path.read_bytes() and not file.flags.writeable
    assert ShardDataset.open(directory).corpora["de"].lengths("source", np.arange(20)).sum() > 0
    assert pa.total_allocated_bytes() == allocated


def test_mapping_reads_no_more_than_it_must(tmp_path):
    """Of 40 MB the record batches' descriptions and the kernel's read-ahead, not all: pyarrow alone would read all."""
    batch = ragged_batch({"source": (np.ones(20_000_000, np.uint16), np.array([20_000_000]))}, np.dtype(np.uint16))
    manifest = Manifest("v" * 64, 65_536)
    corpus = write_corpus(tmp_path, manifest, CorpusManifest("de", "mono", ("de",)), [batch])
    with open(tmp_path / "de.00000.arrow", "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = resource.getrusage(resource.RUSAGE_SELF)
    MappedShards(tmp_path, replace(manifest, corpora=(corpus,))).spans(0, np.array([0]))
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert (after.ru_inblock - before.ru_inblock) * 512 < 20_000_000


def own_memory_bytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private"))


def test_memory_does_not_grow_with_the_size_of_the_shards_only_with_their_number(tmp_path):
    """2,000 shards with 40 million rows (hard links to one file) take a few kB each, once opened and once mapped."""
    lengths = np.full(20_000, 20)
    batch = ragged_batch({"source": (np.arange(lengths.sum()) % 60_000, lengths)}, np.dtype(np.uint16))
    manifest = Manifest("v" * 64, 65_536)
    corpus = write_corpus(tmp_path, manifest, CorpusManifest("de", "mono", ("de",)), [batch])
    names = [f"de.{number:05d}.arrow" for number in range(2_000)]
    for name in names[1:]:
        os.link(tmp_path / names[0], tmp_path / name)
    shards = tuple(replace(corpus.shards[0], file=name) for name in names)
    replace(manifest, corpora=(replace(corpus, shards=shards),)).write(tmp_path)
    before = own_memory_bytes()
    opened = ShardDataset.open(tmp_path).corpora["de"]
    rows = np.arange(7, opened.num_rows, 20_000)
    assert opened.lengths("source", rows).tolist() == [20] * 2_000
    assert opened.tokens("source", rows).values[:20].tolist() == list(range(140, 160))
    assert own_memory_bytes() - before < 2_000 * 10_000  # of 800 kB each


def num_mappings(directory):
    with open("/proc/self/maps") as maps:
        return sum(str(directory) in line for line in maps)


def test_shards_are_mapped_when_needed_and_until_the_data_set_is_gone(tmp_path):
    directory = write_dataset(tmp_path / "d", {"source": random_rows(20)}, rows_per_shard=2, name="de")
    corpus = ShardDataset.open(directory).corpora["de"]
    assert num_mappings(directory) == 0
    for rows, mapped in (([3], 1), ([2, 3], 1), ([0, 19, 1], 3), (range(20), 10)):
        corpus.lengths("source", np.array(rows))
        assert num_mappings(directory) == mapped
    del corpus
    assert num_mappings(directory) == 0


def test_files_do_not_stay_open(tmp_path):
    directory = write_dataset(tmp_path / "d", {"source": random_rows(100)}, rows_per_shard=2, name="de")
    corpus = ShardDataset.open(directory).corpora["de"]
    before = len(os.listdir("/proc/self/fd"))
    corpus.lengths("source", np.arange(100))
    assert len(os.listdir("/proc/self/fd")) == before


def read_all(corpus):
    return [row.tolist() for row in corpus.tokens("source", np.arange(corpus.num_rows))]


def hand_over_all(corpus, queue):
    queue.put(read_all(corpus))
    threading.Event().wait()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_what_the_parent_opened(tmp_path, method):
    """Also what it has mapped; and a worker that is killed leaves nothing behind."""
    rows = random_rows(50)
    directory = write_dataset(tmp_path / "d", {"source": rows}, name="de")
    corpus = ShardDataset.open(directory).corpora["de"]
    assert read_all(corpus) == rows
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    worker = context.Process(target=hand_over_all, args=(corpus, queue), daemon=True)
    worker.start()
    assert queue.get() == rows
    worker.kill()
    worker.join()
    assert read_all(corpus) == rows
    assert sorted(path.suffix for path in directory.iterdir()) == [".arrow"] * 8 + [".json"]
    assert not any("deltalm" in name or str(worker.pid) in name for name in os.listdir("/dev/shm"))


def test_pickled_copy_maps_its_own(tmp_path):
    rows = random_rows(20)
    corpus = ShardDataset.open(write_dataset(tmp_path / "d", {"source": rows}, name="de")).corpora["de"]
    corpus.lengths("source", np.arange(20))
    content = pickle.dumps(corpus)
    assert len(content) < 4_000
    assert read_all(pickle.loads(content)) == rows


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
    assert batches[0].column("source").to_pylist() == [[1, 2], [3]]


def test_a_shard_truncated_anywhere_is_found(tmp_path):
    """At opening; when it was opened before, at the first reading; and by the checks of the content, were it signed."""
    directory = write_dataset(tmp_path / "d", {"source": random_rows(20)}, name="de")
    path = directory / "de.00001.arrow"
    dataset = ShardDataset.open(directory)
    for size in reversed(range(path.stat().st_size)):
        os.truncate(path, size)
        with pytest.raises(DataError, match=r"de\.00001\.arrow has"):
            ShardDataset.open(directory)
        with pytest.raises(DataError, match=r"de\.00001\.arrow has"):
            read_all(dataset.corpora["de"])
        with pytest.raises(DataError):
            read_regardless_of_size(directory, 1)


def read_regardless_of_size(directory, number):
    """The rows of a shard, with what the manifest says of its size put right."""
    manifest = Manifest.read(directory)
    corpus = manifest.corpora[0]
    shard = corpus.shards[number]
    shard = replace(shard, bytes=(directory / shard.file).stat().st_size)
    shards = MappedShards(directory, replace(manifest, corpora=(replace(corpus, shards=(shard,)),)))
    return shards.gather(*shards.spans(0, np.arange(shard.rows)))


@pytest.mark.parametrize("change", [0x01, 0x80, 0xFF])
def test_an_altered_byte_anywhere_is_noticed_or_harmless(tmp_path, change):
    """The reader checks no sums; but whatever it returns has the right shape and comes from inside the file."""
    rows = random_rows(6)
    directory = write_dataset(tmp_path / "d", {"source": rows}, name="de")
    path = directory / "de.00000.arrow"
    num_bytes, noticed, other_ids = path.stat().st_size, 0, 0
    for position in range(num_bytes):
        with open(path, "r+b") as file:  # in place: far faster than writing the file anew
            (byte,) = os.pread(file.fileno(), 1, position)
            os.pwrite(file.fileno(), bytes([byte ^ change]), position)
            try:
                found = read_all(ShardDataset.open(directory).corpora["de"])
            except DataError:
                noticed += 1
                continue
            finally:
                os.pwrite(file.fileno(), bytes([byte]), position)
        assert len(found) == len(rows)
        assert sum(map(len, found)) <= num_bytes and all(0 <= token < 65_536 for row in found for token in row)
        other_ids += found != rows
    assert noticed > num_bytes / 3  # the metadata; the rest is padding, and ids and offsets that fit
    assert 2 * sum(map(len, rows)) <= other_ids <= 2 * sum(map(len, rows)) + 4 * len(rows)


def test_offsets_that_lead_outside_are_noticed(tmp_path):
    rows = [[1, 2, 3], [4, 5], [6]]
    directory = write_dataset(tmp_path / "d", {"source": rows}, name="de")
    path = directory / "de.00000.arrow"
    content = path.read_bytes()
    place = content.index(np.array([0, 3, 5, 6], np.int32).tobytes())
    for offsets in ([0, 3, 5, 7], [0, 3, 2, 6], [-1, 3, 5, 6], [0, 2**31 - 1, 5, 6], [-(2**31), -5, -1, 6]):
        altered = bytearray(content)
        altered[place : place + 16] = np.array(offsets, np.int32).tobytes()
        path.write_bytes(altered)
        corpus = ShardDataset.open(directory).corpora["de"]
        for read in (corpus.lengths, corpus.tokens):
            with pytest.raises(DataError, match=r"de\.00000\.arrow is damaged"):
                read("source", np.arange(3))


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
        ("{", "[" * 100_000, "is damaged"),
    ],
)
def test_altered_manifest_is_refused(tmp_path, old, new, message):
    directory = write_dataset(tmp_path / "d", {"source": [[1], [2], [3]]}, name="de")
    path = directory / "manifest.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        ShardDataset.open(directory)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("file", "../de.00000.arrow"), ("file", "/etc/passwd"), ("file", None), ("file", "de.00001.arrow"),
        ("rows", -3), ("rows", "3"), ("rows", 3.0), ("bytes", None), ("tokens", {}), ("tokens", {"target": 3}),
        ("tokens", {"source": -1}), ("colour", "red"),
    ],
)  # fmt: skip
def test_a_manifest_that_no_build_writes_is_refused_although_it_is_signed(tmp_path, name, value):
    """A file name that leads out of the directory would have `--repair` move any file."""
    directory = write_dataset(tmp_path / "d", {"source": [[1], [2], [3]]}, name="de", rows_per_shard=2)
    content = json.loads((directory / "manifest.json").read_text())
    content["corpora"][0]["shards"][0][name] = value
    content["checksum"] = _json_checksum({key: content[key] for key in content if key != "checksum"})
    (directory / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="is not what a build writes"):
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

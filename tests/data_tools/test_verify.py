"""Verification finds every fault that a data set can have, and all of them at once."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from deltalm_ds.data import manifest as manifest_module
from deltalm_ds.data import mapped_shards as mapped_shards_module
from deltalm_ds.data import shards as shards_module
from deltalm_ds.data.manifest import CorpusManifest, Manifest
from deltalm_ds.data.shards import ShardDataset, ragged_batch, write_corpus
from deltalm_ds.data_tools.verify import Loss, repair, shard_faults, verify
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.files import sha256_of

NUM_IDS = 1_000
PAIR = {"source": [1, 999], "target": [1_000, 1]}


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """Three shards of ten rows, each in batches of four."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, 6, 30)
    batch = ragged_batch({"source": (random.integers(0, NUM_IDS, lengths.sum()), lengths)}, np.dtype(np.uint16))
    manifest = Manifest("v" * 64, NUM_IDS)
    for module in (manifest_module, mapped_shards_module, shards_module):
        monkeypatch.setattr(module, "ROWS_PER_BATCH", 4)
    corpus = write_corpus(tmp_path, manifest, CorpusManifest("de", "mono", ("de",)), [batch], rows_per_shard=10)
    replace(manifest, corpora=(corpus,)).write(tmp_path)
    return tmp_path


def rewrite(directory, index, batches, metadata=None, **changes):
    """Put other record batches into a shard and sign them, as a program with a bug would."""
    manifest = Manifest.read(directory)
    corpus = manifest.corpora[0]
    shard = replace(corpus.shards[index], **changes)
    schema = manifest.shard_schema(corpus, shard.rows, shard.tokens)
    schema = batches[0].schema.with_metadata(metadata or schema.metadata)
    path = directory / shard.file
    with pa.ipc.new_file(str(path), schema) as writer:
        for batch in batches:
            writer.write(batch)
    shard = replace(shard, bytes=path.stat().st_size, sha256=sha256_of(path))
    shards = (*corpus.shards[:index], shard, *corpus.shards[index + 1 :])
    replace(manifest, corpora=(replace(corpus, shards=shards),)).write(directory)


def alter(path, position, change):
    """Flip bits of one byte in place, which takes far less time than writing the file anew."""
    with open(path, "r+b") as file:
        (byte,) = os.pread(file.fileno(), 1, position)
        os.pwrite(file.fileno(), bytes([byte ^ change]), position)


def rows_as_batch(rows, value_type=None):
    return pa.record_batch([pa.array(rows, pa.list_(value_type or pa.uint16()))], names=["source"])


def test_sound_data_set(directory):
    result = verify(directory)
    assert (result.num_shards, result.num_rows, result.faults, result.damaged) == (3, 30, (), ())


def test_an_altered_byte_anywhere_in_a_shard_is_found(directory):
    path = directory / "de.00001.arrow"
    content = path.read_bytes()
    manifest = Manifest.read(directory)
    corpus = manifest.corpora[0]
    for position in range(len(content)):
        alter(path, position, 4)
        (fault,) = shard_faults(path, manifest, corpus, corpus.shards[1])
        alter(path, position, 4)
        assert "de.00001.arrow was altered" in fault
    for size in reversed(range(len(content))):
        os.truncate(path, size)
        (fault,) = shard_faults(path, manifest, corpus, corpus.shards[1])
        assert f"de.00001.arrow has {size:,} bytes" in fault
    path.write_bytes(content)
    assert verify(directory).faults == ()


def test_an_altered_byte_that_was_signed_never_crashes(directory):
    """As above, but size and sum agree, as if a program with a bug had written it: Arrow data is checked in itself."""
    path = directory / "de.00001.arrow"
    manifest = Manifest.read(directory)
    corpus = manifest.corpora[0]
    found, num_bytes = 0, path.stat().st_size
    for position in range(num_bytes):
        alter(path, position, 0x80)
        shard = replace(corpus.shards[1], sha256=sha256_of(path))
        found += bool(shard_faults(path, manifest, corpus, shard))
        alter(path, position, 0x80)
    assert found > num_bytes / 3


def test_an_altered_byte_anywhere_in_the_manifest_is_found_or_harmless(directory):
    path = directory / "manifest.json"
    manifest, found, num_bytes = Manifest.read(directory), 0, path.stat().st_size
    for position in range(0, num_bytes, 3):
        alter(path, position, 4)
        try:
            assert Manifest.read(directory) == manifest
        except DataError:
            found += 1
        alter(path, position, 4)
    assert found > num_bytes / 3 * 0.7


def test_every_fault_is_reported(directory):
    os.truncate(directory / "de.00000.arrow", 100)
    (directory / "de.00001.arrow").unlink()
    altered = directory / "de.00002.arrow"
    shutil.copy(altered, directory / "stray.arrow")
    altered.write_bytes(altered.read_bytes().replace(b"deltalm", b"deltaLM"))
    faults = verify(directory).faults
    expected = (
        "00000.arrow has 100 bytes",
        "00001.arrow is missing",
        "00002.arrow was altered",
        "stray.arrow is not in",
    )
    assert len(faults) == 4
    assert all(part in fault for part, fault in zip(expected, faults, strict=True))


def test_ids_outside_the_vocabulary(directory):
    rewrite(directory, 1, [rows_as_batch([[1, 999], [1_000, 1_001]])], rows=2, tokens={"source": 4})
    assert "2 ids of source are outside the vocabulary of 1,000" in verify(directory).faults[0]


def test_both_sides_of_a_pair_are_checked(directory):
    manifest = replace(Manifest.read(directory), corpora=())
    batch = ragged_batch({side: (np.array(ids), np.array([2])) for side, ids in PAIR.items()}, np.dtype(np.uint16))
    corpus = write_corpus(directory, manifest, CorpusManifest("en-de", "parallel", ("en", "de")), [batch])
    (fault,) = shard_faults(directory / "en-de.00000.arrow", manifest, corpus, corpus.shards[0])
    assert "1 ids of target are outside the vocabulary" in fault


def test_offsets_that_run_backwards(directory):
    offsets = pa.py_buffer(np.array([0, 3, 1, 4], np.int32))
    values = pa.array([1, 2, 3, 4], pa.uint16())
    column = pa.ListArray.from_buffers(pa.list_(pa.uint16()), 3, [None, offsets], children=[values])
    rewrite(directory, 0, [pa.record_batch([column], names=["source"])], rows=3, tokens={"source": 4})
    faults = verify(directory).faults
    assert len(faults) == 1 and "record batch 0: not valid Arrow data" in faults[0]


def test_null_rows(directory):
    rewrite(directory, 0, [rows_as_batch([[1], None])], rows=2, tokens={"source": 1})
    assert "1 rows of source are null" in verify(directory).faults[0]


@pytest.mark.parametrize(
    ("sizes", "rows", "tokens", "fault"),
    [
        ([2], 3, 2, "holds record batches of [2] rows, not of [3]"),
        ([2, 4], 6, 6, "holds record batches of [2, 4] rows, not of [4, 2]"),
        ([4, 2], 6, 7, "holds tokens {'source': 6}, not {'source': 7}"),
    ],
)
def test_wrong_counts(directory, sizes, rows, tokens, fault):
    rewrite(directory, 2, [rows_as_batch([[1]] * size) for size in sizes], rows=rows, tokens={"source": tokens})
    assert fault in verify(directory).faults[0]


@pytest.mark.parametrize("what", ["metadata", "type", "column"])
def test_shard_that_describes_itself_otherwise(directory, what):
    batch = rows_as_batch([[1]], pa.uint32() if what == "type" else None)
    if what == "column":
        batch = batch.rename_columns(["target"])
    metadata = {b"deltalm": b'{"vocabulary_hash": "other"}'} if what == "metadata" else None
    rewrite(directory, 0, [batch], metadata, rows=1, tokens={"source": 1})
    assert "describes itself" in verify(directory).faults[0]


def test_what_is_no_arrow_file(directory):
    manifest = Manifest.read(directory)
    path = directory / "de.00000.arrow"
    path.write_bytes(b"ARROW1\0\0" + bytes(300) + b"ARROW1")
    corpus = manifest.corpora[0]
    shard = replace(corpus.shards[0], bytes=path.stat().st_size, sha256=sha256_of(path))
    replace(manifest, corpora=(replace(corpus, shards=(shard, *corpus.shards[1:])),)).write(directory)
    assert "is not a readable shard" in verify(directory).faults[0]


def test_no_data_set(tmp_path):
    with pytest.raises(InputError, match="is not a shard data set"):
        verify(tmp_path)


def all_rows(directory):
    corpus = ShardDataset.open(directory).corpora["de"]
    return [row.tolist() for row in corpus.tokens("source", np.arange(corpus.num_rows))]


def test_repair_goes_on_without_the_damaged_shards(directory):
    rows = all_rows(directory)
    lost_tokens = sum(map(len, rows[:20]))
    os.truncate(directory / "de.00000.arrow", 100)
    (directory / "de.00001.arrow").unlink()
    shutil.copy(directory / "de.00002.arrow", directory / "stray.arrow")
    losses = repair(directory, verify(directory).damaged)
    assert losses == [Loss("de", 2, 20, {"source": lost_tokens}, 10)]
    assert verify(directory).faults == ()
    assert all_rows(directory) == rows[20:]
    assert Manifest.read(directory).corpora[0].dropped == {"damaged": 20}
    assert sorted(path.name for path in directory.glob("damaged/*")) == ["de.00000.arrow", "stray.arrow"]
    assert (directory / "damaged" / "de.00000.arrow").stat().st_size == 100
    # and once more
    os.truncate(directory / "de.00002.arrow", 0)
    content = (directory / "manifest.json").read_bytes()
    with pytest.raises(DataError, match=r"No shard of .* is sound"):
        repair(directory, verify(directory).damaged)
    assert (directory / "manifest.json").read_bytes() == content and (directory / "de.00002.arrow").exists()


@pytest.mark.parametrize("call", [0, 1, 2])
def test_repair_that_is_killed_can_be_repeated(directory, monkeypatch, call):
    rows = all_rows(directory)
    for number in (0, 2):
        os.truncate(directory / f"de.0000{number}.arrow", 50)
    damaged = verify(directory).damaged
    replace_file, calls = os.replace, []

    def failing_replace(source, target):
        calls.append(target)
        if len(calls) > call:
            raise KeyboardInterrupt
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing_replace)
        patch.setattr(type(directory), "replace", lambda path, target: failing_replace(path, target))
        with pytest.raises(KeyboardInterrupt):
            repair(directory, damaged)
    repair(directory, verify(directory).damaged)
    assert verify(directory).faults == ()
    assert all_rows(directory) == rows[10:20]


def test_a_corpus_without_sound_shards_leaves_the_data_set(directory):
    manifest = Manifest.read(directory)
    batch = ragged_batch({"source": (np.arange(6), np.array([3, 3]))}, np.dtype(np.uint16))
    other = write_corpus(directory, manifest, CorpusManifest("fr", "mono", ("fr",)), [batch])
    replace(manifest, corpora=(*manifest.corpora, other)).write(directory)
    os.truncate(directory / "fr.00000.arrow", 50)
    assert repair(directory, verify(directory).damaged) == [Loss("fr", 1, 2, {"source": 6}, 0)]
    assert list(ShardDataset.open(directory).corpora) == ["de"]

"""Check every byte of a shard data set, and report every fault."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from deltalm_ds.data.manifest import MANIFEST, CorpusManifest, Manifest, Shard, content_fault
from deltalm_ds.data.shards import ragged_views, read_record_batches
from deltalm_ds.errors import DataError
from deltalm_ds.progress import progress


@dataclass(frozen=True)
class Verification:
    """What was looked at, and one sentence for each fault that was found."""

    num_shards: int
    num_rows: int
    faults: tuple[str, ...]


def verify(directory: str | Path) -> Verification:
    """Check sizes, checksums, schemas, offsets, ids and counts of all shards against the manifest.

    Raises:
        InputError: the directory is not a data set.
        DataError: the manifest itself was altered.
    """
    directory = Path(directory)
    manifest = Manifest.read(directory)
    shards = [(corpus, shard) for corpus in manifest.corpora for shard in corpus.shards]
    faults = []
    with progress("Verifying", len(shards), unit="shards") as advance:
        for corpus, shard in shards:
            faults += shard_faults(directory / shard.file, manifest, corpus, shard)
            advance()
    known = {shard.file for _, shard in shards}
    strays = sorted(path for path in directory.glob("*.arrow") if path.name not in known)
    faults += [f"{path} is not in {MANIFEST}" for path in strays]
    return Verification(len(shards), sum(corpus.num_rows for corpus in manifest.corpora), tuple(faults))


def shard_faults(path: Path, manifest: Manifest, corpus: CorpusManifest, shard: Shard) -> list[str]:
    """The faults of one shard; where its bytes are not those that were written, only that is reported."""
    if fault := content_fault(path, shard):
        return [fault]
    try:
        schema, batches = read_record_batches(path)
    except DataError as error:
        return [str(error)]
    if not schema.equals(manifest.shard_schema(corpus, shard.rows, shard.tokens), check_metadata=True):
        return [f"{path} describes itself (columns, vocabulary, corpus or counts) otherwise than {MANIFEST}"]
    faults = []
    tokens: Counter[str] = Counter(dict.fromkeys(corpus.sides, 0))
    for index, batch in enumerate(batches):
        faults += [f"{path}, record batch {index}: {fault}" for fault in _batch_faults(batch, manifest)]
        for side, ragged in ragged_views(batch).items():
            tokens[side] += int(ragged.offsets[-1] - ragged.offsets[0])
    found = sum(batch.num_rows for batch in batches), dict(tokens)
    if found != (shard.rows, shard.tokens):
        faults.append(f"{path} holds {found[0]:,} rows and tokens {found[1]}, not {shard.rows:,} and {shard.tokens}")
    return faults


def _batch_faults(batch: pa.RecordBatch, manifest: Manifest) -> list[str]:
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        return [f"not valid Arrow data ({error})"]
    faults = []
    for (side, ragged), column in zip(ragged_views(batch).items(), batch.columns, strict=True):
        if column.null_count:
            faults.append(f"{column.null_count:,} rows of {side} are null")
        bad = np.count_nonzero(ragged.tokens >= manifest.vocabulary_num_tokens)
        if bad:
            faults.append(f"{bad:,} ids of {side} are outside the vocabulary of {manifest.vocabulary_num_tokens:,}")
    return faults

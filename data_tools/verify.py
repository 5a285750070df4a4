"""Check every byte of a shard data set, report every fault, and repair: go on without the damaged shards."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from deltalm_ds.data.manifest import MANIFEST, CorpusManifest, Manifest, Shard, content_fault, rows_of_batches
from deltalm_ds.data.mapped_shards import read_record_batches
from deltalm_ds.errors import DataError
from deltalm_ds.progress import progress

DAMAGED = "damaged"
"""The folder of a data set to which `repair` moves what it takes out."""


@dataclass(frozen=True)
class Verification:
    """What was looked at, one sentence for each fault that was found, and the files that have any."""

    num_shards: int
    num_rows: int
    faults: tuple[str, ...]
    damaged: tuple[str, ...]


@dataclass(frozen=True)
class Loss:
    """What a corpus has lost with its damaged shards; `rows_left` is 0 where it is gone from the data set."""

    corpus: str
    shards: int
    rows: int
    tokens: dict[str, int]
    rows_left: int


def verify(directory: str | Path) -> Verification:
    """Check sizes, checksums, schemas, offsets, ids and counts of all shards against the manifest.

    Raises:
        InputError: the directory is not a data set.
        DataError: the manifest itself was altered.
    """
    directory = Path(directory)
    manifest = Manifest.read(directory)
    shards = [(corpus, shard) for corpus in manifest.corpora for shard in corpus.shards]
    faults: dict[str, list[str]] = {}
    with progress("Verifying", len(shards), unit="shards") as advance:
        for corpus, shard in shards:
            faults[shard.file] = shard_faults(directory / shard.file, manifest, corpus, shard)
            advance()
    strays = sorted(path for path in directory.glob("*.arrow") if path.name not in faults)
    faults |= {path.name: [f"{path} is not in {MANIFEST}"] for path in strays}
    return Verification(
        len(shards),
        sum(corpus.num_rows for corpus in manifest.corpora),
        tuple(fault for found in faults.values() for fault in found),
        tuple(file for file, found in faults.items() if found),
    )


def repair(directory: str | Path, damaged: tuple[str, ...]) -> list[Loss]:
    """Take the files that a verification found damaged out of the data set, and move them to its folder `damaged`.

    The manifest is rewritten first: stopped at any time, the data set is whole, and another repair ends the work.
    A corpus whose shards are all damaged leaves the data set.

    Returns:
        The loss of each corpus that has any.

    Raises:
        DataError: no sound shard is left; nothing was changed.
    """
    directory = Path(directory)
    manifest = Manifest.read(directory)
    corpora, losses = [], []
    for corpus in manifest.corpora:
        lost = [shard for shard in corpus.shards if shard.file in damaged]
        sound = tuple(shard for shard in corpus.shards if shard.file not in damaged)
        left = replace(corpus, shards=sound)
        if lost:
            rows = sum(shard.rows for shard in lost)
            tokens = {side: corpus.num_tokens[side] - left.num_tokens[side] for side in corpus.sides}
            losses.append(Loss(corpus.name, len(lost), rows, tokens, left.num_rows))
            left = replace(left, dropped={**corpus.dropped, "damaged": corpus.dropped.get("damaged", 0) + rows})
        if sound:
            corpora.append(left)
    if not corpora:
        raise DataError(f"No shard of {directory} is sound: build the data set again.")
    replace(manifest, corpora=tuple(corpora)).write(directory)
    for file in damaged:
        if (directory / file).exists():
            (directory / DAMAGED).mkdir(exist_ok=True)
            (directory / file).replace(directory / DAMAGED / file)
    return losses


def shard_faults(path: Path, manifest: Manifest, corpus: CorpusManifest, shard: Shard) -> list[str]:
    """The faults of one shard; where its bytes are not those that were written, only that is reported.

    Args:
        path: the shard's file.
        manifest: of the data set.
        corpus: the corpus that the shard is of.
        shard: what the manifest says of it.
    """
    if fault := content_fault(path, shard):
        return [fault]
    try:
        schema, batches = read_record_batches(path)
    except DataError as error:
        return [str(error)]
    if not schema.equals(manifest.shard_schema(corpus, shard.rows, shard.tokens), check_metadata=True):
        return [f"{path} describes itself (columns, vocabulary, corpus or counts) otherwise than {MANIFEST}"]
    rows, expected_rows = [batch.num_rows for batch in batches], rows_of_batches(shard.rows)
    if rows != expected_rows:
        return [f"{path} holds record batches of {rows} rows, not of {expected_rows}"]
    faults = [
        f"{path}, record batch {index}: {fault}"
        for index, batch in enumerate(batches)
        for fault in _batch_faults(batch, corpus, manifest.vocabulary_num_tokens)
    ]
    if faults:
        return faults
    tokens: Counter[str] = Counter(dict.fromkeys(corpus.sides, 0))
    for batch in batches:
        tokens.update({side: len(column.flatten()) for side, column in zip(corpus.sides, batch.columns, strict=True)})
    return [] if tokens == shard.tokens else [f"{path} holds tokens {dict(tokens)}, not {shard.tokens}"]


def _batch_faults(batch: pa.RecordBatch, corpus: CorpusManifest, num_ids: int) -> list[str]:
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        return [f"not valid Arrow data ({error})"]
    faults = []
    for side, column in zip(corpus.sides, batch.columns, strict=True):
        if column.null_count:
            faults.append(f"{column.null_count:,} rows of {side} are null")
        bad = np.count_nonzero(column.values.to_numpy() >= num_ids)
        if bad:
            faults.append(f"{bad:,} ids of {side} are outside the vocabulary of {num_ids:,}")
    return faults

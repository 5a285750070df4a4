"""Raw text to token shards: tokenise in many processes, write in order, publish by writing the manifest last.

The result does not depend on the number of processes: text is cut into chunks of a fixed number of records, and
chunks are written in their order. Memory is that of a few chunks and one shard, whatever the size of the corpus.
"""

import errno
import fcntl
import multiprocessing
import pickle
import signal
import sys
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress, count, islice
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from deltalm_ds.data.manifest import MANIFEST, SIDES, CorpusManifest, Manifest, token_type
from deltalm_ds.data.shards import ROWS_PER_SHARD, ragged_batch, write_corpus
from deltalm_ds.data_tools.sources import Record, Source, read_records
from deltalm_ds.errors import InputError
from deltalm_ds.progress import progress
from deltalm_ds.vocabulary import Vocabulary

CHUNK_RECORDS = 1024  # the draws of subword sampling depend on it: part of what a build's result is
CHUNKS_AHEAD = 4  # of each process, so that none waits for the writer
BUILDING = ".building"  # in a directory where a build is under way or was interrupted

Map = Callable[[Iterable["_Chunk"]], Iterator["_Encoded"]]


@dataclass(frozen=True)
class CorpusSpec:
    """A corpus to build: its name, kind (`mono`, `parallel`, `task`), languages of the sides, and text files."""

    name: str
    kind: str
    languages: tuple[str, ...]
    sources: tuple[Source, ...]

    @classmethod
    def from_name(cls, name: str, sources: Sequence[Source]) -> "CorpusSpec":
        """A monolingual corpus from a name like `de`, a parallel one from a name like `en-de`."""
        languages = tuple(name.split("-"))
        if not all(code.replace("_", "").isalnum() for code in languages) or len(languages) > 2:
            raise InputError(f"{name!r} does not name a corpus: write a language as in `de`, or a pair as in `en-de`.")
        return cls(name, "mono" if len(languages) == 1 else "parallel", languages, tuple(sources))

    def records(self, dropped: Counter[str]) -> Iterator[Record]:
        """All records of all files in order; see `read_records`."""
        for source in self.sources:
            yield from read_records(source, len(SIDES[self.kind]), dropped)


def build(
    corpora: Sequence[CorpusSpec],
    vocabulary: Vocabulary,
    out: str | Path,
    *,
    num_processes: int = 1,
    max_tokens: int | None = None,
    overlong: str = "truncate",
    subword_samples: int = 0,
    sample_alpha: float = 0.1,
    seed: int = 0,
    rows_per_shard: int = ROWS_PER_SHARD,
) -> Manifest:
    """Tokenise text into a new shard data set.

    All text is read twice: first to check it, so that bad input is found before anything is written. A build
    that was killed leaves a marker in `out`; the next build into `out` starts over.

    Args:
        max_tokens: the longest a side may be, `</s>` and tags not counted; None for any length.
        overlong: what happens to a longer one: `truncate` cuts it, `drop` leaves the whole row out.
        subword_samples: rows made of each record with different, drawn segmentations (subword regularisation,
            [Kudo18]); 0 makes one row with the best segmentation.
        sample_alpha: smoothing of the drawn segmentations; the smaller, the more varied.
        seed: of the drawn segmentations.

    Returns:
        The manifest: rows, tokens, and what was dropped or truncated, by corpus.

    Raises:
        InputError: the text or a setting is wrong, `out` is in use, or the disk is full. Nothing is left in `out`.
    """
    if overlong not in ("truncate", "drop"):
        raise InputError(f"Overlong rows are handled by 'truncate' or 'drop', not {overlong!r}.")
    if min(num_processes, rows_per_shard, 1 if max_tokens is None else max_tokens) < 1 or subword_samples < 0:
        raise InputError("Numbers of processes, rows and tokens must be 1 or more, of subword samples 0 or more.")
    names = [spec.name for spec in corpora]
    if not names or len(set(names)) < len(names):
        raise InputError(f"Give each corpus once, and at least one; got: {', '.join(names) or 'none'}.")
    vocabulary.encode("")  # a vocabulary that cannot encode says so here

    num_records = {spec.name: _check_records(spec) for spec in corpora}
    manifest = Manifest(vocabulary.hash, vocabulary.num_tokens)
    encode = Encoder(vocabulary, max_tokens, overlong, subword_samples, sample_alpha, seed)
    with _building(Path(out)) as directory, _parallel_map(encode, num_processes) as encode_all:
        written = [
            _build_corpus(spec, num_records[spec.name], directory, manifest, encode_all, rows_per_shard)
            for spec in corpora
        ]
        manifest = replace(manifest, corpora=tuple(written))
        manifest.write(directory)
    return manifest


def _check_records(spec: CorpusSpec) -> int:
    print(f"Checking {spec.name}: {'; '.join(map(str, spec.sources))}", file=sys.stderr)
    dropped: Counter[str] = Counter()
    num_records = sum(1 for _ in spec.records(dropped))
    if num_records == 0:
        files = "; ".join(map(str, spec.sources))
        raise InputError(f"Corpus {spec.name} is empty: no record with text in {files} ({dropped['empty']:,} empty).")
    return num_records


def _build_corpus(
    spec: CorpusSpec, num_records: int, directory: Path, manifest: Manifest, encode_all: Map, rows_per_shard: int
) -> CorpusManifest:
    dropped: Counter[str] = Counter()
    truncated: Counter[str] = Counter()

    def batches() -> Iterator[pa.RecordBatch]:
        with progress(f"Tokenising {spec.name}", num_records, unit="records") as advance:
            for encoded in encode_all(_chunks(spec, dropped)):
                dropped.update(encoded.dropped)
                truncated.update(encoded.truncated)
                yield encoded.batch
                advance(encoded.num_records)

    corpus = CorpusManifest(spec.name, spec.kind, spec.languages)
    corpus = write_corpus(directory, manifest, corpus, batches(), rows_per_shard)
    if corpus.num_rows == 0:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in dropped.items())
        raise InputError(f"Corpus {spec.name} is empty: every record was dropped ({reasons}).")
    return replace(corpus, dropped=dict(dropped), truncated=dict(truncated))


# --- tokenising ---


class _Chunk(NamedTuple):
    corpus: str
    kind: str
    number: int
    records: list[Record]


class _Encoded(NamedTuple):
    batch: pa.RecordBatch
    num_records: int
    dropped: Counter[str]
    truncated: Counter[str]


def _chunks(spec: CorpusSpec, dropped: Counter[str]) -> Iterator[_Chunk]:
    records = spec.records(dropped)
    for number in count():
        chunk = list(islice(records, CHUNK_RECORDS))
        if not chunk:
            return
        yield _Chunk(spec.name, spec.kind, number, chunk)


@dataclass(frozen=True)
class Encoder:
    """Tokenises a chunk of records; the settings are those of `build`."""

    vocabulary: Vocabulary
    max_tokens: int | None
    overlong: str
    subword_samples: int
    sample_alpha: float
    seed: int

    def __call__(self, chunk: _Chunk) -> _Encoded:
        """The rows of a chunk as a record batch, and what was dropped or truncated."""
        dropped: Counter[str] = Counter()
        truncated: Counter[str] = Counter()
        sides = {side: self._segment(chunk, index) for index, side in enumerate(SIDES[chunk.kind])}
        lengths = np.array([[len(row) for row in rows] for rows in sides.values()])
        keep = np.all(lengths > 0, axis=0)
        dropped["empty"] += int(np.count_nonzero(~keep))
        if self.max_tokens is not None:
            too_long = keep & (lengths > self.max_tokens)
            if self.overlong == "drop":
                dropped["overlong"] += int(np.count_nonzero(too_long.any(axis=0)))
                keep &= ~too_long.any(axis=0)
            else:
                truncated.update(dict(zip(sides, map(int, too_long.sum(axis=1)), strict=True)))
            lengths = np.minimum(lengths, self.max_tokens)
        columns = {}
        for (side, rows), side_lengths in zip(sides.items(), lengths, strict=True):
            kept = [row[: self.max_tokens] for row in compress(rows, keep)]
            columns[side] = np.concatenate([np.empty(0, np.int64), *kept]), side_lengths[keep]
        batch = ragged_batch(columns, token_type(self.vocabulary.num_tokens))
        return _Encoded(batch, len(chunk.records), +dropped, +truncated)

    def _segment(self, chunk: _Chunk, side: int) -> list[np.ndarray]:
        texts = [record[side] for record in chunk.records]
        if self.subword_samples == 0:
            return self.vocabulary.encode_batch(texts)
        rows = []
        for sample in range(self.subword_samples):
            seed = zlib.crc32(f"{self.seed} {chunk.corpus} {chunk.number} {side} {sample}".encode())
            rows += self.vocabulary.encode_batch(texts, sample_alpha=self.sample_alpha, seed=seed)
        return rows


_worker_encoder: Encoder


def _start_worker(encoder_path: str) -> None:
    global _worker_encoder
    with open(encoder_path, "rb") as file:
        _worker_encoder = pickle.load(file)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too and stops the workers


def _encode_in_worker(chunk: _Chunk) -> _Encoded:
    return _worker_encoder(chunk)


@contextmanager
def _parallel_map(encode: Encoder, num_processes: int) -> Iterator[Map]:
    """Yield a `map` of `encode` over chunks that keeps their order and reads only a little ahead."""
    if num_processes == 1:
        yield partial(map, encode)
        return
    context = multiprocessing.get_context("spawn")  # safe whatever threads the caller has
    with NamedTemporaryFile(prefix="deltalm-") as file:
        # As an argument a large vocabulary would fill the pipe to a worker that dies at its start, and block us.
        pickle.dump(encode, file)
        file.flush()
        pool = ProcessPoolExecutor(num_processes, context, _start_worker, (file.name,))
        try:
            yield partial(_map_in_order, pool, CHUNKS_AHEAD * num_processes)
        except BrokenProcessPool:
            raise InputError(
                "A tokenising process died (killed for want of memory, or see its message above): try again with "
                "fewer processes."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _map_in_order(pool: ProcessPoolExecutor, num_ahead: int, chunks: Iterable[_Chunk]) -> Iterator[_Encoded]:
    pending: deque[Future[_Encoded]] = deque()
    for chunk in chunks:
        pending.append(pool.submit(_encode_in_worker, chunk))
        if len(pending) > num_ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


# --- the directory ---


@contextmanager
def _building(directory: Path) -> Iterator[Path]:
    """Hold `directory` for a build; when the block fails, nothing of it is left.

    Raises:
        InputError: the directory holds something else, another process builds there, or the disk got full.
    """
    if (directory / MANIFEST).exists():
        raise InputError(f"{directory} is a data set already: name a new directory or remove it first.")
    marker = directory / BUILDING
    if directory.exists() and not marker.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"{directory} exists and is not empty: name a new directory or remove it first.")
    directory.mkdir(parents=True, exist_ok=True)
    with open(marker, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"Another process is building in {directory}: wait for it or name another one.") from None
        except OSError:
            pass  # a file system without locks
        try:
            _remove_shards(directory)
            yield directory
            marker.unlink()
        except BaseException as error:
            _remove_shards(directory)
            marker.unlink(missing_ok=True)
            with suppress(OSError):
                directory.rmdir()
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise InputError(
                    f"The disk got full while writing to {directory}: make room, or name a directory on another "
                    "disk, and build again. The unfinished data set was removed."
                ) from error
            raise


def _remove_shards(directory: Path) -> None:
    for pattern in ("*.arrow", ".*.tmp"):
        for path in directory.glob(pattern):
            path.unlink()

"""Raw text to token shards: cut all text into parts, encode each part to a shard, publish by writing the manifest.

Both passes are jobs for any number of workers, and the shards do not depend on their number. What a job made is
complete or absent, so that an interrupted build goes on where it was: a part without its shard is encoded again, a
source without its parts is read again. Memory is that of one shard a worker, whatever the size of the corpus.
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from deltalm_ds.data.manifest import MANIFEST, SIDES, CorpusManifest, Manifest
from deltalm_ds.data_tools.cut import Cut, CutResult, cut_source, source_bytes
from deltalm_ds.data_tools.duplicates import RECORDS_PER_RANGE, FindDuplicates, HashPart, find_duplicates, hash_part
from deltalm_ds.data_tools.encode import EncodePart, EncodeResult, encode_part, result_path
from deltalm_ds.data_tools.filters import Settings
from deltalm_ds.data_tools.sources import TextSource, divide
from deltalm_ds.data_tools.workers import StoredVocabulary, Workers
from deltalm_ds.errors import InputError
from deltalm_ds.files import locked, naming_full_disk, read_json, write_json
from deltalm_ds.languages import is_code, scripts_of, split_codes
from deltalm_ds.lines import STDIN
from deltalm_ds.progress import progress
from deltalm_ds.vocabulary import Vocabulary

BUILDING = ".building"  # in a directory where a build is under way or was interrupted: all that it works on
SPECIFICATION = "specification.json"  # in there, once all text was cut: what the shards are made of and how
PARTS_PER_SPAN = 8  # about as many parts come of each span of a large plain file
NUM_PARTS = 256  # enough for many workers to end at nearly the same time
CHARACTERS_PER_PART = (1 << 20, 64 << 20)  # what becomes of a part is put together in memory: a worker's memory


@dataclass(frozen=True)
class CorpusSpec:
    """A corpus to build: its name, kind (`mono`, `parallel`, `task`), languages of the sides, and text files."""

    name: str
    kind: str
    languages: tuple[str, ...]
    sources: tuple[TextSource, ...]

    def __post_init__(self) -> None:
        if len(self.languages) != len(SIDES[self.kind]) or not (
            _is_name(self.name) and all(map(is_code, self.languages))
        ):
            raise InputError(
                f"{self.name!r} with {', '.join(self.languages) or 'no languages'} does not name a corpus: write a "
                "language as in de or pt-BR, a pair as in en-de or en-pt-BR, or a task and the languages of its sides "
                "as in headlines:fr-fr."
            )

    @classmethod
    def from_name(cls, name: str, sources: Sequence[TextSource]) -> "CorpusSpec":
        """A corpus of pairs from a name like `en-de`, of one language from `de`, of a task from `headlines:fr-fr`.

        Raises:
            InputError: it is no such name.
        """
        name, colon, pair = name.partition(":")
        try:
            languages = split_codes(pair if colon else name)
        except InputError as error:
            raise InputError(f"{name!r} does not name a corpus: {error} A task is named as headlines:fr-fr.") from None
        kind = "task" if colon else "mono" if len(languages) == 1 else "parallel"
        return cls(name, kind, languages, tuple(sources))


def _is_name(name: str) -> bool:
    """Whether this can begin the names of files; a language code can."""
    return all(part.replace("_", "").isalnum() for part in name.split("-"))


def build(
    corpora: Sequence[CorpusSpec],
    vocabulary: Vocabulary,
    out: str | Path,
    settings: Settings | None = None,
    workers: Workers | None = None,
) -> Manifest:
    """Tokenise text into a new shard data set, or go on with the one that was begun in `out`.

    All text is read and checked before anything is tokenised. While building, `out` holds a copy of the text that
    shrinks as the shards grow.

    Args:
        settings: what is left out and how rows are made; the defaults if not given.
        workers: what does the work; this process if not given.

    Returns:
        The manifest: rows, tokens, and what was dropped or truncated, by corpus.

    Raises:
        InputError: the text or a setting is wrong, `out` is in use or holds something else, or the disk is full. What
            is finished stays for the next try; if nothing is, nothing stays.
    """
    settings, workers = settings or Settings(), workers or Workers()
    _check_corpora(corpora, settings)
    vocabulary.encode("")  # a vocabulary that cannot encode says so here
    out = Path(out)
    with _building(out) as directory:
        max_characters = _characters_per_part(corpora)
        cuts = {spec: _cuts(spec, directory, settings, max_characters) for spec in corpora}
        specification = _specification(cuts, vocabulary, settings)
        _check_specification(directory, specification)
        if not (out / MANIFEST).exists():  # else the build was interrupted at its very end
            _run_cuts(list(chain(*cuts.values())), workers)
            stored = StoredVocabulary(directory, vocabulary.hash)
            results = {spec: [_result(cut) for cut in cuts[spec]] for spec in corpora}
            parts = {spec: _parts(spec, cuts[spec], results[spec], stored, settings) for spec in corpora}
            vocabulary.save(directory)
            write_json(directory / SPECIFICATION, specification)
            if settings.deduplicate:
                _find_duplicates(list(parts.values()), workers)
            _run_parts(list(chain(*parts.values())), workers)
            written = tuple(_corpus_manifest(spec, results[spec], parts[spec]) for spec in corpora)
            Manifest(vocabulary.hash, vocabulary.num_tokens, written).write(out)
    return Manifest.read(out)


def _check_corpora(corpora: Sequence[CorpusSpec], settings: Settings) -> None:
    names = [spec.name for spec in corpora]
    if not names or len(set(names)) < len(names):
        raise InputError(f"Give each corpus once, and at least one; got: {', '.join(names) or 'none'}.")
    if sum(source.files.count(STDIN) for spec in corpora for source in spec.sources) > 1:
        raise InputError("Standard input can be read only once.")
    for spec in corpora:
        counts = Counter(
            replace(source, files=tuple(path.absolute() for path in source.files)) for source in spec.sources
        )
        if twice := [source for source, count in counts.items() if count > 1]:
            raise InputError(f"{twice[0]} is given twice for the corpus {spec.name}.")
        if settings.min_script_share is not None:
            for language in spec.languages:
                scripts_of(language)


# --- what is to be done ---


def _characters_per_part(corpora: Sequence[CorpusSpec]) -> int:
    """Small text in many small parts, large text in large ones; the largest where a size is not known."""
    sources = [source for spec in corpora for source in spec.sources]
    least, most = CHARACTERS_PER_PART
    if any(STDIN in source.files for source in sources):
        return most
    return min(max(sum(map(source_bytes, sources)) // NUM_PARTS, least), most)


def _cuts(spec: CorpusSpec, directory: Path, settings: Settings, max_characters: int) -> list[Cut]:
    documents = spec.kind == "mono" and settings.window_tokens is not None
    max_records = max(1, settings.rows_per_shard // max(1, settings.subword_samples))
    span_bytes = PARTS_PER_SPAN * max_characters
    spans = [[source] if documents else divide(source, span_bytes) for source in spec.sources]
    return [
        Cut(spec.name, spec.kind, spec.languages, index, source, documents, max_records, max_characters, directory)
        for index, source in enumerate(chain(*spans))
    ]


def _parts(
    spec: CorpusSpec, cuts: list[Cut], results: list[CutResult], vocabulary: StoredVocabulary, settings: Settings
) -> list[EncodePart]:
    """The parts of a corpus in order; the number of a shard is that of its part."""
    num_records = sum(sum(result.records) for result in results)
    if num_records == 0:
        files = "; ".join(map(str, spec.sources))
        dropped = sum((Counter(result.dropped) for result in results), Counter())
        counts = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items()) or "0 empty"
        raise InputError(f"Corpus {spec.name} is empty: no record with text in {files} ({counts}).")
    num_ranges = -(-num_records // RECORDS_PER_RANGE) if settings.deduplicate else 0
    directory = vocabulary.directory
    duplicates = tuple(directory / f"{spec.name}.duplicates{index:05d}.npy" for index in range(num_ranges))
    parts: list[EncodePart] = []
    for cut, result in zip(cuts, results, strict=True):
        firsts = accumulate(result.records, initial=0)
        for number, (records, first) in enumerate(zip(result.records, firsts, strict=False)):
            shard = directory.parent / f"{spec.name}.{len(parts):05d}.arrow"
            parts.append(
                EncodePart(
                    corpus=spec.name,
                    kind=spec.kind,
                    languages=spec.languages,
                    part=cut.part_path(number),
                    shard=shard,
                    index=len(parts),
                    source=cut.index,
                    first_record=first,
                    num_records=records,
                    duplicates=duplicates,
                    vocabulary=vocabulary,
                    settings=settings,
                )
            )
    return parts


def _result(cut: Cut) -> CutResult:
    result = cut.result()
    if result is None:
        raise InputError(f"{cut.source} changed while it was built from: build again when nobody writes to it.")
    return result


def _specification(cuts: dict[CorpusSpec, list[Cut]], vocabulary: Vocabulary, settings: Settings) -> dict[str, Any]:
    """All that decides what the shards are, one line each, so that a difference can be named."""
    specification: dict[str, Any] = {"the vocabulary": vocabulary.hash}
    specification |= {name.replace("_", " "): value for name, value in asdict(settings).items()}
    for spec, of_corpus in cuts.items():
        fingerprints = [cut.fingerprint() for cut in of_corpus]
        specification[f"the text of {spec.name}"] = [spec.kind, list(spec.languages), fingerprints]
    return specification


def _check_specification(directory: Path, specification: dict[str, Any]) -> None:
    if not (directory / SPECIFICATION).exists():
        return
    begun = read_json(directory / SPECIFICATION)
    if differences := [name for name in {**begun, **specification} if begun.get(name) != specification.get(name)]:
        raise InputError(
            f"{directory.parent} holds the beginning of another build; what differs: {', '.join(differences)}. Go on "
            "with the same text and settings, or remove the directory."
        )


# --- doing it ---


def _run_cuts(cuts: list[Cut], workers: Workers) -> None:
    """Cut the sources that are not cut yet."""
    missing = [cut for cut in cuts if not _is_cut(cut)]
    piped = [cut for cut in missing if STDIN in cut.source.files]
    files = [cut for cut in missing if STDIN not in cut.source.files]
    num_bytes = sum(cut.num_bytes for cut in cuts)
    num_done = num_bytes - sum(cut.num_bytes for cut in missing)
    with progress("Reading", num_bytes, unit="bytes", start=num_done) as advance:
        for cut in chain(map(cut_source, piped), workers.run(cut_source, files)):
            advance(cut.num_bytes)


def _is_cut(cut: Cut) -> bool:
    """Whether of each part there is the text or the shard."""
    result = cut.result()
    if result is None:
        return False
    paths = map(cut.part_path, range(len(result.records)))
    return all(path.exists() or EncodeResult.read(result_path(path), cut.directory.parent) for path in paths)


def _find_duplicates(parts_of_corpora: list[list[EncodePart]], workers: Workers) -> None:
    """Find the duplicates of the corpora for which that was not done before."""
    missing = [parts for parts in parts_of_corpora if not all(path.exists() for path in parts[0].duplicates)]
    hashes = [[HashPart(part.part, part.vocabulary) for part in parts] for parts in missing]
    with progress("Hashing", sum(map(len, hashes)), unit="parts") as advance:
        for _ in workers.run(hash_part, chain(*hashes)):
            advance()
    ranges = []
    for parts, of_corpus in zip(missing, hashes, strict=True):
        hash_paths, paths = tuple(part.path for part in of_corpus), parts[0].duplicates
        ranges += [FindDuplicates(hash_paths, index, len(paths), path) for index, path in enumerate(paths)]
    for _ in workers.run(find_duplicates, ranges):
        pass


def _run_parts(parts: list[EncodePart], workers: Workers) -> None:
    """Encode the parts that are not encoded yet."""
    missing = [part for part in parts if EncodeResult.read(part.path, part.shard.parent) is None]
    num_records = sum(part.num_records for part in parts)
    num_done = num_records - sum(part.num_records for part in missing)
    with progress("Tokenising", num_records, unit="records", start=num_done) as advance:
        for count in workers.run(encode_part, missing):
            advance(count)


def _corpus_manifest(spec: CorpusSpec, cuts: list[CutResult], parts: list[EncodePart]) -> CorpusManifest:
    results = [EncodeResult.read(part.path, part.shard.parent) for part in parts]
    dropped: Counter[str] = Counter()
    truncated: Counter[str] = Counter()
    for cut in cuts:
        dropped.update(cut.dropped)
    shards = []
    for result in results:
        assert result is not None
        dropped.update(result.dropped)
        truncated.update(result.truncated)
        if result.shard:
            shards.append(result.shard)
    if not shards:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in dropped.items())
        raise InputError(f"Corpus {spec.name} is empty: every record was dropped ({reasons}).")
    return CorpusManifest(spec.name, spec.kind, spec.languages, tuple(shards), dict(dropped), dict(truncated))


# --- the directory ---


@contextmanager
def _building(out: Path) -> Iterator[Path]:
    """Hold `out` for a build and yield the directory to work in; when the block fails, finished work is left.

    Raises:
        InputError: the directory holds something else, another process builds there, or the disk got full.
    """
    directory = out / BUILDING
    if out.exists() and not directory.exists():
        if (out / MANIFEST).exists():
            raise InputError(f"{out} is a data set already: name a new directory or remove it first.")
        if not out.is_dir() or any(out.iterdir()):
            raise InputError(f"{out} exists and is not empty: name a new directory or remove it first.")
    directory.mkdir(parents=True, exist_ok=True)
    in_use = f"Another process is building in {out}: wait for it or name another directory."
    advice = "make room and build again. Finished shards are kept, and the build goes on where it was."
    with naming_full_disk(out, advice), locked(directory / "lock", in_use):
        try:
            _remove_unfinished(out)
            yield directory
            for path in sorted(directory.iterdir(), key=lambda path: path.name == SPECIFICATION):
                path.unlink()  # the specification last: while it is there, it says what the data set was made of
            directory.rmdir()
        except BaseException:
            _remove_unfinished(out)
            if not any(directory.glob("*.json")):
                shutil.rmtree(directory)
                with suppress(OSError):
                    out.rmdir()
            raise


def _remove_unfinished(out: Path) -> None:
    for path in [*out.glob(".*.tmp"), *out.glob(f"{BUILDING}/.*.tmp")]:
        path.unlink()

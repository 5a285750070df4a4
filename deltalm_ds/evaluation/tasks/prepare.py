"""From the published files of a task to what `deltalm train` and `deltalm evaluate` read.

text/{split}.{direction}.jsonl   test sets: sources with all their references
pairs/{split}.{direction}.jsonl  training and validation: a source and a target
vocabulary/  train/  dev/  mono/ shards of them, as far as the task has them
task.json                        what was made of what, and what was left out
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deltalm_ds.data_tools.build import CorpusSpec, build
from deltalm_ds.data_tools.sources import TextSource
from deltalm_ds.data_tools.train_vocabulary import train as train_vocabulary
from deltalm_ds.data_tools.workers import Workers
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.evaluation.tasks import find_task
from deltalm_ds.evaluation.tasks.interface import Form, Part, Task
from deltalm_ds.evaluation.tasks.overlap import Overlap
from deltalm_ds.files import atomic_directory, read_json, write_json
from deltalm_ds.progress import progress
from deltalm_ds.vocabulary import Vocabulary
from deltalm_ds.vocabulary.blocks import make_blocks

DESCRIPTION = "task.json"
MONO = "mono"
TESTED, TRAINED = ("dev", "test"), ("train", "dev", MONO)


@dataclass(frozen=True)
class PreparedPart:
    """What became of a part: its items, the rows for training (a row a target), and what was left out, by reason.

    Attributes:
        name: such as `test.en-de`.
        in_training: of a test set, the items whose source is in the training data too.
    """

    name: str
    items: int
    rows: int
    dropped: dict[str, int]
    in_training: int = 0


@dataclass(frozen=True)
class Prepared:
    """The description of a prepared directory, `task.json`.

    Attributes:
        task: its name.
        form: the form that the data came in.
        absent: the parts of the form whose files were not there.
    """

    task: str
    form: str
    parts: tuple[PreparedPart, ...]
    absent: tuple[str, ...]

    @classmethod
    def read(cls, directory: str | Path) -> "Prepared":
        """That of a directory; InputError if there is none, DataError if it is not as it was written."""
        content = read_json(Path(directory) / DESCRIPTION)
        try:
            parts = tuple(PreparedPart(**part) for part in content["parts"])
            return cls(content["task"], content["form"], parts, tuple(content["absent"]))
        except (KeyError, TypeError):
            raise DataError(f"{directory}/{DESCRIPTION} does not describe a prepared task: prepare it again.") from None

    @property
    def warnings(self) -> list[str]:
        """Test sets that are in the training data, a sentence each."""
        return [
            f"{part.in_training:,} of {part.items:,} sources of {part.name} are in the training data."
            for part in self.parts
            if part.in_training
        ]


def find_form(task: Task, directory: Path) -> Form:
    """The form of which most parts are there whole.

    Raises:
        InputError: there is none of which anything to train on or to test with is there; or a part is there by halves.
    """
    counts = {
        form.name: sum(_is_there(part, directory) for part in form.of_split("train", "test")) for form in task.forms
    }
    form = max(task.forms, key=lambda form: counts[form.name])
    if not counts[form.name]:
        expected = "; or ".join(
            f"{form.what} ({', '.join(dict.fromkeys(name for part in form.parts[:3] for name in part.files))}, …)"
            for form in task.forms
        )
        raise InputError(f"{directory} has no data of {task.name}: expected {expected}.")
    return form


def _is_there(part: Part, directory: Path) -> bool:
    found = part.find(directory)
    if any(found) and not all(found):
        missing = [pattern for pattern, files in zip(part.files, found, strict=True) if not files]
        raise InputError(f"{directory} has not all files of {part.name}: there is no {missing[0]}.")
    return all(found)


def prepare(
    name: str,
    directory: str | Path,
    out: str | Path,
    vocabulary: str | Path | None = None,
    vocabulary_size: int | None = None,
    workers: Workers | None = None,
) -> Prepared:
    """Make of a task's published files all that training and evaluation need, in a new directory.

    Args:
        name: of the task, one of `TASKS`.
        directory: of the published files, or of those of its sample.
        out: the new directory.
        vocabulary: the directory of one whose pieces and sentinels are taken; tags and task tokens become the task's.
        vocabulary_size: pieces of a vocabulary trained on the training text; either this or `vocabulary` is given.
        workers: what tokenises; this process if not given.

    Raises:
        InputError: an unknown task, files that are not there or not as published, or `out` exists.
    """
    task, directory = find_task(name), Path(directory)
    if (vocabulary is None) == (vocabulary_size is None):
        raise InputError("Name a vocabulary to take the pieces of (--vocab), or the size of a new one (--vocab-size).")
    if not directory.is_dir():
        raise InputError(f"{directory} is no directory: name the one with the published files of {name}.")
    form = find_form(task, directory)
    known = Vocabulary.load(vocabulary) if vocabulary is not None else None
    with atomic_directory(out) as new:
        (new / "text").mkdir()
        (new / "pairs").mkdir()
        there = [part for part in form.parts if _is_there(part, directory)]
        absent = tuple(part.name for part in form.parts if part not in there)
        parts = _write_parts(there, directory, new)
        if any(part.split == "train" for part in there):
            _make_vocabulary(task, form, there, new, known, vocabulary_size)
            _build_shards(task, there, new, workers)
        prepared = Prepared(task.name, form.name, tuple(parts), absent)
        write_json(new / DESCRIPTION, asdict(prepared))
    return prepared


# --- text ---


def _write_parts(parts: Sequence[Part], directory: Path, out: Path) -> list[PreparedPart]:
    """Test sets before training text, so that only their sources are kept in memory to be looked for there."""
    overlap = Overlap()
    written: dict[str, PreparedPart] = {}
    with progress("Reading", len(parts), unit="files") as advance:
        for part in sorted(parts, key=lambda part: part.split not in TESTED):
            written[part.name] = _write_part(part, directory, out, overlap)
            advance()
    return [replace(written[part.name], in_training=overlap.count(part)) for part in parts]


def _write_part(part: Part, directory: Path, out: Path, overlap: Overlap) -> PreparedPart:
    dropped: Counter[str] = Counter()
    num_items = num_rows = 0
    files = [path for found in part.find(directory) for path in found]
    with _lines_of(out / "text", part, TESTED) as write_test, _lines_of(out / "pairs", part, TRAINED) as write_pair:
        for source, targets in part.read(files, dropped):
            source = " ".join(source.split())
            targets = [text for target in targets if (text := " ".join(target.split()))]
            if not source or not (targets or part.split == MONO):
                dropped["no reference" if source else "empty"] += 1
                continue
            num_items += 1
            num_rows += len(targets) or 1
            write_test({"source": source, "references": targets})
            for row in [{"source": source, "target": target} for target in targets] or [{"text": source}]:
                write_pair(row)
            if part.split in TESTED:
                overlap.add_test(part, source)
            elif part.split == "train":
                overlap.add_training(part, source, targets)
    if not num_items:
        raise InputError(f"There is nothing in {', '.join(map(str, files))} ({dict(+dropped)} left out).")
    return PreparedPart(part.name, num_items, num_rows, dict(+dropped))


@contextmanager
def _lines_of(directory: Path, part: Part, splits: Sequence[str]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What writes a line to the file of a part; nothing for a part of none of these splits."""
    if part.split not in splits:
        yield lambda _row: None
        return
    with open(directory / f"{part.name}.jsonl", "w", encoding="utf-8") as file:

        def write(row: dict[str, Any]) -> None:
            try:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            except UnicodeEncodeError:  # an escape such as \ud800 is valid JSON but not valid text
                raise InputError(f"{part.name} has half a surrogate pair, which is no text: {str(row)[:80]}.") from None

        yield write


# --- vocabulary and shards ---


def _make_vocabulary(
    task: Task, form: Form, parts: Sequence[Part], out: Path, known: Vocabulary | None, size: int | None
) -> None:
    """Write `vocabulary/`: the pieces of a known one, or of one trained on the training text; the task's own tokens."""
    languages = form.tagged_languages
    if known is not None:
        blocks = make_blocks(known.blocks["pieces"], len(known.sentinel_ids), languages, task.task_tokens)
        Vocabulary(blocks, known.spm_model).save(out / "vocabulary")
        return
    assert size is not None
    texts = [
        f"{out}/pairs/{part.name}.jsonl:{field}"
        for part in parts
        if part.split in ("train", MONO)
        for field in (("text",) if part.split == MONO else ("source", "target"))
    ]
    train_vocabulary(texts, out / "vocabulary", size, languages=languages, tasks=task.task_tokens)


def _build_shards(task: Task, parts: Sequence[Part], out: Path, workers: Workers | None) -> None:
    vocabulary = Vocabulary.load(out / "vocabulary")
    for split in TRAINED:
        corpora: dict[frozenset[str] | tuple[str, ...], CorpusSpec] = {}
        for part in parts:
            if part.split == split:  # a pair once, whichever way round
                key = frozenset(part.languages) if part.is_pair else part.languages
                corpora.setdefault(key, _corpus(task, part, out))
        if corpora:
            build(list(corpora.values()), vocabulary, out / split, workers=workers)


def _corpus(task: Task, part: Part, out: Path) -> CorpusSpec:
    kind = MONO if part.split == MONO else "parallel" if part.is_pair else "task"
    name = "_".join([task.name, *dict.fromkeys(part.languages)]) if kind == "task" else part.direction
    return CorpusSpec(name, kind, part.languages, (TextSource((out / "pairs" / f"{part.name}.jsonl",)),))

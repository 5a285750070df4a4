"""Systems that a suite compares: models, outputs in files, and floors; how a user names them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.floors import first_sentence, memory_file, read_memory
from deltalm_ds.evaluation.test_sets import TestSet
from deltalm_ds.evaluation.translation import translate_test_set
from deltalm_ds.files import sha256_of
from deltalm_ds.generation.interface import Engine, ModelVocabulary, SearchOptions
from deltalm_ds.generation.loading import load_engine, load_vocabulary
from deltalm_ds.lines import read_lines

COPY, LEAD, MEMORY = "copy", "lead", "memory:"
KINDS = (
    f"a model directory or export, a directory with DIRECTION.hyp, a file of outputs, {COPY}, {LEAD} (the first "
    f"sentence), or {MEMORY}PREPARED (the target of the nearest source in training)"
)


class System(Protocol):
    """What makes outputs for a test set."""

    @property
    def name(self) -> str:
        """In tables."""
        ...

    @property
    def is_slow(self) -> bool:
        """Whether outputs are worth keeping."""
        ...

    def identity(self, direction: str) -> str:
        """What tells its outputs for a direction from any other's, beside the sources and the search."""
        ...

    def outputs(self, test: TestSet, options: SearchOptions) -> list[str]:
        """An output for each source; InputError where it has none for this direction."""
        ...


@dataclass(frozen=True)
class FloorSystem:
    """Outputs that follow from the sources by a rule."""

    name: str
    rule: Callable[[str, str], str]
    is_slow: bool = False

    def identity(self, direction: str) -> str:
        return self.name

    def outputs(self, test: TestSet, options: SearchOptions) -> list[str]:
        return [self.rule(source, test.target_lang) for source in test.sources]


@dataclass(frozen=True)
class MemorySystem:
    """The target of the nearest training source."""

    name: str
    directory: Path
    is_slow: bool = True

    def identity(self, direction: str) -> str:
        return f"memory {_content_of([memory_file(self.directory, direction)[0]])}"

    def outputs(self, test: TestSet, options: SearchOptions) -> list[str]:
        memory = read_memory(self.directory, test.direction)
        return [memory.nearest(source) for source in test.sources]


@dataclass(frozen=True)
class OutputsSystem:
    """Outputs that are there already: a file for each direction."""

    name: str
    path: Path
    is_slow: bool = False

    def identity(self, direction: str) -> str:
        return f"outputs {_content_of([self._file(direction)])}"

    def outputs(self, test: TestSet, options: SearchOptions) -> list[str]:
        path = self._file(test.direction)
        lines = read_lines(path)
        if len(lines) != len(test.sources):
            raise InputError(
                f"{path} has {len(lines):,} lines, but {test.direction} has {len(test.sources):,} sources."
            )
        return lines

    def _file(self, direction: str) -> Path:
        path = self.path / f"{direction}.hyp" if self.path.is_dir() else self.path
        if not path.exists():
            raise InputError(f"{self.path} has no outputs for {direction}: expected {path.name}.")
        return path


class ModelSystem:
    """A model, opened when it is needed first.

    Args:
        name: in tables.
        directory: a model directory or an export.
        open_engine: opens it.
    """

    is_slow = True

    def __init__(self, name: str, directory: Path, open_engine: Callable[[Path], Engine] = load_engine) -> None:
        self.name, self.directory = name, directory
        self._open = open_engine

    @cached_property
    def _engine(self) -> Engine:
        return self._open(self.directory)

    @cached_property
    def _vocabulary(self) -> ModelVocabulary:
        return load_vocabulary(self.directory)

    @cached_property
    def content(self) -> str:
        """The hash of all its files."""
        return _content_of(sorted(path for path in self.directory.rglob("*") if path.is_file()), self.directory)

    def identity(self, direction: str) -> str:
        return f"model {self.content}"

    def outputs(self, test: TestSet, options: SearchOptions) -> list[str]:
        return translate_test_set(self._engine, self._vocabulary, test, options)


def find_systems(names: Sequence[str], open_engine: Callable[[Path], Engine] = load_engine) -> list[System]:
    """The systems that a user names, each once; `NAME=` before one gives it a name in tables.

    Args:
        names: what `KINDS` says.
        open_engine: opens model directories.

    Raises:
        InputError: there is no such system, or two have one name.
    """
    systems = [_find_system(name.strip(), open_engine) for name in names]
    if len({system.name for system in systems}) < len(systems):
        raise InputError(
            f"Two systems have one name: {', '.join(system.name for system in systems)}. Write NAME=SYSTEM."
        )
    return systems


def _find_system(text: str, open_engine: Callable[[Path], Engine]) -> System:
    given, equals, value = text.partition("=")
    value = value if equals and not Path(text).exists() else text
    title = given if value != text else value.rstrip("/")
    if value == COPY:
        return FloorSystem(title, lambda source, _language: source)
    if value == LEAD:
        return FloorSystem(title, first_sentence)
    if value.startswith(MEMORY):
        return MemorySystem(title, Path(value.removeprefix(MEMORY)))
    path = Path(value)
    if not path.exists():
        raise InputError(f"There is no system {value!r}: name {KINDS}.")
    if path.is_file() or any(path.glob("*.hyp")):
        return OutputsSystem(title, path)
    return ModelSystem(title, path, open_engine)


def _content_of(paths: Sequence[Path], base: Path | None = None) -> str:
    """A hash of files: their names below `base`, and what is in them."""
    from hashlib import sha256

    lines = (f"{path.relative_to(base) if base else path.name} {sha256_of(path)}\n" for path in paths)
    return sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()

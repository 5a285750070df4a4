"""Systems that a suite compares: models, pipelines of them, outputs in files, and floors; how a user names them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.floors import first_sentence, memory_file, read_memory, source_itself
from deltalm_ds.evaluation.test_sets import TestSet
from deltalm_ds.evaluation.translation import check_languages, translate_test_set
from deltalm_ds.files import read_json, sha256_of
from deltalm_ds.generation.documents.sentences import split_sentences
from deltalm_ds.generation.interface import Engine, EngineOptions, ModelVocabulary, SearchOptions
from deltalm_ds.generation.loading import load_engine, load_vocabulary
from deltalm_ds.languages import split_pair
from deltalm_ds.lines import read_lines

RULES: dict[str, Callable[[str, str], str]] = {"copy": source_itself, "lead": first_sentence}
MEMORY, PIVOT, PIVOT_LANGUAGE = "memory:", "pivot:", "en"
KINDS = (
    "a model directory or export, a directory with DIRECTION.hyp, a file of outputs, copy, lead (the first "
    f"sentence), {MEMORY}PREPARED (the target of the nearest source in training), or {PIVOT}TRANSLATOR+MODEL"
    "[+TRANSLATOR] (the task in English, translated into it and back)"
)


class Unable(InputError):
    """A system has no outputs for a direction: its cell stays empty."""


@dataclass(frozen=True)
class System(ABC):
    """What makes outputs for a test set: a value that goes to other processes, without what it has opened.

    Attributes:
        name: in tables.
        is_slow: outputs are made in parts, and worth keeping.
    """

    name: str
    is_slow: ClassVar[bool] = True

    @abstractmethod
    def check(self, test: TestSet) -> None:
        """Say before anything is translated what would be wrong.

        Raises:
            Unable: it has no outputs for this direction.
            InputError: it has none at all, or not as many as sources.
        """

    @abstractmethod
    def identity(self, direction: str) -> str:
        """What tells its outputs for a direction from any other's, beside the sources and the search."""

    @abstractmethod
    def outputs(self, test: TestSet, options: SearchOptions) -> list[str]:
        """An output for each source of a test set, or of a part of one."""

    @property
    def origin(self) -> dict[str, Any]:
        """Where it comes from, as far as that is written anywhere."""
        return {}


@dataclass(frozen=True)
class RuleSystem(System):
    """Outputs that follow from the sources by one of `RULES`."""

    rule: str
    is_slow: ClassVar[bool] = False

    def check(self, test: TestSet) -> None:
        """A rule is for any language."""

    def identity(self, direction: str) -> str:
        return self.rule

    def outputs(self, test: TestSet, options: SearchOptions) -> list[str]:
        return [RULES[self.rule](source, test.source_lang or test.target_lang) for source in test.sources]


@dataclass(frozen=True)
class MemorySystem(System):
    """The target of the nearest training source."""

    directory: Path

    def check(self, test: TestSet) -> None:
        try:
            memory_file(self.directory, test.direction)
        except InputError as error:
            raise (Unable(str(error)) if (self.directory / "pairs").is_dir() else error) from None

    def identity(self, direction: str) -> str:
        return f"memory {_content_of([memory_file(self.directory, direction)[0]])}"

    def outputs(self, test: TestSet, options: SearchOptions) -> list[str]:
        memory = read_memory(self.directory, test.direction)
        return [memory.nearest(source) for source in test.sources]


@dataclass(frozen=True)
class OutputsSystem(System):
    """Outputs that are there already: a file for each direction."""

    path: Path
    is_slow: ClassVar[bool] = False

    def check(self, test: TestSet) -> None:
        num_lines = len(read_lines(self._file(test.direction)))
        if num_lines != len(test.sources):
            raise InputError(
                f"{self._file(test.direction)} has {num_lines:,} lines, but {test.direction} has "
                f"{len(test.sources):,} sources."
            )

    def identity(self, direction: str) -> str:
        return f"outputs {_content_of([self._file(direction)])}"

    def outputs(self, test: TestSet, options: SearchOptions) -> list[str]:
        return read_lines(self._file(test.direction))

    def _file(self, direction: str) -> Path:
        path = self.path / f"{direction}.hyp" if self.path.is_dir() else self.path
        if not path.exists():
            raise Unable(f"{self.path} has no {path.name}.")
        return path


@dataclass(frozen=True)
class ModelSystem(System):
    """A model, opened when it is needed first.

    Attributes:
        directory: a model directory, an export, or a model that is not ours.
        engine: the one that runs it; None takes the one that it is for.
        options: of the engine.
    """

    directory: Path
    engine: str | None
    options: EngineOptions

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def _opened(self) -> Engine:
        asked = self.options
        return load_engine(self.directory, self.engine, asked.threads, asked.device, asked.dtype)

    @cached_property
    def _vocabulary(self) -> ModelVocabulary:
        return load_vocabulary(self.directory)

    @cached_property
    def _content(self) -> str:
        return _content_of(sorted(path for path in self.directory.rglob("*") if path.is_file()), self.directory)

    def check(self, test: TestSet) -> None:
        vocabulary = self._vocabulary
        try:
            check_languages(vocabulary, test)
        except InputError as error:
            raise Unable(str(error)) from None

    def identity(self, direction: str) -> str:
        """The hash of all files, and what the engine is asked for; threads change no output."""
        asked = {"engine": self.engine, "device": self.options.device, "dtype": self.options.dtype}
        return " ".join(["model", self._content, *(f"{name}={value}" for name, value in asked.items() if value)])

    def outputs(self, test: TestSet, options: SearchOptions) -> list[str]:
        return translate_test_set(self._opened, self._vocabulary, test, options)

    @property
    def origin(self) -> dict[str, Any]:
        """Where the model comes from, as its directory says: its provenance, the recipe of the run that it is in."""
        origin = {}
        config, folder = self.directory / "config.json", self.directory.resolve().parent
        said = read_json(config) if config.is_file() else None
        if isinstance(said, dict) and "provenance" in said:
            origin["provenance"] = said["provenance"]
        recipe = folder.parent / "recipe.yaml"
        if folder.name == "checkpoints" and recipe.is_file():
            origin["recipe"] = recipe.read_text(encoding="utf-8")
        return origin


@dataclass(frozen=True)
class PivotSystem(System):
    """A task in English for sources in other languages: these are translated first, and its outputs perhaps back.

    Attributes:
        to_english: translates sources, sentence by sentence.
        model: does the task, from English sources.
        from_english: translates what the model says in English; None where it is in the target's language already.
    """

    to_english: System
    model: System
    from_english: System | None = None

    def check(self, test: TestSet) -> None:
        for system, direction, _ in self._steps(test.direction):
            system.check(replace(test, direction=direction))

    def identity(self, direction: str) -> str:
        return "pivot " + ", ".join(f"{step}: {system.identity(step)}" for system, step, _ in self._steps(direction))

    def outputs(self, test: TestSet, options: SearchOptions) -> list[str]:
        texts = list(test.sources)
        for system, direction, is_translation in self._steps(test.direction):
            part = TestSet(direction, texts, texts)
            texts = _by_sentence(system, part, options) if is_translation else system.outputs(part, options)
        return texts

    @property
    def origin(self) -> dict[str, Any]:
        return {"steps": [system.origin for system in (self.to_english, self.model, self.from_english) if system]}

    def _steps(self, direction: str) -> list[tuple[System, str, bool]]:
        """What is done by which system, and whether it is translating."""
        source, target = split_pair(direction)
        between = PIVOT_LANGUAGE if self.from_english else target
        steps = [(self.to_english, f"{source}-{PIVOT_LANGUAGE}", True)] if source != PIVOT_LANGUAGE else []
        steps.append((self.model, f"{PIVOT_LANGUAGE}-{between}", False))
        if self.from_english and target != PIVOT_LANGUAGE:
            steps.append((self.from_english, f"{PIVOT_LANGUAGE}-{target}", True))
        return steps


def _by_sentence(system: System, test: TestSet, options: SearchOptions) -> list[str]:
    """Translations of texts, whose sentences are translated alone; none is cut at the length of the task's outputs."""
    language, _ = split_pair(test.direction)
    sentences = [[text[slice(*span)] for span in split_sentences(text, language)] for text in test.sources]
    flat = [sentence for of_text in sentences for sentence in of_text]
    longer = replace(options, max_length=max(options.max_length, SearchOptions().max_length))
    found = iter(system.outputs(TestSet(test.direction, flat, flat), longer))
    return [" ".join(next(found) for _ in of_text) for of_text in sentences]


def find_systems(names: Sequence[str], engine: str | None = None, options: EngineOptions | None = None) -> list[System]:
    """The systems that a user names, each once; `NAME=` before one gives it a name in tables.

    Args:
        names: what `KINDS` says.
        engine, options: of models, see `ModelSystem`.

    Raises:
        InputError: there is no such system, or two have one name.
    """
    any_model = ModelSystem("", Path(), engine, options or EngineOptions())
    systems = [_find_system(name.strip(), any_model) for name in names]
    if len({file_name(system) for system in systems}) < len(systems):
        raise InputError(
            f"Two systems have one name: {', '.join(system.name for system in systems)}. Write NAME=SYSTEM."
        )
    return systems


def check_files(systems: Sequence[System], test_sets: Sequence[TestSet]) -> None:
    """InputError where one file is to be the outputs for several test sets."""
    for system in systems:
        if isinstance(system, OutputsSystem) and system.path.is_file() and len(test_sets) > 1:
            raise InputError(
                f"{system.path} is one file for {len(test_sets)} test sets: name a directory with "
                f"{test_sets[0].direction}.hyp, …, or the one direction (--directions)."
            )


def file_name(system: System) -> str:
    """The name of a system as that of a file."""
    return "".join(character if character.isalnum() or character in "._=-" else "_" for character in system.name)


def _find_system(text: str, model: ModelSystem) -> System:
    """The one that a user names. model: any, with the engine and options of all."""
    given, equals, value = text.partition("=")
    value = value if equals and not Path(text).exists() else text
    title = given if value != text else value.rstrip("/")
    if value in RULES:
        return RuleSystem(title, value)
    if value.startswith(MEMORY):
        return MemorySystem(title, Path(value.removeprefix(MEMORY)))
    if value.startswith(PIVOT):
        return _pivot(title, value.removeprefix(PIVOT).split("+"), model)
    path = Path(value)
    if not path.exists():
        raise InputError(f"There is no system {value!r}: name {KINDS}.")
    if path.is_file() or any(path.glob("*.hyp")):
        return OutputsSystem(title, path)
    return replace(model, name=title, directory=path)


def _pivot(title: str, names: Sequence[str], model: ModelSystem) -> PivotSystem:
    found = {name: _find_system(name, model) for name in names}  # a translator that does both is opened once
    systems = [found[name] for name in names]
    if not 2 <= len(systems) <= 3 or any(isinstance(system, OutputsSystem) for system in systems):
        raise InputError(
            f"{PIVOT}{'+'.join(names)} is no pipeline: name a translator into English, a model, and perhaps a "
            "translator out of English, with + between; outputs in files are of one step only."
        )
    return PivotSystem(title, *systems)


def _content_of(paths: Sequence[Path], base: Path | None = None) -> str:
    """A hash of files: their names below `base`, and what is in them."""
    lines = (f"{path.relative_to(base) if base else path.name} {sha256_of(path)}\n" for path in paths)
    return sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()

"""What a task is: published files, how a model reads them and decodes, what it is scored by, the paper's tables."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deltalm_ds.data_tools.published.published_corpus import Item
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.lines import COMPRESSIONS

Read = Callable[[Sequence[Path], Counter[str]], Iterator[Item]]
ROUGE = ("rouge1", "rouge2", "rougel")  # what the paper scores summaries by
PAPER = SearchOptions(beam=5, max_length=80)  # how the paper decodes its generation tasks [facts: fine-tuning]


@dataclass(frozen=True)
class Part:
    """Some files of a task: one direction of one split.

    Attributes:
        split: `train`, `dev` or `test`; `mono` for text of one language that the pre-training objective is trained on.
        languages: of source and target; one for `mono`.
        files: their names below the published directory, as patterns; each may be compressed.
        read: from the files, in the order of `files`, to items: sources as the model reads them, and their targets.
        is_pair: the two sides are translations of each other, so that training may read them the other way round too.
    """

    split: str
    languages: tuple[str, ...]
    files: tuple[str, ...]
    read: Read
    is_pair: bool = False

    @property
    def direction(self) -> str:
        """Such as `en-de`; a language alone for `mono`."""
        return "-".join(self.languages)

    @property
    def name(self) -> str:
        """Such as `test.en-de`: the first part of the names of the files that are made of it."""
        return f"{self.split}.{self.direction}"

    def find(self, directory: Path) -> list[list[Path]]:
        """Of each pattern the files that are there, in the order of their names."""
        return [_matching(directory, pattern) for pattern in self.files]


def _matching(directory: Path, pattern: str) -> list[Path]:
    spellings = [pattern, *(pattern + suffix for suffix in COMPRESSIONS)]
    return next((found for spelling in spellings if (found := sorted(directory.glob(spelling)))), [])


@dataclass(frozen=True)
class Table:
    """A table of the paper: a row for a system, a column for a direction (of one metric) or for a metric (averages).

    Attributes:
        title: what stands above it.
        directions: that it is of; a direction whose test set is not there stays empty, and so does an average over it.
        metrics: names from `METRICS`.
        published: rows of the paper, by the system's name: the average of each metric.
    """

    title: str
    directions: tuple[str, ...]
    metrics: tuple[str, ...]
    published: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def is_by_direction(self) -> bool:
        """Whether a column is a direction."""
        return len(self.metrics) == 1 and len(self.directions) > 1


@dataclass(frozen=True)
class Form:
    """A form in which the data of a task comes: the published one, or a sample of free data of the same kind.

    Attributes:
        name: `published` or `sample`.
        what: what data it is, in words.
        tables: what the scores on this data are shown in.
    """

    name: str
    what: str
    parts: tuple[Part, ...]
    tables: tuple[Table, ...]

    def of_split(self, *splits: str) -> list[Part]:
        """The parts of some splits."""
        return [part for part in self.parts if part.split in splits]

    @property
    def metrics(self) -> tuple[str, ...]:
        """All that its tables show."""
        return tuple(dict.fromkeys(name for table in self.tables for name in table.metrics))

    @property
    def tagged_languages(self) -> tuple[str, ...]:
        """The languages that need a tag: all that are trained to be generated, where there are several."""
        trained = dict.fromkeys(language for part in self.of_split("train") for language in targets_of(part))
        return tuple(trained) if len(trained) > 1 else ()


def targets_of(part: Part) -> tuple[str, ...]:
    """The languages that training on a part generates."""
    return part.languages if part.is_pair else part.languages[-1:]


@dataclass(frozen=True)
class Task:
    """A row of the table of tasks.

    Attributes:
        name: in commands and files; its recipes are `recipes/tasks/{name}.yaml` and `{name}_sample.yaml`.
        what: what a model is to do, in a line.
        forms: the forms that its data comes in.
        split: what the paper scores.
        search: how the paper decodes.
        task_tokens: tokens of the template.
    """

    name: str
    what: str
    forms: tuple[Form, ...]
    split: str = "test"
    search: SearchOptions = PAPER
    task_tokens: tuple[str, ...] = ()

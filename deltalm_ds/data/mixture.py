"""What a run trains on: corpora under objectives, in weighted groups, phase by phase."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from deltalm_ds.data.objectives.base import Limits, Objective
from deltalm_ds.data.sampling.base import Sampling
from deltalm_ds.data.shards import Corpus, ShardDataset
from deltalm_ds.errors import InputError
from deltalm_ds.vocabulary import Vocabulary


@dataclass(frozen=True)
class Component:
    """A corpus under an objective; `reverse` swaps its sides (or takes the target side as the text)."""

    corpus: Corpus
    objective: Objective
    reverse: bool = False

    @property
    def sides(self) -> tuple[str, ...]:
        """The corpus columns that are read, in the order in which the objective takes them."""
        sides = self.corpus.sides[::-1] if self.reverse else self.corpus.sides
        return tuple(sides[: self.objective.num_columns])

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of `sides`."""
        languages = self.corpus.languages[::-1] if self.reverse else self.corpus.languages
        return tuple(languages[: self.objective.num_columns])

    @property
    def name(self) -> str:
        """Unique in a group, for logs and as the key of the component's random numbers: `seq2seq:en-de:de-en`."""
        return f"{self.objective.label}:{self.corpus.name}:{'-'.join(self.languages)}"

    def check(self, vocabulary: Vocabulary, limits: Limits) -> None:
        """Raise InputError where corpus, objective, vocabulary and limits do not go together."""
        if len(self.sides) < self.objective.num_columns or (self.reverse and self.corpus.kind == "mono"):
            raise InputError(
                f"The corpus {self.corpus.name!r} is monolingual: {self.objective.kind} with "
                f"reverse={self.reverse} needs pairs."
            )
        if self.corpus.num_rows == 0:
            raise InputError(f"The corpus {self.corpus.name!r} is empty.")
        # Fits nothing, but looks up the language tag and the room for sentinels once, before training.
        self.tag_id(vocabulary)
        no_rows = np.empty((self.objective.num_columns, 0), dtype=np.int64)
        self.objective.fit(no_rows, limits, len(vocabulary.sentinel_ids))

    def tag_id(self, vocabulary: Vocabulary) -> int:
        """The target language's tag; 0 where the objective puts none in front of the source.

        Raises:
            InputError: the vocabulary has no such tag.
        """
        if not self.objective.takes_tag:
            return 0
        try:
            return vocabulary.language_id(self.languages[-1])
        except InputError as error:
            without = f"objective: {{kind: {self.objective.kind}, language_tag: false}}"
            raise InputError(f"{error} Add the tag to the vocabulary, or train without tags by {without}.") from None

    def mean_tokens(self, limits: Limits, num_sentinels: int) -> float:
        """Source + target tokens of a row of mean length, by the manifest's counts."""
        means = np.array([[self.corpus.num_tokens[side] / self.corpus.num_rows] for side in self.sides])
        # Lengths are whole numbers: interpolate between the results of those below and above the means.
        low = np.maximum(np.floor(means), 2).astype(np.int64)
        raw = self.objective.fit(np.hstack([low, low + 1]), limits, num_sentinels)
        source_lengths, target_lengths = self.objective.lengths(raw, np.zeros(2, dtype=np.uint64))
        below, above = source_lengths + target_lengths
        return float(below + (above - below) * np.clip((means - low).mean(), 0, 1))


@dataclass(frozen=True)
class ComponentGroup:
    """Components that share a part of the global batch; the recipe's sampling divides it among them."""

    name: str
    components: tuple[Component, ...]
    weight: float = 1.0

    @property
    def component_names(self) -> list[str]:
        """Of its members, with its own in front; phases that have a component in common call it alike."""
        return [f"{self.name}/{component.name}" for component in self.components]


@dataclass(frozen=True)
class Phase:
    """What is trained on from `first_step` to the next phase, or to the end.

    Attributes:
        sampling: divides each group, by steps counted from `sampling_step`: it may have begun with an earlier phase.
    """

    first_step: int
    groups: tuple[ComponentGroup, ...]
    sampling: Sampling
    sampling_step: int = 0


def components_by_name(phases: Sequence[Phase]) -> dict[str, Component]:
    """The components of all phases, each once, by `component_names`.

    Raises:
        InputError: a phase has a component twice.
    """
    components: dict[str, Component] = {}
    for phase in phases:
        names = [name for group in phase.groups for name in group.component_names]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"The component {name} comes twice: name each component once and use weights.")
        components |= dict(zip(names, [one for group in phase.groups for one in group.components], strict=True))
    return components


def components_of(
    dataset: ShardDataset,
    objective: Objective,
    directions: Literal["both", "forward", "reverse"],
    languages: Sequence[str] = (),
) -> tuple[Component, ...]:
    """A component for every corpus of a data set and direction in which the objective can read it.

    Only pairs are read in reverse, and not where the objective joins their sides: then there is one component.

    Args:
        dataset: whose corpora are taken.
        objective: what is learned from them.
        directions: ways to read a pair.
        languages: take only corpora all of whose languages are among these; none: all corpora.
    """
    components = []
    for corpus in dataset.corpora.values():
        if languages and not set(corpus.languages) <= set(languages):
            continue
        forward_only = corpus.kind != "parallel" or objective.joins_sides
        if forward_only or directions != "reverse":
            components.append(Component(corpus, objective))
        if not forward_only and directions != "forward":
            components.append(Component(corpus, objective, reverse=True))
    return tuple(components)

"""What a recipe names, opened together before any training: vocabulary, shards, validation text, the model's shape."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from deltalm_ds.data.mixture import Component, ComponentGroup, Phase, components_of
from deltalm_ds.data.objectives.base import Limits, Objective
from deltalm_ds.data.shards import ShardDataset
from deltalm_ds.data.stream import BatchBuilder, TrainingStream
from deltalm_ds.errors import InputError, nearest
from deltalm_ds.evaluation.test_sets import TestSet, read_test_sets
from deltalm_ds.generation.interface import Ids
from deltalm_ds.generation.translate import encoder_for
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.recipe.schema import Recipe, TrainingGroup, ValidationSection
from deltalm_ds.training.initial_model import model_config
from deltalm_ds.vocabulary import Vocabulary

VALIDATION = "validation.shards"


@dataclass(frozen=True)
class Inputs:
    """Everything a run reads.

    Attributes:
        start: the model directory that it starts or goes on from; None for fresh weights.
        datasets: the data sets, by the keys of the recipe that name them.
        stream, validation: training batches by step; validation batches, if the recipe validates.
        tests, encoders: validation text, and what makes ids of the lines of each test.
    """

    vocabulary: Vocabulary
    start: Path | None
    model_config: DeltaLMConfig
    datasets: dict[str, ShardDataset]
    stream: TrainingStream
    validation: BatchBuilder | None
    tests: tuple[TestSet, ...]
    encoders: tuple[Callable[[str], Ids], ...]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What tells other inputs of the same names apart: the vocabulary's hash, each data set's checksum and rows."""
        data = {
            key: {"path": str(dataset.directory), "manifest": manifest.checksum, "rows": manifest.num_rows}
            for key, dataset in self.datasets.items()
            for manifest in [dataset.manifest]
        }
        return {"vocabulary": self.vocabulary.hash, "data": data}


def open_inputs(recipe: Recipe, checkpoint: Path | None = None) -> Inputs:
    """Open all inputs, each once.

    Args:
        recipe: names them; relative paths begin in the working directory.
        checkpoint: what a run goes on from. Without one it starts from the recipe's `initial_model`, if any.

    Raises:
        InputError, DataError: something is missing, damaged, or does not belong together.
    """
    vocabulary = Vocabulary.load(recipe.vocabulary)
    datasets = _open_datasets(recipe, vocabulary)
    limits = Limits(recipe.data.max_source_tokens, recipe.data.max_target_tokens, recipe.data.overlong)
    stream = TrainingStream(
        _phases(recipe, datasets),
        vocabulary,
        limits,
        recipe.seed,
        recipe.batch.micro_batch_tokens,
        recipe.batch.tokens_per_step,
        recipe.training.max_steps,
        recipe.batch.min_micro_batches,
    )
    start, config = model_config(recipe, vocabulary, checkpoint)
    if recipe.validation is None:
        return Inputs(vocabulary, start, config, datasets, stream, None, (), ())
    builder = BatchBuilder(
        _validated(recipe, datasets[VALIDATION]), vocabulary, limits, recipe.batch.micro_batch_tokens
    )
    tests = _read_validation_text(recipe.validation)
    encoders = [encoder_for(vocabulary, test.target_lang if vocabulary.languages else None) for test in tests]
    return Inputs(vocabulary, start, config, datasets, stream, builder, tests, tuple(encoders))


def training_groups(recipe: Recipe) -> dict[str, tuple[TrainingGroup, ...]]:
    """The lists of groups in a recipe, by the keys they stand at: that of the first phase, and those of later ones."""
    later = {f"phases.{number}.train": phase.train for number, phase in enumerate(recipe.phases)}
    return {"data.train": recipe.data.train, **later}


def _phases(recipe: Recipe, datasets: dict[str, ShardDataset]) -> list[Phase]:
    """The phases of a run, each whole: what a phase of the recipe leaves out is as it was before.

    Groups of the same data set and objective have the same name in all phases, and so go on with each other's rows.
    """
    names: dict[tuple[Path, Objective, int], str] = {}  # the number tells those apart that a phase has several of
    phases: list[Phase] = []
    groups: list[ComponentGroup] = []
    sampling, sampling_step = recipe.sampling, 0
    later = [(phase.from_step, phase.sampling) for phase in recipe.phases]
    for (first_step, new_sampling), (key, train) in zip(
        [(0, None), *later], training_groups(recipe).items(), strict=True
    ):
        if train:
            groups = []
        for number, group in enumerate(train):
            same = sum((group.path, group.objective) == (other.path, other.objective) for other in train[:number])
            name = names.setdefault((group.path, group.objective, same), str(len(names)))
            components = _components(f"{key}.{number}", group, datasets[f"{key}.{number}.path"])
            groups.append(ComponentGroup(name, components, group.weight))
        if new_sampling is not None:
            sampling, sampling_step = new_sampling, first_step
        phases.append(Phase(first_step, tuple(groups), sampling, sampling_step))
    return phases


def _components(key: str, group: TrainingGroup, dataset: ShardDataset) -> tuple[Component, ...]:
    """What a group trains on; InputError where the languages that it names are not there, or pick nothing."""
    known = {language for corpus in dataset.corpora.values() for language in corpus.languages}
    unknown = [language for language in group.languages if language not in known]
    if unknown:
        raise InputError(
            f"{key}.languages: no corpus of {dataset.directory} has the language {unknown[0]!r}; the nearest is "
            f"{nearest(unknown[0], known)!r}."
        )
    components = components_of(dataset, group.objective, group.directions, group.languages)
    if not components:
        raise InputError(
            f"{key}.languages: no corpus of {dataset.directory} has only languages of {', '.join(group.languages)}: "
            "name both languages of a pair."
        )
    return components


def _validated(recipe: Recipe, dataset: ShardDataset) -> list[Component]:
    """The components that any phase trains on, as far as the validation data has them."""
    components = [
        component
        for groups in training_groups(recipe).values()
        for group in groups
        for component in components_of(dataset, group.objective, group.directions, group.languages)
    ]
    if not components:
        raise InputError(
            f"validation.shards: {dataset.directory} has no corpus of the languages that are trained on: name shards "
            "that have one, or leave out validation."
        )
    return list({component.name: component for component in components}.values())  # groups may differ in weights alone


def _open_datasets(recipe: Recipe, vocabulary: Vocabulary) -> dict[str, ShardDataset]:
    paths = {
        f"{key}.{number}.path": group.path
        for key, groups in training_groups(recipe).items()
        for number, group in enumerate(groups)
    }
    if recipe.validation is not None:
        paths[VALIDATION] = recipe.validation.shards
    opened = {path: ShardDataset.open(path, vocabulary.hash) for path in dict.fromkeys(paths.values())}
    return {key: opened[path] for key, path in paths.items()}


def _read_validation_text(validation: ValidationSection) -> tuple[TestSet, ...]:
    """The first `max_sentences` of every direction; none where no text is given."""
    if validation.text is None:
        return ()
    return tuple(
        test.first(validation.max_sentences)
        for test in read_test_sets(validation.text, validation.split, validation.directions or None)
    )


def changed_inputs(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two identities, by key: what it was and what it is. Paths may differ, contents not."""
    changes: dict[str, tuple[Any, Any]] = {}
    if before["vocabulary"] != now["vocabulary"]:
        changes["vocabulary"] = before["vocabulary"], now["vocabulary"]
    for key in before["data"].keys() | now["data"].keys():
        was, is_now = before["data"].get(key), now["data"].get(key)
        if was is None or is_now is None or was["manifest"] != is_now["manifest"]:
            changes[key] = was, is_now
    return changes

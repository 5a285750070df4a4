"""What a recipe names, opened and checked together before any training: vocabulary, shards, the model to start from."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from deltalm_ds.checkpoints.directory import load_model, read_config
from deltalm_ds.data.mixture import Component, ComponentGroup
from deltalm_ds.data.objectives import Limits, Objective, TranslationSpanCorruption, make_objective
from deltalm_ds.data.shards import Corpus, ShardDataset
from deltalm_ds.data.stream import BatchBuilder, TrainingStream
from deltalm_ds.data.temperature import TemperatureSchedule
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.evaluation.test_sets import TestSet, read_test_sets
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.recipe.schema import Recipe, TrainingGroup, ValidationSection
from deltalm_ds.runs.checkpoints import model_directory
from deltalm_ds.vocabulary import Vocabulary


@dataclass(frozen=True)
class Inputs:
    """Everything a run reads."""

    vocabulary: Vocabulary
    model_config: DeltaLMConfig
    stream: TrainingStream
    validation: BatchBuilder | None
    validation_tests: list[TestSet]


def open_inputs(recipe: Recipe) -> Inputs:
    """Open and check all inputs.

    Raises:
        InputError, DataError: something is missing, damaged, or does not belong together.
    """
    vocabulary = Vocabulary.load(recipe.vocabulary)
    limits = Limits(recipe.data.max_source_tokens, recipe.data.max_target_tokens, recipe.data.overlong)
    sampling = recipe.sampling
    stream = TrainingStream(
        [_open_group(group, group.path, vocabulary, number) for number, group in enumerate(recipe.data.train)],
        vocabulary,
        limits,
        TemperatureSchedule(
            sampling.temperature_start, sampling.temperature_end, sampling.rise_steps, sampling.interval_steps
        ),
        recipe.seed,
        recipe.batch.micro_batch_tokens,
        tokens_per_step=recipe.batch.tokens_per_step,
        min_micro_batches=recipe.batch.min_micro_batches,
    )
    return Inputs(
        vocabulary,
        _model_config(recipe, vocabulary),
        stream,
        _open_validation(recipe, vocabulary, limits),
        _read_validation_text(recipe.validation),
    )


def fresh_or_initial_model(recipe: Recipe, config: DeltaLMConfig) -> DeltaLM:
    """The model before the first update: read from `initial_model`, or with fresh weights (by torch's generator)."""
    if recipe.initial_model is None:
        return DeltaLM(config)
    return load_model(model_directory(recipe.initial_model), **config.model_dump())


def _model_config(recipe: Recipe, vocabulary: Vocabulary) -> DeltaLMConfig:
    initial = recipe.initial_model and model_directory(recipe.initial_model)
    if initial is not None and Vocabulary.load(initial).hash != vocabulary.hash:
        raise DataError(
            f"The model {recipe.initial_model} has another vocabulary than {recipe.vocabulary}: "
            "train with the model's own vocabulary."
        )
    try:
        config = _initial_or_fresh_config(recipe, vocabulary)
    except ValidationError as error:
        faults = (f"model{''.join(f'.{part}' for part in fault['loc'])}: {fault['msg']}" for fault in error.errors())
        raise InputError(f"The recipe's model cannot be made: {'; '.join(faults)}.") from None
    if max(recipe.data.max_source_tokens, recipe.data.max_target_tokens) > config.max_positions:
        raise InputError(
            f"data.max_source_tokens and data.max_target_tokens may be at most the model's {config.max_positions} "
            "positions (model.max_positions)."
        )
    return config


def _initial_or_fresh_config(recipe: Recipe, vocabulary: Vocabulary) -> DeltaLMConfig:
    if recipe.initial_model is None:
        assert recipe.model is not None  # the recipe is valid
        return recipe.model.config(vocabulary.num_tokens)
    given = recipe.model.model_dump(exclude={"preset"}, exclude_none=True) if recipe.model is not None else {}
    return DeltaLMConfig.model_validate(read_config(model_directory(recipe.initial_model)).model_dump() | given)


def _open_group(group: TrainingGroup, path: Path, vocabulary: Vocabulary, number: int) -> ComponentGroup:
    dataset = ShardDataset.open(path, vocabulary.hash)
    objective = make_objective(group.objective, **group.objective_options)
    components = [
        Component(corpus, objective, reverse)
        for corpus in dataset.corpora.values()
        for reverse in _directions(group, corpus, objective)
    ]
    return ComponentGroup(f"{number}", tuple(components), group.weight)


def _directions(group: TrainingGroup, corpus: Corpus, objective: Objective) -> Iterator[bool]:
    """Whether to read the corpus reversed: only pairs can be, and not where the objective joins the sides."""
    forward_only = corpus.kind != "parallel" or objective.name == TranslationSpanCorruption.name
    if forward_only or group.directions != "reverse":
        yield False
    if not forward_only and group.directions != "forward":
        yield True


def _read_validation_text(validation: ValidationSection | None) -> list[TestSet]:
    """The first `max_sentences` of every direction; none where no text is given.

    Raises:
        InputError: there are no such files, or they differ in length.
    """
    if validation is None or validation.text is None:
        return []
    count = validation.max_sentences
    return [
        TestSet(test.direction, test.sources[:count], test.references[:count])
        for test in read_test_sets(validation.text, validation.split, validation.directions or None)
    ]


def _open_validation(recipe: Recipe, vocabulary: Vocabulary, limits: Limits) -> BatchBuilder | None:
    """The validation shards under every objective of the training groups."""
    if recipe.validation is None:
        return None
    groups = [
        _open_group(group, recipe.validation.shards, vocabulary, number)
        for number, group in enumerate(recipe.data.train)
    ]
    components = {component.name: component for group in groups for component in group.components}
    return BatchBuilder(list(components.values()), vocabulary, limits, recipe.batch.micro_batch_tokens)

"""Validation during training: the loss of the validation shards, and the quality of translated validation text."""

from typing import Any

import torch
from torch import distributed

from deltalm_ds.data.stream import evaluation_batches
from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.translation import make_scorer
from deltalm_ds.generation.engines.pytorch import PyTorchEngine
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.generation.translate import generate
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.training.collectives import StopRequested, StopSignal, first_fault, of_all_ranks
from deltalm_ds.training.inputs import Inputs
from deltalm_ds.training.parameter_states import full_weight
from deltalm_ds.training.records import loss_record
from deltalm_ds.training.sections import Sections
from deltalm_ds.training.step import LossSums, evaluate_loss
from deltalm_ds.training.weight_average import averaged_model


def validate(
    ds_engine: Any, inputs: Inputs, recipe: Recipe, stop: StopSignal, sections: Sections
) -> tuple[dict[str, Any], str | None]:
    """What was measured, and the first fault that kept a rank from measuring; the same on every rank. A collective.

    Args:
        ds_engine: DeepSpeed's, with the model.
        inputs: what is validated with; `inputs.validation` is there.
        recipe: how.
        stop: asked between batches.
        sections: the clock, which is told that there is progress.

    Raises:
        StopRequested: the run is to end; nothing was measured.
    """
    builder = inputs.validation
    assert builder is not None
    batches, fault = [], None
    try:
        batches = evaluation_batches(builder, distributed.get_rank(), distributed.get_world_size()).micro_batches
    except (InputError, OSError) as error:
        fault = str(error)
    if fault := first_fault(fault):
        return {}, fault
    sums = LossSums(len(builder.components), ds_engine.device)

    def before_next() -> None:
        sections.switch("validation")
        stop.check()

    assert recipe.validation is not None
    average = averaged_model(ds_engine) if recipe.validation.weights == "average" else None
    evaluate_loss(average or ds_engine, batches, recipe.training.label_smoothing, sums, before_next)
    record = loss_record(sums.read(), builder.components, [component.name for component in builder.components])
    if not inputs.tests:
        return record, None
    hypotheses, fault = _translations(average or _whole_model(ds_engine), inputs, recipe, stop, sections)
    if fault is not None:
        return record, fault
    return record | _scores(inputs, recipe, hypotheses), None


def _scores(inputs: Inputs, recipe: Recipe, hypotheses: list[str]) -> dict[str, Any]:
    """Of each metric the average (`bleu`) and each direction's score (`bleu_of`)."""
    assert recipe.validation is not None
    metrics = recipe.validation.metrics
    scores: dict[str, dict[str, float]] = {name: {} for name in metrics}
    for test in inputs.tests:
        own, hypotheses = hypotheses[: len(test.sources)], hypotheses[len(test.sources) :]
        for name, value in make_scorer(test, metrics, inputs.vocabulary.languages).score(own).scores.items():
            scores[name][test.direction] = value
    averages = {name: sum(of_direction.values()) / len(of_direction) for name, of_direction in scores.items()}
    return averages | {f"{name}_of": of_direction for name, of_direction in scores.items()}


def _translations(
    model: DeltaLM, inputs: Inputs, recipe: Recipe, stop: StopSignal, sections: Sections
) -> tuple[list[str], str | None]:
    """The translation of every line of the tests, each rank having made its share; or the first fault."""
    validation = recipe.validation
    assert validation is not None
    options = SearchOptions(beam=validation.beam, max_length=validation.max_length)
    limit = inputs.model_config.max_positions - 1  # with the tag; longer sources are cut, as `deltalm translate` does
    tests = zip(inputs.tests, inputs.encoders, strict=True)
    sources = [encode(line)[:limit] for test, encode in tests for line in test.sources]
    rank, world_size = distributed.get_rank(), distributed.get_world_size()

    def look_for_stop(_count: int) -> None:
        sections.switch("validation")
        if stop.is_set:
            raise StopRequested

    texts, fault = [], None
    try:
        found = generate(PyTorchEngine(model), sources[rank::world_size], options, advance=look_for_stop)
        texts = [inputs.vocabulary.decode(hypotheses[0].ids) for hypotheses in found]
    except StopRequested:
        fault = "stopped"  # all ranks learn of it below
    except (InputError, RuntimeError) as error:  # out of memory, say
        fault = f"{type(error).__name__}: {error}"
    shares = of_all_ranks(texts)
    stop.check()
    if fault := first_fault(fault):
        return [], fault
    return [shares[index % world_size][index // world_size] for index in range(len(sources))], None


def _whole_model(ds_engine: Any) -> DeltaLM:
    """The model with all of its weights on this rank; at ZeRO-3 a copy of its own."""
    if ds_engine.zero_optimization_stage() < 3:
        return ds_engine.module
    model = DeltaLM(ds_engine.module.config)
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), ds_engine.module.parameters(), strict=True):
            ours.copy_(full_weight(theirs))
    return model.to(ds_engine.device)

"""Validation during training: the loss of the validation shards, and the quality of translated validation text."""

from typing import Any

import torch
from torch import distributed

from deltalm_ds.data.stream import evaluation_batches
from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.translation import make_scorer
from deltalm_ds.generation.engines.pytorch import PyTorchEngine
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.generation.translate import batches_by_cost, generate, search_costs
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.training.collectives import StopRequested, StopSignal, first_fault, of_all_ranks
from deltalm_ds.training.inputs import Inputs
from deltalm_ds.training.parameter_states import whole_model
from deltalm_ds.training.records import loss_record
from deltalm_ds.training.sections import Sections
from deltalm_ds.training.step import LossSums, evaluate_loss
from deltalm_ds.training.weight_average import averaged_model

NUM_BATCHES = 8  # at least, of the text: what the ranks of a usual host share


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
    model = average or _whole_model(ds_engine)
    hypotheses, fault = _translations(model, ds_engine.device, inputs, recipe, stop, sections)
    if fault is not None:
        return record, fault
    sections.switch("validation")  # what is scored by a model takes time, too
    scores, fault = _scores_of_rank_0(inputs, recipe, hypotheses)
    return record | scores, fault


def _scores_of_rank_0(inputs: Inputs, recipe: Recipe, hypotheses: list[str]) -> tuple[dict[str, Any], str | None]:
    """As `_scores`, or what kept rank 0 from it; the same on every rank. A collective."""
    scores: dict[str, Any] = {}
    fault = None
    if distributed.get_rank() == 0:
        try:
            scores = _scores(inputs, recipe, hypotheses)
        except Exception as error:  # whatever it is, the other ranks must learn of it
            fault = f"{type(error).__name__}: {error}"
    found: tuple[dict[str, Any], str | None] = of_all_ranks((scores, fault))[0]
    return found


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
    model: DeltaLM, device: torch.device, inputs: Inputs, recipe: Recipe, stop: StopSignal, sections: Sections
) -> tuple[list[str], str | None]:
    """The translation of every line of the tests, each rank having made its share; or the first fault.

    Shares are whole batches, which do not depend on the number of ranks: a batch that is computed alike gives the same
    to the last bit.
    """
    validation = recipe.validation
    assert validation is not None
    options = SearchOptions(beam=validation.beam, max_length=validation.max_length)
    limit = inputs.model_config.max_positions - 1  # with the tag; longer sources are cut, as `deltalm translate` does
    tests = zip(inputs.tests, inputs.encoders, strict=True)
    sources = [encode(line)[:limit] for test, encode in tests for line in test.sources]

    def look_for_stop(_count: int) -> None:
        sections.switch("validation")
        if stop.is_set:
            raise StopRequested

    texts: dict[int, str] = {}
    fault = None
    try:
        engine = PyTorchEngine(model.to(device))
        costs = search_costs(sources, options)
        batches = list(batches_by_cost(costs, min(engine.batch_tokens, sum(costs) // NUM_BATCHES)))
        for batch in batches[distributed.get_rank() :: distributed.get_world_size()]:
            found = generate(engine, [sources[index] for index in batch], options, advance=look_for_stop)
            for index, hypotheses in zip(batch, found, strict=True):
                texts[index] = inputs.vocabulary.decode(hypotheses[0].ids)
    except StopRequested:
        fault = "stopped"  # all ranks learn of it below
    except Exception as error:  # out of memory, say; whatever it is, the other ranks must learn of it
        fault = f"{type(error).__name__}: {error}"
    shares = of_all_ranks(texts)
    stop.check()
    if fault := first_fault(fault):
        return [], fault
    whole = {index: text for share in shares for index, text in share.items()}
    return [whole[index] for index in range(len(sources))], None


def _whole_model(ds_engine: Any) -> DeltaLM:
    """The model with all of its weights on this rank; at ZeRO-3 a copy of its own in host memory."""
    if ds_engine.zero_optimization_stage() < 3:
        model: DeltaLM = ds_engine.module
        return model
    return whole_model(ds_engine, torch.device("cpu"))

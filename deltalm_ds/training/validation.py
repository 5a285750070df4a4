"""Metrics of translations during training: every rank translates its share of the validation sentences."""

from typing import Any

import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import distributed

from deltalm_ds.evaluation.test_sets import TestSet
from deltalm_ds.evaluation.translation import make_scorer
from deltalm_ds.generation.engines.pytorch import PyTorchEngine
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.generation.translate import encoder_for, generate
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.recipe.schema import ValidationSection
from deltalm_ds.vocabulary import Vocabulary


def validation_scores(
    ds_engine: Any, vocabulary: Vocabulary, tests: list[TestSet], validation: ValidationSection
) -> dict[str, Any]:
    """Of each metric the average (`bleu`) and each direction's score (`bleu_of`), alike on every rank. A collective."""
    options = SearchOptions(beam=validation.beam, max_length=validation.max_length)
    sources = [
        encoder_for(vocabulary, test.target_lang if vocabulary.languages else None)(line)
        for test in tests
        for line in test.sources
    ]
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    found = generate(PyTorchEngine(_whole_model(ds_engine)), sources[rank::world_size], options)
    texts = [vocabulary.decode(hypotheses[0].ids) for hypotheses in found]
    shares: list[list[str]] = [[] for _ in range(world_size)]
    distributed.all_gather_object(shares, texts)
    hypotheses = [shares[index % world_size][index // world_size] for index in range(len(sources))]
    scores: dict[str, dict[str, float]] = {name: {} for name in validation.metrics}
    for test in tests:
        own, hypotheses = hypotheses[: len(test.sources)], hypotheses[len(test.sources) :]
        for name, value in make_scorer(test, validation.metrics).score(own).scores.items():
            scores[name][test.direction] = value
    averages = {name: sum(of_direction.values()) / len(of_direction) for name, of_direction in scores.items()}
    return averages | {f"{name}_of": of_direction for name, of_direction in scores.items()}


def _whole_model(ds_engine: Any) -> DeltaLM:
    """The model with all of its weights on this rank; at ZeRO-3 a copy of its own."""
    if ds_engine.zero_optimization_stage() < 3:
        return ds_engine.module
    model = DeltaLM(ds_engine.module.config)
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), ds_engine.module.parameters(), strict=True):
            ours.copy_(safe_get_full_fp32_param(theirs))
    return model.to(ds_engine.device)

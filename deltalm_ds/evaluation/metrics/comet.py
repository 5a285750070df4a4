"""COMET and COMETKiwi: networks that were trained on what people say of translations [Rei+22].

A user brings the checkpoint; the encoder in it is XLM-R or InfoXLM, which our own computes.
"""

import os
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics.interface import REFERENCES, SOURCES, Metric, References, Score, Scorer, share_score

if TYPE_CHECKING:
    from torch import Tensor

    from deltalm_ds.evaluation.metrics.comet_checkpoint import CometCheckpoint, Kind

COMET_MODEL, COMETKIWI_MODEL = "COMET_MODEL", "COMETKIWI_MODEL"  # name the directories of the checkpoints


def comet_scorer(references: References) -> Scorer:
    """The mean of a regression model's scores of source, output and reference, times 100.

    Of several references the one that gives the highest.

    Raises:
        InputError, DataError: see `CometCheckpoint`. InputError: the environment names none.
    """
    from deltalm_ds.evaluation.metrics.comet_checkpoint import REGRESSION

    checkpoint = _checkpoint("comet", COMET_MODEL, REGRESSION)
    of_each = references.of_each

    @cache
    def given_states() -> "tuple[Tensor, Tensor]":
        """Of the sources, and of all references, those of a sentence side by side."""
        texts = [*references.sources, *chain.from_iterable(of_each)]
        states = checkpoint.network.states(checkpoint.encode(texts), "COMET, sources and references")
        return states[: len(of_each)], states[len(of_each) :]

    def score(outputs: Sequence[str]) -> Score:
        source, reference = given_states()
        output = checkpoint.network.states(checkpoint.encode(outputs), "COMET, outputs")
        values = checkpoint.network.compare(source, output, reference, list(map(len, of_each)))
        return share_score(values.tolist(), f"nrefs:{references.number}|model:{checkpoint.sha256[:12]}")

    return Scorer(score)


def cometkiwi_scorer(references: References) -> Scorer:
    """The mean of a unified model's scores of output and source, times 100; no reference is looked at.

    Raises:
        InputError, DataError: as `comet_scorer`.
    """
    from deltalm_ds.evaluation.metrics.comet_checkpoint import UNIFIED

    checkpoint = _checkpoint("cometkiwi", COMETKIWI_MODEL, UNIFIED)

    def score(outputs: Sequence[str]) -> Score:
        pairs = checkpoint.join(checkpoint.encode(outputs), checkpoint.encode(references.sources))
        states = checkpoint.network.states(pairs, "COMETKiwi, outputs with sources")
        values = checkpoint.network.estimate(states)
        return share_score(values.tolist(), f"model:{checkpoint.sha256[:12]}")

    return Scorer(score)


def _checkpoint(metric: str, variable: str, kind: "Kind") -> "CometCheckpoint":
    from deltalm_ds.evaluation.metrics.comet_checkpoint import MODELS, open_checkpoint

    directory = os.environ.get(variable)
    if not directory:
        raise InputError(
            f"{metric} needs a checkpoint such as {MODELS[kind.identifier]}: name its directory as {variable}."
        )
    return open_checkpoint(directory, kind)


METRICS = (  # what differences mean to people is of wmt22-comet-da and wmt22-cometkiwi-da
    Metric(
        "comet",
        "COMET",
        higher_is_better=True,
        scorer=comet_scorer,
        needs=(SOURCES, REFERENCES),
        agreement=(96.22374133884283, 2.8359194570556636),
    ),
    Metric(
        "cometkiwi",
        "COMETKiwi",
        higher_is_better=True,
        scorer=cometkiwi_scorer,
        needs=(SOURCES,),
        agreement=(98.88141616584615, 2.719280643871758),
    ),
)

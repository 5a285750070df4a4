"""The recipe: everything that makes an experiment, in one validated YAML file.

DeepSpeed's numbers (precision, ZeRO stage, offload, buckets) are not here but in `ds_configs/*.json`; the recipe names
the file. Unknown keys and wrong values are reported all at once, each with the nearest right key: what two sections
must agree on is therefore checked by the validator of the later one, not by one that runs when all else is right.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from deltalm_ds.data.objectives import OBJECTIVES, Objective
from deltalm_ds.data.objectives.seq2seq import Seq2Seq
from deltalm_ds.data.sampling import SAMPLINGS, Sampling
from deltalm_ds.data.sampling.temperature import TemperatureSampling
from deltalm_ds.errors import nearest
from deltalm_ds.evaluation.metrics import METRICS, find_metrics
from deltalm_ds.model.config import PRESETS, DeltaLMConfig
from deltalm_ds.recipe.launch_section import LaunchSection
from deltalm_ds.recipe.one_of import OneOf
from deltalm_ds.recipe.schedules import SCHEDULES, Schedule
from deltalm_ds.recipe.section import Section
from deltalm_ds.recipe.training_section import TrainingSection
from deltalm_ds.runs.checkpoints import LOSSES
from deltalm_ds.token_ids import ROW_MULTIPLE

Decay = Annotated[float, Field(ge=0, lt=1)]


def _known_metrics(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(metric.name for metric in find_metrics(names))


# The fields of DeltaLMConfig, any of which may be left out; the vocabulary gives its own size.
_SHAPE: dict[str, Any] = {
    name: (field.rebuild_annotation() | None, Field(None, description=field.description))
    for name, field in DeltaLMConfig.model_fields.items()
    if name != "vocabulary_size"
}
_PRESET: Any = (
    Literal[tuple(PRESETS)] | None,
    Field(None, description="Named size of a fresh model, from which the other keys differ; base where none is given."),
)
_ModelSection: Any = create_model("_ModelSection", __base__=Section, preset=_PRESET, **_SHAPE)


class ModelSection(_ModelSection):
    """A preset, or an initial model, and what differs from it."""

    if TYPE_CHECKING:
        preset: str | None

    def changes(self) -> dict[str, Any]:
        """The fields of the model's configuration that are given."""
        return self.model_dump(exclude={"preset"}, exclude_none=True)

    def config(self, vocabulary_size: int) -> DeltaLMConfig:
        """The shape of a fresh model for a vocabulary of this size (without padding rows)."""
        return DeltaLMConfig.preset(self.preset or "base", vocabulary_size=vocabulary_size, **self.changes())


class TrainingGroup(Section):
    """One shard data set with what to learn from it."""

    path: Path = Field(description="Shard data set that `deltalm data build` wrote.")
    objective: Annotated[Objective, OneOf(OBJECTIVES, default="seq2seq")] = Field(
        Seq2Seq(), description="What to learn from a row."
    )
    directions: Literal["both", "forward", "reverse"] = Field(
        "both", description="Ways to read a pair; an objective that joins its sides reads it once, a task only forward."
    )
    languages: tuple[str, ...] = Field(
        (), description="Languages to train on: corpora all of whose languages are among them; none: all corpora."
    )
    weight: float = Field(1.0, gt=0, description="Share of the sequences, relative to the other groups.")


class DataSection(Section):
    """What to train on and how long a sequence may be."""

    train: tuple[TrainingGroup, ...] = Field(min_length=1, description="Groups of corpora to train on.")
    max_source_tokens: int = Field(256, gt=2, description="Longest source in tokens, `</s>` and tag included.")
    max_target_tokens: int = Field(256, gt=2, description="Longest target in tokens, `</s>` included.")
    overlong: Literal["truncate", "drop"] = Field(
        "truncate", description="Cut longer sequences, or leave them out; both are counted."
    )


class PhaseSection(Section):
    """Other groups to train on, another sampling, or both, from a step on; what is left out stays as it was."""

    from_step: int = Field(gt=0, description="Its first step; it lasts to the next phase, or to the end.")
    train: tuple[TrainingGroup, ...] = Field(
        (), description="Groups of corpora to train on in place of those before; none: the same. Keys as in data.train."
    )
    sampling: Annotated[Sampling | None, OneOf(SAMPLINGS, default="temperature")] = Field(
        None,
        description="How groups are shared in place of the sampling before, its steps counted from from_step; none: "
        "that sampling goes on. Keys as in sampling.",
    )

    @model_validator(mode="after")
    def _changes_something(self) -> "PhaseSection":
        if not self.train and self.sampling is None:
            raise ValueError("this phase changes nothing: give it train or sampling, or leave it out")
        return self


class BatchSection(Section):
    """Sizes in tokens, source and target together."""

    tokens_per_step: int = Field(gt=0, description="Expected tokens of a global batch.")
    micro_batch_tokens: int = Field(
        gt=0, description="Most tokens of one forward, before each side is rounded up to a multiple of 32."
    )
    min_micro_batches: int = Field(1, gt=0, description="Fewest micro-batches a rank accumulates for a step.")


class OptimizerSection(Section):
    """Adam with decoupled weight decay."""

    betas: tuple[Decay, Decay] = Field((0.9, 0.98), description="Decay of the first and of the second moment.")
    eps: float = Field(1e-8, ge=0, description="Added to the denominator of an update.")
    weight_decay: float = Field(0.0, ge=0, description="Share of a weight, times the learning rate, taken off a step.")
    no_decay: tuple[str, ...] = Field(
        (), description="Patterns of names of parameters without weight decay, such as `*.bias` and `*norm*`."
    )
    freeze: tuple[str, ...] = Field(
        (), description="Patterns of names of parameters that stay as they are, such as `encoder.*`."
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Factor of the learning rate from a layer to the one below it, in the encoder and in the decoder; "
        "embeddings take it once more than the lowest.",
    )
    definition: Literal["torch", "fairseq"] = Field(
        "torch", description="Where eps is added: after the bias correction (torch), or before it (fairseq)."
    )
    implementation: Literal["auto", "torch", "deepspeed", "apex"] = Field(
        "auto",
        description="auto is torch's fused Adam, where the weights are or, offloaded, on the CPU; needs no compiler.",
    )


class ValidationSection(Section):
    """What is measured at every `save_every` steps."""

    shards: Path = Field(description="Shard data set for the validation loss.")
    text: Path | None = Field(None, description="Directory of files such as `dev.en-de.en`, to translate; or none.")
    split: str = Field("dev", description="First part of the names of the files in text.")
    directions: tuple[str, ...] = Field((), description="Directions to translate, such as en-de; none: all of text.")
    metrics: Annotated[tuple[str, ...], AfterValidator(_known_metrics)] = Field(
        ("bleu",), description="Metrics of the translations of the text."
    )
    weights: Literal["trained", "average"] = Field(
        "trained", description="Which weights are measured: those that are trained, or their running average."
    )
    max_sentences: int = Field(100, gt=0, description="Sentences of a direction that are translated.")
    beam: int = Field(1, gt=0, description="Beams of the translations; 1 is greedy.")
    max_length: int = Field(128, gt=0, description="Most tokens of a translation, without `</s>`.")


class Recipe(Section):
    """One experiment."""

    name: str = Field(description="Name of the experiment, for logs and reports.")
    about: dict[str, str] = Field(
        default_factory=dict, description="Hardware, cost and expected result, in words; changes nothing."
    )
    seed: int = Field(1, ge=0, lt=2**63, description="Another seed gives other weights, orders, spans and dropout.")
    vocabulary: Path = Field(description="Vocabulary directory, as `deltalm vocab` writes it.")
    initial_model: Path | None = Field(
        None, description="Model directory, or run (its newest checkpoint), to start from; none: fresh weights."
    )
    deepspeed: str = Field("fp32_zero1", description="File of ds_configs by name, or path of a .json file.")
    model: ModelSection | None = Field(
        None,
        validate_default=True,
        description="Shape of a fresh model, or what differs from the initial one; keys left out are the preset's, or "
        "the initial model's.",
    )
    data: DataSection = Field(description="What to train on and how long a sequence may be.")
    sampling: Annotated[Sampling, OneOf(SAMPLINGS, default="temperature")] = Field(
        TemperatureSampling(), description="How the sequences of a group are shared among its corpora."
    )
    phases: tuple[PhaseSection, ...] = Field(
        (),
        description="What changes from a step on, in the order of the steps: data sets, weights, languages, sampling.",
    )
    batch: BatchSection = Field(description="Sizes in tokens, source and target together.")
    optimizer: OptimizerSection = Field(OptimizerSection(), description="Adam with decoupled weight decay.")
    schedule: Annotated[Schedule, OneOf(SCHEDULES, default="inverse_sqrt")] = Field(
        description="Learning rate by the number of updates: a linear warm-up, then what the kind says."
    )
    validation: ValidationSection | None = Field(
        None, description="What is measured at every checkpoint; none: nothing."
    )
    training: TrainingSection = Field(description="Length of the run, clipping, checkpoints and logs.")
    launch: LaunchSection = Field(
        LaunchSection(), description="What `deltalm launch` does when a rank, a host or a link fails."
    )

    @field_validator("training")
    @classmethod
    def _keeps_by_what_is_measured(cls, training: TrainingSection, info: ValidationInfo) -> TrainingSection:
        validation: ValidationSection | None = info.data.get("validation")
        metric = training.keep_best.metric
        measured = LOSSES + (validation.metrics if validation is not None and validation.text is not None else ())
        if metric not in measured and "validation" in info.data:  # else wrong itself
            raise ValueError(
                f"keep_best.metric={metric} is not measured by the validation; the nearest that is: "
                f"{nearest(metric, measured)} (of {', '.join(measured)})"
            )
        if training.patience is not None and info.data.get("validation", "wrong itself") is None:
            raise ValueError("patience needs a validation, by whose results it ends the run: give one")
        if metric in METRICS and METRICS[metric].higher_is_better is None:
            raise ValueError(f"keep_best.metric={metric} has no better end, so that nothing is ranked by it")
        return training

    @property
    def samplings(self) -> list[Sampling]:
        """Those of all phases."""
        return [self.sampling, *(phase.sampling for phase in self.phases if phase.sampling is not None)]

    @field_validator("model")
    @classmethod
    def _can_be_made(cls, model: ModelSection | None, info: ValidationInfo) -> ModelSection | None:
        if "initial_model" not in info.data:  # wrong itself
            return model
        if info.data["initial_model"] is None:
            if model is None:
                raise ValueError("either initial_model or model must be given")
            model.config(ROW_MULTIPLE)  # any size of vocabulary: what is wrong shows
        elif model is not None and model.preset is not None:
            raise ValueError(
                f"preset={model.preset} beside initial_model, which has a size of its own: leave out one of them (as "
                "overrides: model.preset= or initial_model=)"
            )
        return model

    @field_validator("data")
    @classmethod
    def _fits_the_positions(cls, data: DataSection, info: ValidationInfo) -> DataSection:
        model = info.data.get("model")
        if model is not None and info.data.get("initial_model", "wrong itself") is None:
            check_positions(data, model.config(ROW_MULTIPLE))
        return data

    @field_validator("training")
    @classmethod
    def _keeps_what_is_measured(cls, training: TrainingSection, info: ValidationInfo) -> TrainingSection:
        validation = info.data.get("validation")
        if validation is not None and validation.weights == "average" and training.average is None:
            raise ValueError("average must be given where validation.weights is average")
        return training

    @field_validator("phases")
    @classmethod
    def _follow_each_other(cls, phases: tuple[PhaseSection, ...]) -> tuple[PhaseSection, ...]:
        for number, phase in enumerate(phases):
            if number and phase.from_step <= phases[number - 1].from_step:
                raise ValueError(
                    f"phases.{number} begins at step {phase.from_step}, not after phases.{number - 1}, which begins at "
                    f"step {phases[number - 1].from_step}: give them in the order of their steps"
                )
        return phases

    @field_validator("training")
    @classmethod
    def _comes_to_every_phase(cls, training: TrainingSection, info: ValidationInfo) -> TrainingSection:
        for number, phase in enumerate(info.data.get("phases", ())):
            if phase.from_step >= training.max_steps:
                raise ValueError(
                    f"max_steps={training.max_steps} ends the run before phases.{number}, which would begin at step "
                    f"{phase.from_step}: raise it, or leave out the phase"
                )
        return training

    @field_validator("batch")
    @classmethod
    def _holds_the_longest_pair(cls, batch: BatchSection, info: ValidationInfo) -> BatchSection:
        data = info.data.get("data")
        longest = data.max_source_tokens + data.max_target_tokens if data is not None else 0
        if longest > batch.micro_batch_tokens:
            raise ValueError(
                f"micro_batch_tokens={batch.micro_batch_tokens} cannot hold one pair of "
                f"data.max_source_tokens + data.max_target_tokens = {longest}"
            )
        return batch


def check_positions(data: DataSection, config: DeltaLMConfig) -> None:
    """Raise ValueError where sequences may be longer than the model's positions."""
    if max(data.max_source_tokens, data.max_target_tokens) > config.max_positions:
        raise ValueError(
            "data.max_source_tokens and data.max_target_tokens may be at most the model's "
            f"{config.max_positions} positions (model.max_positions)"
        )

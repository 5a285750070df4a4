"""The recipe: everything that makes an experiment, in one validated YAML file.

The engine's numbers (precision, ZeRO stage, offload, buckets) are not here but in `ds_configs/*.json`; the recipe names
the file. Unknown keys and wrong values are reported all at once, each with the nearest right key.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from deltalm_ds.evaluation.metrics import find_metrics
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.recipe.schedules import Schedule

Decay = Annotated[float, Field(ge=0, lt=1)]


def _known_metrics(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(metric.name for metric in find_metrics(names))


class Section(BaseModel):
    """A part of the recipe: no unknown keys, no changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(Section):
    """A preset and what differs from it; the vocabulary gives its own size."""

    preset: Literal["tiny", "base", "large"] = "base"
    hidden_size: int | None = None
    ffn_size: int | None = None
    num_heads: int | None = None
    num_encoder_layers: int | None = None
    num_decoder_blocks: int | None = None
    decoder: Literal["interleaved", "vanilla"] | None = None
    max_positions: int | None = None
    embedding_norm: bool | None = None
    dropout: float | None = None
    attention_dropout: float | None = None
    activation_dropout: float | None = None
    activation_checkpointing: bool | None = None

    def config(self, vocabulary_size: int) -> DeltaLMConfig:
        """The model's shape for a vocabulary of this size (without padding rows)."""
        given = self.model_dump(exclude={"preset"}, exclude_none=True)
        return DeltaLMConfig.preset(self.preset, vocabulary_size=vocabulary_size, **given)


class TrainingGroup(Section):
    """One shard data set with what to learn from it."""

    path: Path
    objective: Literal["seq2seq", "span_corruption", "translation_span_corruption"] = "seq2seq"
    directions: Literal["both", "forward", "reverse"] = "both"
    weight: float = Field(1.0, gt=0, description="share of the sequences, relative to the other groups")
    noise_density: float | None = Field(
        None, gt=0, lt=1, description="share of corrupted tokens; 0.15, of translation_span_corruption 0.5"
    )
    mean_span_length: float | None = Field(None, ge=1, description="tokens of a corrupted span; 3")
    sentinels_in_target: bool | None = Field(None, description="true; false for zero-shot fine-tuning")
    sides: Literal["both", "one"] | None = Field(None, description="both; one corrupts one sentence of a pair (mT6)")

    @property
    def objective_options(self) -> dict[str, Any]:
        """What is given of how the objective corrupts."""
        keys = {"noise_density", "mean_span_length", "sentinels_in_target", "sides"}
        return self.model_dump(include=keys, exclude_none=True)

    @model_validator(mode="after")
    def _options_belong_to_the_objective(self) -> "TrainingGroup":
        allowed = {"span_corruption": {"noise_density", "mean_span_length", "sentinels_in_target"}}
        allowed["translation_span_corruption"] = allowed["span_corruption"] | {"sides"}
        strange = sorted(set(self.objective_options) - allowed.get(self.objective, set()))
        if strange:
            objectives = sorted(name for name, keys in allowed.items() if keys >= set(strange))
            raise ValueError(f"{', '.join(strange)} belongs to {' and '.join(objectives)}, not to {self.objective}")
        return self


class DataSection(Section):
    """What to train on and how long a sequence may be."""

    train: tuple[TrainingGroup, ...] = Field(min_length=1)
    max_source_tokens: int = Field(256, gt=2, description="`</s>` and tag included")
    max_target_tokens: int = Field(256, gt=2, description="`</s>` included")
    overlong: Literal["truncate", "drop"] = "truncate"


class SamplingSection(Section):
    """p_i ∝ (n_i / Σn)^(1/T), T rising from start to end over the given steps, then constant [Ma+21 §4.2]."""

    temperature_start: float = Field(1.0, ge=1.0)
    temperature_end: float = Field(5.0, ge=1.0)
    rise_steps: int = Field(0, ge=0, description="0: constant at temperature_end")
    interval_steps: int = Field(1, gt=0, description="steps of a virtual epoch gives the authors' staircase")


class BatchSection(Section):
    """Sizes in tokens, source and target together."""

    tokens_per_step: int = Field(gt=0, description="expected tokens of a global batch")
    micro_batch_tokens: int = Field(gt=0, description="never exceeded by one forward, before rounding up")
    min_micro_batches: int = Field(1, gt=0, description="accumulate over at least so many micro-batches a rank")


class OptimizerSection(Section):
    """Adam with decoupled weight decay."""

    betas: tuple[Decay, Decay] = (0.9, 0.98)
    eps: float = Field(1e-8, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    definition: Literal["torch", "fairseq"] = Field("torch", description="where eps stands: see kernels/optimizer.py")
    implementation: Literal["auto", "torch", "deepspeed", "apex"] = Field(
        "auto", description="auto: DeepSpeed's CPUAdam where the engine offloads the optimizer, else torch's fused Adam"
    )


class ValidationSection(Section):
    """What is measured at every `save_every` steps."""

    shards: Path = Field(description="data set for the validation loss")
    text: Path | None = Field(None, description="directory of `dev.en-de.en` files, for `metrics`")
    split: str = "dev"
    directions: tuple[str, ...] = Field((), description="such as en-de; none: both of every pair")
    metrics: Annotated[tuple[str, ...], AfterValidator(_known_metrics)] = Field(
        ("bleu",), description="of the translations of the text"
    )
    max_sentences: int = Field(100, gt=0, description="per direction, of the text")
    beam: int = Field(1, gt=0)
    max_length: int = Field(128, gt=0)


class TrainingSection(Section):
    """The run itself."""

    max_steps: int = Field(gt=0)
    clip_norm: float = Field(1.0, gt=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    save_every: int = Field(gt=0, description="steps between checkpoints, each with a validation")
    keep_last: int = Field(5, gt=0, description="checkpoints kept besides the best one")
    log_every: int = Field(50, gt=0)
    matmul_precision: Literal["highest", "high", "medium"] = Field(
        "highest", description="of float32 products: high allows TF32, medium bfloat16 inside, where there is hardware"
    )


class Recipe(Section):
    """One experiment."""

    name: str
    about: dict[str, str] = Field(default_factory=dict, description="hardware, cost and expected result, in words")
    seed: int = Field(1, ge=0, lt=2**63)
    vocabulary: Path
    initial_model: Path | None = Field(
        None, description="model directory, or run (its newest checkpoint), to start from"
    )
    deepspeed: str = Field("fp32_zero1", description="a file of ds_configs, by name, or a path")
    model: ModelSection | None = Field(None, description="shape of a fresh model, or changes to the initial one")
    data: DataSection
    sampling: SamplingSection = SamplingSection()
    batch: BatchSection
    optimizer: OptimizerSection = OptimizerSection()
    schedule: Schedule
    validation: ValidationSection | None = None
    training: TrainingSection

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        faults = []
        longest = self.data.max_source_tokens + self.data.max_target_tokens
        if longest > self.batch.micro_batch_tokens:
            faults.append(
                f"batch.micro_batch_tokens={self.batch.micro_batch_tokens} cannot hold one pair of "
                f"data.max_source_tokens + data.max_target_tokens = {longest}"
            )
        if self.initial_model is None and self.model is None:
            faults.append("either initial_model or model must be given")
        if faults:
            raise ValueError("; ".join(faults))
        return self

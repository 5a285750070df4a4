"""The recipe's `training`: length of a run, checkpoints, logs, and what is done when something goes wrong."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from deltalm_ds.errors import nearest
from deltalm_ds.recipe.section import Section

MONITORS = ("csv", "wandb", "comet")  # of DeepSpeed; training/monitors.py opens them


def _known_monitors(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in MONITORS:
            raise ValueError(f"there is no monitor {name!r}; the nearest is {nearest(name, MONITORS)!r}")
    return tuple(dict.fromkeys(names))


class BestCheckpoints(Section):
    """Checkpoints kept for what their validation measured."""

    count: int = Field(1, ge=0, description="How many; 0: none.")
    metric: str = Field("loss", description="loss, nll, or one of validation.metrics.")


class LimitsSection(Section):
    """How long a rank may be at one thing before the run counts as hanging and is ended, to be started again."""

    start_s: float = Field(600.0, gt=0, description="Everything before the first step.")
    step_s: float = Field(300.0, gt=0, description="A micro-batch's forward or backward, or waiting for data or ranks.")
    checkpoint_s: float = Field(900.0, gt=0, description="Saving a checkpoint.")
    validation_s: float = Field(600.0, gt=0, description="Each batch of a validation.")


class SpikesSection(Section):
    """What is done about a loss far above those of the last steps."""

    policy: Literal["log", "skip", "roll_back"] = Field(
        "log",
        description="Record it; skip its update; or go back to the newest checkpoint and leave its step out.",
    )
    window: int = Field(64, ge=8, description="Steps whose losses it is compared with.")
    sigmas: float = Field(6.0, gt=0, description="Standard deviations above their median that make a spike.")


class AverageSection(Section):
    """An exponential moving average of the weights, beside those that are trained."""

    decay: float = Field(gt=0, lt=1, description="What an update keeps of the average; the rest are the new weights.")
    from_step: int = Field(0, ge=0, description="Updates before it begins: until then it is the weights themselves.")


class ProfileSection(Section):
    """Steps to record with torch.profiler."""

    start_step: int = Field(ge=0, description="First step of the window, from 0; take one that is past the warm-up.")
    num_steps: int = Field(3, gt=0, le=100, description="Steps of the window; a trace is some megabytes a step.")
    ranks: Literal["first", "all"] = Field("first", description="Ranks that write a trace.")


class TrainingSection(Section):
    """The run itself."""

    max_steps: int = Field(gt=0, description="Steps of the whole run.")
    clip_norm: float = Field(1.0, ge=0, description="Norm to which a larger gradient is scaled down; 0: no clipping.")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Probability spread evenly over the vocabulary.")
    save_every: int = Field(gt=0, description="Steps between checkpoints, each with a validation.")
    keep_last: int = Field(5, gt=0, description="Newest checkpoints that are kept.")
    keep_every: int | None = Field(
        None, gt=0, description="Also keep for good those of every so many steps, a multiple of save_every; none: no."
    )
    keep_best: BestCheckpoints = Field(
        BestCheckpoints(), description="Also keep the best ones by a metric of the validation."
    )
    patience: int | None = Field(
        None,
        gt=0,
        description="Validations in a row without a better keep_best.metric after which the run ends; none: it does "
        "not end for that.",
    )
    max_unsaved_steps: int | None = Field(
        None,
        gt=0,
        description="Steps since the last checkpoint after which a run ends that cannot write another; "
        "none: ten times save_every.",
    )
    log_every: int = Field(50, gt=0, description="Steps between records in metrics.jsonl.")
    monitors: Annotated[tuple[str, ...], AfterValidator(_known_monitors)] = Field(
        (), description="Where the log goes beside TensorBoard: csv, wandb, comet."
    )
    profile: ProfileSection | None = Field(None, description="Steps to record with torch.profiler; none: nothing.")
    max_skipped_updates: int = Field(
        50, gt=0, description="Updates skipped in a row, for gradients that are not finite, after which a run ends."
    )
    r_drop: float = Field(
        0.0,
        ge=0,
        description="R-Drop's alpha, the weight of the divergence of two passes with other dropout masks; 0: one pass.",
    )
    average: AverageSection | None = Field(
        None, description="Running average of the weights, which checkpoints hold beside them; none: none."
    )
    matmul_precision: Literal["highest", "high", "medium"] = Field(
        "highest", description="Of float32 products: high allows TF32, medium bfloat16 inside, where there is hardware."
    )
    cuda_graphs: bool = Field(
        True, description="On a GPU, record micro-batches as CUDA graphs where that can be done; `deltalm plan` says."
    )
    spikes: SpikesSection = Field(SpikesSection(), description="What is done about loss spikes.")
    limits: LimitsSection = Field(LimitsSection(), description="Seconds after which a run counts as hanging.")

    @field_validator("keep_every")
    @classmethod
    def _meets_checkpoints(cls, keep_every: int | None, info: ValidationInfo) -> int | None:
        save_every = info.data.get("save_every")
        if keep_every is not None and save_every is not None and keep_every % save_every:
            raise ValueError(f"{keep_every} is no multiple of save_every={save_every}: there are no such checkpoints")
        return keep_every

    @field_validator("profile")
    @classmethod
    def _ends_in_time(cls, profile: ProfileSection | None, info: ValidationInfo) -> ProfileSection | None:
        max_steps = info.data.get("max_steps")
        if profile is not None and max_steps is not None and profile.start_step + profile.num_steps > max_steps:
            past = profile.start_step + profile.num_steps
            raise ValueError(f"start_step + num_steps = {past} is past training.max_steps={max_steps}")
        return profile

"""When a run ends early, as its validations get no better: the best one so far stands in every checkpoint."""

import math
from dataclasses import replace

from deltalm_ds.evaluation.metrics import higher_is_better
from deltalm_ds.recipe.training_section import TrainingSection
from deltalm_ds.runs.checkpoints import LOSSES, BestValidation, TrainingState


def is_highest_best(metric: str) -> bool:
    """Which end of what a validation measures is the better one, for ranking; InputError as `higher_is_better`."""
    return metric not in LOSSES and higher_is_better(metric)


def count_validation(state: TrainingState, metric: str) -> None:
    """Take what was measured at this step into the best so far; by another metric than before, counting begins anew."""
    value, best = state.validation.get(metric, math.nan), state.best
    if best is None or best.metric != metric:
        state.best = BestValidation(metric, value, state.step) if math.isfinite(value) else None
    elif value > best.value if is_highest_best(metric) else value < best.value:
        state.best = BestValidation(metric, value, state.step)
    else:
        state.best = replace(best, later=best.later + 1)


def reason_to_end(state: TrainingState, training: TrainingSection) -> str | None:
    """Why the run ends here, before its last step; None where it goes on."""
    best, patience = state.best, training.patience
    if patience is None or best is None or best.metric != training.keep_best.metric or best.later < patience:
        return None
    return f"the last {best.later} validations were no better than step {best.step}'s {best.metric} {best.value:.3f}"

"""Updates that could not be applied, looked at more closely: was it the data, or the hardware?

DeepSpeed skips an update whose gradient is not finite, so the weights are what they were, and the step can be computed
once more from the same inputs with the same dropout. If everything is finite then, a device has miscomputed: that is
recorded, and the second update is applied. If not, the first tensor that is not finite is looked for in the second
computation, and what is needed to find the cause is kept (`forensics`).
"""

import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from torch import Tensor, distributed

from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.runs.checkpoints import checkpoint_directories
from deltalm_ds.runs.events import record_event
from deltalm_ds.training.checkpoint import loss_scaler_state, set_loss_scaler
from deltalm_ds.training.collectives import of_all_ranks
from deltalm_ds.training.forensics import Search, keep_bundle, whereabouts
from deltalm_ds.training.inputs import Inputs
from deltalm_ds.training.roll_back import RollBack
from deltalm_ds.training.spikes import SpikeDetector, not_finite_or_one
from deltalm_ds.training.step import Computed, LossSums

MOST_LOOKS = 3  # at updates skipped in a row: the next ones have the same weights, and mostly the same fault
NORMAL_OVERFLOWS = 16  # in a row, by which a dynamic loss scale finds its size; from 2^16 to 1
SCALES_KEPT = 200

Compute = Callable[[Callable[[Tensor], Tensor]], Computed]


class Guard:
    """Makes the updates of a rank.

    Args:
        ds_engine: DeepSpeed's, with the model.
        inputs: of the run.
        recipe: of the run.
        run: its directory.
        losses: of the last steps, see `SpikeDetector`.
    """

    def __init__(self, ds_engine: Any, inputs: Inputs, recipe: Recipe, run: Path, losses: list[float | None]) -> None:
        self._ds_engine, self._inputs, self._recipe, self._run = ds_engine, inputs, recipe, run
        self.spikes = SpikeDetector(recipe.training.spikes, ds_engine.device, losses)
        self._scaler = cast(Any, getattr(ds_engine.optimizer, "loss_scaler", None))
        if getattr(self._scaler, "dynamic", False):
            self._scaler.raise_error_at_min_scale = False  # it would be one sentence without a step; we count ourselves
        self._scales: deque[tuple[int, float]] = deque(maxlen=SCALES_KEPT)
        self._skipped_in_a_row = self._looks = 0

    def update(self, compute: Compute, step: int, num_target_tokens: int, sums: LossSums) -> bool:
        """Make the update of a step; returns whether it was applied. A collective.

        Args:
            compute: computes the step, `train_step` with all arguments but the last.
            step: the number of the step.
            num_target_tokens: of all ranks.
            sums: where losses are counted.
        """
        before = loss_scaler_state(self._ds_engine)
        if before is not None:
            self._scales.append((step, before["cur_scale"]))
        done = compute(lambda loss_sum: self.spikes.judge(step, loss_sum, num_target_tokens))
        if not done.applied:
            done = self._consider(compute, done, step, before)
        for batch, token_loss, token_nll in done.losses:
            sums.add(batch, token_loss, token_nll)
        self._skipped_in_a_row = 0 if done.applied else self._skipped_in_a_row + 1
        self._looks = 0 if done.applied else self._looks
        return done.applied

    def tell_spikes(self, finish_save: Callable[[], object]) -> None:
        """Of the steps since this was asked last. A collective.

        Args:
            finish_save: waits for a save under way, whose checkpoint may be the one to go back to.

        Raises:
            RollBack: they are to be undone, and there is a checkpoint to go back to.
        """
        spikes, policy = self.spikes.read(), self._recipe.training.spikes.policy
        for spike in spikes:
            fault = (
                f"loss {spike.loss:.3f} is {spike.sigmas:.1f} standard deviations above the median {spike.median:.3f}"
            )
            self._tell(spike.step, "loss spike", fault=fault, policy=policy)
        if spikes and policy == "roll_back":
            finish_save()
            if of_all_ranks(bool(checkpoint_directories(self._run)))[0]:
                raise RollBack(spike.step for spike in spikes)
            fault = "there is no checkpoint to go back to: the update stays"
            self._tell(spikes[-1].step, "not rolled back", fault=fault)

    def _consider(self, compute: Compute, done: Computed, step: int, before: dict[str, float] | None) -> Computed:
        """What is to count of an update that was skipped: itself, or a second computation that went well."""
        if self.spikes.was_spike():
            set_loss_scaler(self._ds_engine, before)  # it did not overflow
            return done
        if self._is_normal_overflow(before) or self._looks == MOST_LOOKS:
            return done
        self._looks += 1
        after = loss_scaler_state(self._ds_engine)
        set_loss_scaler(self._ds_engine, before)
        with Search(self._ds_engine.module) as search:
            again = compute(not_finite_or_one)
        if again.applied:
            self._tell_of_hardware(step, done)
            return again
        set_loss_scaler(self._ds_engine, after)
        found, bundle = keep_bundle(
            self._run, step, search, again.losses, self._inputs.stream, self._recipe, list(self._scales)
        )
        self._tell(step, "not finite", fault=found, bundle=bundle)
        return done

    def _is_normal_overflow(self, before: dict[str, float] | None) -> bool:
        """Whether the dynamic loss scale was just too large."""
        if before is None or not getattr(self._scaler, "dynamic", False):
            return False
        is_at_minimum = before["cur_scale"] <= self._scaler.min_scale
        return not is_at_minimum and (self._skipped_in_a_row + 1) % NORMAL_OVERFLOWS != 0

    def _tell_of_hardware(self, step: int, first: Computed) -> None:
        """The same inputs gave finite gradients the second time."""
        places = of_all_ranks((whereabouts(self._ds_engine.device), _are_finite(first.losses)))
        wrong = [place for place, are_finite in places if not are_finite] or [place for place, _ in places]
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        fault = "the step was not finite, and finite when computed once more from the same inputs; suspected: "
        self._tell(step, "hardware", fault=f"{fault}{', '.join(wrong[:8])}{more}")

    def _tell(self, step: int, kind: str, **values: Any) -> None:
        if distributed.get_rank() == 0:
            with suppress(OSError):  # a full disk; it is said all the same
                record_event(self._run, kind, step=step, **values)
            told = ", ".join(str(value) for value in values.values() if value)
            print(f"{self._recipe.name}: step {step}: {told}", file=sys.stderr, flush=True)


def _are_finite(losses: list[tuple[Any, Tensor, Tensor]]) -> bool:
    """Whether every token's loss is."""
    return all(bool(token_loss.isfinite().all()) for _, token_loss, _ in losses)

"""Loss spikes: steps whose loss lies far above what the last steps let expect, by a robust measure.

A step's loss is compared with the median of the last ones; their median absolute deviation, times 1.4826, estimates the
standard deviation whatever outliers there are. All of it stays on the device and is the same on every rank, so that a
step can be left out without the host knowing yet. All finite losses enter the window, those of spikes too: a median
does not mind them, and where data become harder for good, they are the new measure after half a window.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, distributed

from deltalm_ds.recipe.training_section import SpikesSection

SIGMA_OF_MAD = 1.4826  # of a normal distribution
LEAST_SIGMA = 1e-3  # times the median: losses that hardly differ any more make no spikes of rounding


class Spike(NamedTuple):
    """A step whose loss per target token was `sigmas` above the median of those before."""

    step: int
    loss: float
    median: float
    sigmas: float


def not_finite_or_one(value: Tensor) -> Tensor:
    """1 for a finite value, else NaN: a factor that lets no gradient of it pass."""
    return torch.where(value.isfinite(), 1.0, math.nan)


def _median(values: Tensor) -> Tensor:
    """[N] -> [], the lower median of those that are not NaN; `torch.nanmedian` waits for a GPU."""
    middle = (values.isfinite().sum() - 1).clamp(min=0) // 2
    return values.sort().values.gather(0, middle[None])[0]  # NaN is sorted to the end


class SpikeDetector:
    """Judges the loss of every step.

    Args:
        section: of the recipe.
        device: where losses are.
        losses: of the last steps, oldest first, as `losses` gave them: None where one was not finite.
    """

    def __init__(self, section: SpikesSection, device: torch.device, losses: Sequence[float | None] = ()) -> None:
        self._section, self._count = section, min(len(losses), section.window)
        self._window = torch.full((section.window,), math.nan, dtype=torch.float64)
        kept = [math.nan if loss is None else loss for loss in losses[-section.window :]]
        self._window[: self._count] = torch.tensor(kept, dtype=torch.float64)
        self._window = self._window.to(device)
        self._judged: list[tuple[int, Tensor]] = []

    def judge(self, step: int, loss_sum: Tensor, num_target_tokens: int) -> Tensor:
        """A factor of the gradient: 1, or NaN where the loss is not finite or a spike to be skipped. A collective.

        Args:
            step: that the loss belongs to.
            loss_sum: [] of this rank.
            num_target_tokens: of all ranks.
        """
        loss = loss_sum.double()
        distributed.all_reduce(loss)
        loss = loss / num_target_tokens
        median = _median(self._window)
        sigma = SIGMA_OF_MAD * _median((self._window - median).abs())
        sigmas = (loss - median) / torch.maximum(sigma, LEAST_SIGMA * median.abs())
        is_known = loss.isfinite() & (self._count >= self._section.window // 2)  # fewer are too few to tell
        sigmas = torch.where(is_known, sigmas, math.nan)
        self._judged.append((step, torch.stack([loss, median, sigmas])))
        self._window[self._count % self._section.window] = torch.where(loss.isfinite(), loss, math.nan)
        self._count += 1
        factor = not_finite_or_one(loss)
        if self._section.policy == "skip":
            factor = torch.where(sigmas > self._section.sigmas, math.nan, factor)
        return factor

    def was_spike(self) -> bool:
        """Whether the step judged last was a spike that is to be skipped; waits for the device."""
        return self._section.policy == "skip" and bool(self._judged[-1][1][2] > self._section.sigmas)

    def read(self) -> list[Spike]:
        """The spikes since the last reading; waits for the device."""
        if not self._judged:
            return []
        steps, values = zip(*self._judged, strict=True)
        self._judged = []
        found = [Spike(step, *row) for step, row in zip(steps, torch.stack(values).tolist(), strict=True)]
        return [spike for spike in found if spike.sigmas > self._section.sigmas]

    def losses(self) -> list[float | None]:
        """Those of the last steps, oldest first; waits for the device."""
        window, begin = self._window.tolist(), self._count % self._section.window
        ordered = window[begin:] + window[:begin] if self._count >= self._section.window else window[:begin]
        return [None if math.isnan(loss) else loss for loss in ordered]

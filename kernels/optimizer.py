"""Adam with decoupled weight decay, in two definitions: torch's (eps after bias correction), fairseq's (before it).

torch: p ← p - lr · m / (1 - β₁ᵗ) / (√(v / (1 - β₂ᵗ)) + eps). fairseq: the same with √v + eps under the fraction and the
correction √(1 - β₂ᵗ) in front.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from deltalm_ds.errors import InputError
from deltalm_ds.kernels.dispatch import require_apex


def adam(
    parameters: ParamsT,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    definition: Literal["torch", "fairseq"] = "torch",
) -> Optimizer:
    """torch's fused Adam; the learning rate is set by the caller before every step.

    Args:
        parameters: float32 or 16 bits; or groups of them, each with options of its own.
        betas: how much of the first and of the second moment a step keeps.
        eps: beside the root of the second moment; `definition` says on which side of the bias correction.
        weight_decay: fraction of the weights, times the learning rate, that a step takes away.
        definition: torch's or fairseq's.
    """
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
    if definition == "fairseq":
        optimizer.register_step_pre_hook(_PlaceEpsAsFairseq())
    return optimizer


def apex_adam(parameters: ParamsT, betas: tuple[float, float], eps: float, weight_decay: float) -> Optimizer:
    """apex's fused Adam, by torch's definition; for GPUs.

    Args:
        parameters: on a GPU; as `adam`.
        betas: as `adam`.
        eps: as `adam`, behind the bias correction.
        weight_decay: as `adam`.

    Raises:
        InputError: apex is not installed, or there is no GPU.
    """
    require_apex("optimizer.implementation: apex")
    if not torch.cuda.is_available():
        raise InputError("optimizer.implementation: apex has kernels for GPUs only, and there is none; use auto.")
    from apex.optimizers import FusedAdam

    return FusedAdam(parameters, lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay, adam_w_mode=True)


class _PlaceEpsAsFairseq:
    """Before step t: eps / √(1 - β₂ᵗ), behind the bias correction, is fairseq's eps in front of it.

    One fused pass over memory this way, where fairseq's formula in eager torch takes eight. Steps are counted here, as
    torch counts on the GPU, for which the host would wait; its count is read where it is not that of the last step, as
    when a run goes on.
    """

    def __init__(self) -> None:
        self._counts: dict[int, tuple[Tensor, int]] = {}  # of each group: torch's count, and its value after the step

    def __call__(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        for number, group in enumerate(optimizer.param_groups):
            updated = [p for p in group["params"] if optimizer.state.get(p)]
            steps = self._read(number, [optimizer.state[p]["step"] for p in updated]) if updated else 0
            if updated:
                after = steps + (updated[0].grad is not None)
                self._counts[number] = optimizer.state[updated[0]]["step"], after
            group["eps"] = optimizer.defaults["eps"] / (1 - group["betas"][1] ** (steps + 1)) ** 0.5

    def _read(self, number: int, counts: list[Tensor]) -> int:
        """How many steps a group has been updated."""
        count, value = self._counts.get(number, (None, 0))
        if count is counts[0]:
            return value
        values = {int(count) for count in counts}
        assert len(values) == 1, "the parameters of a group are updated together"
        return values.pop()

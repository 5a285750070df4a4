"""Adam in two definitions: torch's (eps after bias correction) and fairseq's (eps before it) [FACTS §1]."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer


def adam(
    parameters: Iterable[Tensor],
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    definition: Literal["torch", "fairseq"] = "torch",
) -> Optimizer:
    """Adam with decoupled weight decay; the learning rate is set by the caller before every step."""
    if definition == "fairseq":
        return FairseqAdam(parameters, betas=betas, eps=eps, weight_decay=weight_decay)
    return torch.optim.AdamW(parameters, lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)


class FairseqAdam(Optimizer):
    """p ← p - lr · (√(1-β₂ᵗ) / (1-β₁ᵗ)) · m / (√v + eps), to follow fairseq's trajectories digit by digit.

    States have torch's names (`exp_avg`, `exp_avg_sq`, `step`), so checkpoints of both definitions read alike.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        beta_1, beta_2 = group["betas"]
        state["step"] += 1
        step = float(state["step"])
        exp_avg = state["exp_avg"].mul_(beta_1).add_(grad, alpha=1 - beta_1)
        exp_avg_sq = state["exp_avg_sq"].mul_(beta_2).addcmul_(grad, grad, value=1 - beta_2)
        denominator = exp_avg_sq.sqrt().add_(group["eps"])
        step_size = group["lr"] * (1 - beta_2**step) ** 0.5 / (1 - beta_1**step)
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(exp_avg, denominator, value=-step_size)

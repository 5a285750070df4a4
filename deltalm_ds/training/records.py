"""What a record of the log is made of: losses by component, rates and counts."""

import time
from typing import Any

import torch

from deltalm_ds.data.stream import StepBatches


class Rates:
    """Tokens, steps and time since it was made."""

    def __init__(self) -> None:
        self.began, self.tokens, self.steps = time.monotonic(), 0, 0
        self.dropped, self.truncated, self.without_sequences = 0, 0, 0

    def count(self, batches: StepBatches) -> None:
        """Add a global batch."""
        self.steps += 1
        self.tokens += batches.num_source_tokens + batches.num_target_tokens
        self.dropped += batches.num_overlong + batches.num_too_short
        self.truncated += batches.num_truncated
        self.without_sequences += not batches.num_sequences

    def read(self) -> dict[str, float]:
        """Rates (source and target tokens together) and counts."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        return {
            "tokens_per_second": self.tokens / seconds,
            "tokens_per_step": self.tokens / self.steps,
            "seconds_per_step": seconds / self.steps,
            "dropped_sequences": self.dropped,
            "truncated_sequences": self.truncated,
            "steps_without_sequences": self.without_sequences,
        }


def loss_record(sums: torch.Tensor, names: list[str]) -> dict[str, Any]:
    """Losses per target token in nats from sums [3, components]; components without tokens are left out."""
    loss, nll, tokens = sums.sum(dim=1).tolist()
    return {
        "loss": loss / max(tokens, 1.0),
        "nll": nll / max(tokens, 1.0),
        "nll_of": {
            name: component_nll / component_tokens
            for name, component_nll, component_tokens in zip(names, sums[1].tolist(), sums[2].tolist(), strict=True)
            if component_tokens
        },
    }

"""What a record of the log is made of: losses by component, rates and counts, and how fast that is for the device."""

import math
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import distributed

from deltalm_ds.data.mixture import Component
from deltalm_ds.data.stream import StepBatches
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.training.deepspeed_internals import time_communication
from deltalm_ds.training.sections import Sections
from deltalm_ds.training.throughput import operations_of, peak_operations, work_of

RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes


class Rates:
    """Tokens, steps and time since it was made."""

    def __init__(self) -> None:
        self.began, self.tokens, self.target_tokens, self.steps = time.monotonic(), 0, 0, 0
        self.dropped, self.truncated, self.without_sequences = 0, 0, 0
        self.computed_tokens = 0  # on this rank, with padding
        self.work = np.zeros(5)  # see `throughput.work_of`

    def count(self, batches: StepBatches) -> None:
        """Add a global batch."""
        self.steps += 1
        self.tokens += batches.num_source_tokens + batches.num_target_tokens
        self.target_tokens += batches.num_target_tokens
        self.computed_tokens += sum(sum(batch.shape[:2]) for batch in batches.micro_batches)
        self.work += work_of(batches.source_lengths, batches.target_lengths)
        self.dropped += batches.num_overlong + batches.num_too_short
        self.truncated += batches.num_truncated
        self.without_sequences += not batches.num_sequences

    def read(self) -> dict[str, float]:
        """Rates (source and target tokens together, and target tokens alone) and counts."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        return {
            "tokens_per_second": self.tokens / seconds,
            "target_tokens_per_second": self.target_tokens / seconds,
            "tokens_per_step": self.tokens / self.steps,
            "seconds_per_step": seconds / self.steps,
            "dropped_sequences": self.dropped,
            "truncated_sequences": self.truncated,
            "steps_without_sequences": self.without_sequences,
        }


class Speed:
    """How well a run uses its devices.

    Args:
        config: of the model.
        dtype: that it computes in.
        device: of this rank.
        sections: the clock of this rank.
    """

    def __init__(self, config: DeltaLMConfig, dtype: torch.dtype, device: torch.device, sections: Sections) -> None:
        self._operations, self._device, self._sections = operations_of(config), device, sections
        self._peak = peak_operations(device, dtype) if distributed.get_rank() == 0 else None  # which writes the log
        sections.follow(device)
        if distributed.get_world_size() > 1:
            time_communication(sections)

    def read(self, rates: Rates) -> dict[str, Any]:
        """The rates, and what they are for the devices. A collective."""
        computed_tokens, peak_bytes = self._of_all_ranks(float(rates.computed_tokens), float(self._peak_bytes()))
        found = rates.read()
        seconds_of_ranks = found["seconds_per_step"] * rates.steps * distributed.get_world_size()
        teraflops = rates.work @ self._operations / seconds_of_ranks / 1e12
        return {
            **found,
            "padding": 1 - rates.tokens / sum(computed_tokens) if any(computed_tokens) else 0.0,
            "teraflops_per_rank": float(teraflops),
            **({"mfu": float(teraflops * 1e12 / self._peak)} if self._peak else {}),
            "peak_memory_bytes": int(max(peak_bytes)),
            "seconds": self._sections.take(),
        }

    def _peak_bytes(self) -> int:
        """The most memory that this rank has had: of its GPU, or of its process."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT

    def _of_all_ranks(self, *values: float) -> list[list[float]]:
        """Each value on all ranks."""
        own = torch.tensor(values, dtype=torch.float64, device=self._device)
        ranks = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.all_gather(ranks, own)
        return torch.stack(ranks, dim=1).tolist()


def loss_record(sums: torch.Tensor, components: Sequence[Component], labels: Sequence[str]) -> dict[str, Any]:
    """Losses per target token in nats, NaN if there are none; a component without tokens is left out.

    Args:
        sums: [3, components] loss, negative log-likelihood and number of tokens.
        components: that they are of.
        labels: what the log calls the components.
    """
    loss, nll, tokens = sums.sum(dim=1).tolist()
    languages = [component.languages[-1] for component in components]
    return {
        "loss": loss / tokens if tokens else math.nan,
        "nll": nll / tokens if tokens else math.nan,
        "nll_of": _nll_by(labels, sums),
        "nll_by_language": _nll_by(languages, sums),
        "nll_by_objective": _nll_by([component.objective.label for component in components], sums),
    }


def _nll_by(names: Sequence[str], sums: torch.Tensor) -> dict[str, float]:
    """Negative log-likelihood per token of all components of a name."""
    nll: dict[str, float] = defaultdict(float)
    tokens: dict[str, float] = defaultdict(float)
    for name, component_nll, component_tokens in zip(names, sums[1].tolist(), sums[2].tolist(), strict=True):
        nll[name] += component_nll
        tokens[name] += component_tokens
    return {name: nll[name] / tokens[name] for name in nll if tokens[name]}

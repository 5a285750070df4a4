"""One update: forward and backward of every micro-batch, then the optimizer. Reads top-down on one screen.

The gradient is that of the sum of token losses divided by the global number of target tokens, on any number of
ranks, micro-batches and ZeRO stage [facts: gradient scale]. Plans are pure functions of the step, so ranks need not
talk first.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import deepspeed
import torch
from torch import Tensor

from deltalm_ds.arrays.counter_rng import hash_counters
from deltalm_ds.data.collation import Batch
from deltalm_ds.kernels.linear_cross_entropy import IGNORED_LABEL
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.training.parameter_groups import set_learning_rate
from deltalm_ds.training.sections import Sections


class LossSums:
    """Sums over target tokens since the last reading, by component, on the device: a step does not wait for them."""

    def __init__(self, num_components: int, device: torch.device) -> None:
        self.sums = torch.zeros(3, num_components, dtype=torch.float64, device=device)  # smoothed loss, nll, tokens

    def add(self, batch: Batch, token_loss: Tensor, token_nll: Tensor) -> None:
        """Count a micro-batch's token losses [T]."""
        if batch.weight:
            component_of_token = batch.component_index[batch.target_input.sequence_of_token]
            values = torch.stack([token_loss, token_nll, batch.labels != IGNORED_LABEL]).double()
            self.sums.index_add_(1, component_of_token, values)

    def read(self) -> Tensor:
        """[3, components] summed over all ranks; starts anew. A collective."""
        total = self.sums.clone()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        self.sums.zero_()
        return total.cpu()


class Computed(NamedTuple):
    """A step that was computed: whether its update was applied, and of each micro-batch the losses and nll [T]."""

    applied: bool
    losses: list[tuple[Batch, Tensor, Tensor]]


def train_step(
    ds_engine: deepspeed.DeepSpeedEngine,
    batches: Sequence[Batch],
    num_target_tokens: int,
    learning_rate: float,
    label_smoothing: float,
    dropout_key: tuple[int, int],
    before_next: Callable[[], None],
    sections: Sections,
    factor: Callable[[Tensor], Tensor],
) -> Computed:
    """One update from this rank's micro-batches; it is not applied if a gradient was inf or nan.

    Args:
        ds_engine: wraps the model.
        batches: padded; as many on every rank.
        num_target_tokens: of the whole global batch.
        learning_rate: of this update; a group of parameters may take a share of it.
        label_smoothing: of the loss.
        dropout_key: (seed, step); with rank and micro-batch it decides every dropout mask.
        before_next: called between micro-batches; may give the step up by raising.
        sections: the clock to tell what is done.
        factor: 1, or NaN to have the update skipped, of the sum of this rank's losses. It stays on the device, where
            the last micro-batch's gradient is multiplied by it.
    """
    world_size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    set_learning_rate(ds_engine.optimizer.param_groups, learning_rate)
    ds_engine.train()
    losses, total = [], torch.zeros((), device=ds_engine.device)
    for index, batch in enumerate(batches):
        if index:
            before_next()
        batch = batch.to(ds_engine.device)
        torch.manual_seed(int(hash_counters(*dropout_key, rank, index)) >> 1)
        with sections.section("forward"):
            loss, token_loss, token_nll = ds_engine(batch.source, batch.target_input, batch.labels, label_smoothing)
        losses.append((batch, token_loss, token_nll))
        total = total + loss.detach() * batch.weight
        loss = loss * (batch.weight * world_size / num_target_tokens)
        if len(losses) == len(batches):
            with sections.section("communication"):  # mostly: ranks wait for each other here
                loss = loss * factor(total).to(loss.dtype)
        with sections.section("backward"):
            ds_engine.backward(loss, scale_wrt_gas=False)
    with sections.section("optimizer"):
        ds_engine.step()
    return Computed(ds_engine.was_step_applied(), losses)


@torch.no_grad()
def evaluate_loss(
    model: deepspeed.DeepSpeedEngine | DeltaLM,
    batches: Sequence[Batch],
    label_smoothing: float,
    sums: LossSums,
    before_next: Callable[[], None],
) -> None:
    """Count the losses of validation micro-batches.

    Args:
        model: a DeepSpeed engine, or the model alone.
        batches: this rank's; every rank has equally many.
        label_smoothing: of the loss; 0 gives the negative log-likelihood.
        sums: where the token losses are counted.
        before_next: called before each micro-batch; it may raise to end there.
    """
    model.eval()
    device = next(model.parameters()).device
    for batch in batches:
        before_next()
        batch = batch.padded().to(device)
        _, token_loss, token_nll = model(batch.source, batch.target_input, batch.labels, label_smoothing)
        sums.add(batch, token_loss, token_nll)
    model.train()

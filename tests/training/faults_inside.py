"""What goes wrong inside a step, by name: patches for `ranks.py`, each made anew for its job."""

import math
import time
from functools import partial

import torch
from torch import distributed

from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.layers import EncoderLayer
from deltalm_ds.training import trainer

SLOW_S = 0.3
POISON = (7, 9)  # a source that begins with one of these tokens, the last included, makes NaN


def fault_inside(name):
    """The arguments of `mock.patch.object` by name: `spike N`, `glitch N`, `leave out N`, `memory N`, `poison`,
    `slow data`, `slow forward`, `slow backward`; or None."""
    kind, _, number = name.rpartition(" ")
    if name == "poison":
        return poison()
    if kind == "slow":
        return slow(number)
    make = {"spike": spike, "glitch": glitch, "leave out": leave_out, "memory": memory}.get(kind)
    return make and make(int(number))


def spike(number):
    """The loss, and so the gradient, of one forward on one rank is far too large."""
    forward, calls = DeltaLM.forward, []

    def spiking(self, *arguments):
        calls.append(1)
        made = forward(self, *arguments)
        is_now = len(calls) == number + 1 and distributed.get_rank() == 0
        return made._replace(loss=made.loss * 50) if is_now else made

    return DeltaLM, "forward", spiking


def glitch(number):
    """One forward on one rank gives what is not a number, and the next one from the same inputs does not."""
    forward, calls = EncoderLayer.forward, []

    def failing(self, x, sequences):
        calls.append(1)
        is_now = len(calls) == 2 * number + 2 and distributed.get_rank() == 1  # there are two layers
        return forward(self, x, sequences) * (math.nan if is_now else 1)

    return EncoderLayer, "forward", failing


def is_poison(tokens):
    return (tokens >= POISON[0]) & (tokens <= POISON[1])


def poison():
    """The second encoder layer makes NaN of some sequences, every time."""
    forward, layers = EncoderLayer.forward, {}

    def failing(self, x, sequences):
        made = forward(self, x, sequences)
        if self is layers.setdefault("first", self):
            return made
        begins = sequences.tokens[
            (sequences.cu_seqlens[:-1] + 1).clamp(max=len(sequences.tokens) - 1)
        ]  # behind the tag
        is_poisoned = is_poison(begins)[sequences.sequence_of_token]
        return torch.where(is_poisoned[:, None], math.nan, made)

    return EncoderLayer, "forward", failing


def leave_out(number):
    """A run that was told from its start to make no update at a step."""
    state = trainer.TrainingState
    return trainer, "TrainingState", lambda: state(left_out=[number])


def memory(number):
    """One forward needs a petabyte."""
    forward, calls = DeltaLM.forward, []

    def hungry(self, *arguments):
        calls.append(1)
        if len(calls) == number + 1:
            torch.empty(1 << 50)
        return forward(self, *arguments)

    return DeltaLM, "forward", hungry


def slow(section):
    """What rank 1 does in a section takes it longer."""
    wait = partial(time.sleep, SLOW_S if distributed.get_rank() == 1 else 0.0)
    if section == "data":
        prefetch = trainer.prefetch

        def slow_prefetch(*arguments):
            for batches in prefetch(*arguments):
                wait()
                yield batches

        return trainer, "prefetch", slow_prefetch
    forward = DeltaLM.forward

    def slow_forward(self, *arguments):
        made = forward(self, *arguments)
        if section == "forward":
            wait()
        else:
            made.loss.register_hook(lambda _: wait())
        return made

    return DeltaLM, "forward", slow_forward

"""Which parameters are trained, how many, and how: freezing, weight decay and learning rates by name and depth."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from deltalm_ds.errors import InputError, nearest
from deltalm_ds.recipe.schema import OptimizerSection

LR_SCALE = "lr_scale"  # of an optimizer's group: its share of the schedule's learning rate
_LAYER = re.compile(r"(encoder\.layers|decoder\.blocks)\.(\d+)\.")


def freeze(model: nn.Module, options: OptimizerSection) -> None:
    """Let the parameters that a recipe freezes take no gradient, and all others one.

    Raises:
        InputError: a pattern names no parameter, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen = _matching(options.freeze, names, "optimizer.freeze")
    if len(frozen) == len(names):
        raise InputError("optimizer.freeze: the patterns name every parameter, so nothing is left to train.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)


@dataclass(frozen=True)
class WeightCounts:
    """How many weights a training has, the embedding's padding rows included.

    Attributes:
        all: of the model.
        trained: of them, those that take a gradient.
        largest: of the largest parameter that takes one.
        largest_frozen: of the largest that takes none; 0 if all take one.
        tensors: parameters that take one.
    """

    all: int
    trained: int
    largest: int
    largest_frozen: int
    tensors: int

    @classmethod
    def of(cls, model: nn.Module) -> "WeightCounts":
        """Of a model on any device, in which what is frozen takes no gradient."""
        trained, frozen = (
            [parameter.numel() for parameter in model.parameters() if parameter.requires_grad == takes_gradient]
            for takes_gradient in (True, False)
        )
        return cls(sum(trained) + sum(frozen), sum(trained), max(trained), max(frozen, default=0), len(trained))


def parameter_groups(model: nn.Module, options: OptimizerSection) -> list[dict[str, Any]]:
    """The trained parameters as groups of an optimizer, each with its weight decay and `LR_SCALE`.

    A layer d below the top of its own stack, the encoder or the decoder, learns at `layer_decay` ** d of the schedule's
    rate [Howard+18 §3.2]; embeddings, the output layer among them, as one more below the deepest layer.

    Raises:
        InputError: a pattern names no parameter.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    undecayed = _matching(options.no_decay, [name for name, _ in model.named_parameters()], "optimizer.no_decay")
    depths = _depths([name for name, _ in model.named_parameters()])
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in trained.items():
        weight_decay = 0.0 if name in undecayed else options.weight_decay
        groups.setdefault((options.layer_decay ** depths[name], weight_decay), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay, LR_SCALE: scale}
        for (scale, weight_decay), parameters in groups.items()
    ]


def set_learning_rate(groups: Iterable[dict[str, Any]], learning_rate: float) -> None:
    """Give each group its share of the schedule's learning rate."""
    for group in groups:
        group["lr"] = learning_rate * group[LR_SCALE]


def _matching(patterns: Sequence[str], names: Sequence[str], key: str) -> set[str]:
    """The names that a pattern matches; InputError if one matches none."""
    found: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            raise InputError(f"{key}: no parameter is named {pattern!r}; the nearest is {nearest(pattern, names)!r}.")
        found |= matched
    return found


def _depths(names: Sequence[str]) -> dict[str, int]:
    """How many layers each parameter is below the top of its stack."""
    layers = {name: (layer[1], int(layer[2])) for name in names if (layer := _LAYER.match(name))}
    tops: dict[str, int] = {}
    for stack, number in layers.values():
        tops[stack] = max(number, tops.get(stack, 0))
    below_all = max(tops.values(), default=-1) + 1
    return {name: tops[layers[name][0]] - layers[name][1] if name in layers else below_all for name in names}

"""The product of a linear layer and its two gradients; on a CPU each by the library that is fastest at it.

Legend: T tokens, K inputs and N outputs of a layer.

A CPU build of PyTorch brings two libraries that multiply matrices, and which one is faster depends on the processor, on
which of the three products it is, and on the shape. A class of products is: product, few or many tokens, shape, dtype.
`use` sets who computes each class, once for a process; what it was not told about is PyTorch's own, as everything is on
a GPU, under torch.compile, and before `use`. No product is timed here: `linear_rates.py` does that, and entry points
ask for it (`deltalm_ds/linear_choice.py`).

Where weights never change, as in a search, nothing is chosen: all products are oneDNN's, whatever their shape, and
those with few tokens up to twice as fast by weights that were brought into its own order once (`FrozenWeights`). The
product of a row is then the same to the last bit whatever rows are beside it, which MKL's is not: some processors
compute few rows in another order, and there they have zeros beside them.

The environment variable DELTALM_LINEAR (torch, onednn) forces one contender for all; `auto`, the default, is what `use`
was given.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from deltalm_ds.errors import InputError
from deltalm_ds.kernels.torch_internals import (
    has_onednn_linear,
    has_onednn_packing,
    is_traced,
    onednn_linear,
    onednn_packed,
)

VARIABLE = "DELTALM_LINEAR"
AUTO = "auto"
PRODUCTS = ("forward", "input_gradient", "weight_gradient")  # of training
FEW_TOKENS = 64  # that weights are packed for, and few tokens measured with
LEAST_ROWS = 6  # of a product, where fewer are computed in another order; they are not faster there
MANY_TOKENS = 256  # more are many
MANY_OUTPUTS = 16384  # more make no difference
SMALL_WEIGHT = 1 << 16  # elements: below, the host's time for a choice is longer than what it saves
CLEARLY_FASTER = 1.03  # than PyTorch's own, to be taken instead of it

# Contender -> a · bᵀ + bias for a [m, k] and b [n, k] of any strides; all three products are one of these.
CONTENDERS: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {"torch": F.linear, "onednn": onednn_linear}

Rates = Mapping[str, Mapping[str, float]]  # class of products -> contender -> GFLOP/s


class Layer(NamedTuple):
    """A linear layer as its products' speed depends on it."""

    outputs: int
    inputs: int
    dtype: torch.dtype


def class_of(product: str, num_tokens: int, layer: Layer) -> str:
    """The name of a class of products, such as `forward few 3072x768 float32` (few tokens, the weight's shape)."""
    amount = "many" if num_tokens > MANY_TOKENS else "few"
    outputs = f"{MANY_OUTPUTS}+" if layer.outputs > MANY_OUTPUTS else layer.outputs
    return f"{product} {amount} {outputs}x{layer.inputs} {str(layer.dtype).removeprefix('torch.')}"


def contenders(dtype: torch.dtype) -> list[str]:
    """Who can compute products in this dtype on this machine's processor, PyTorch's own first."""
    return list(CONTENDERS) if has_onednn_linear(dtype) else ["torch"]


def setting() -> str:
    """What DELTALM_LINEAR says: a contender, or `auto`.

    Raises:
        InputError: it names no contender.
    """
    name = os.environ.get(VARIABLE) or AUTO
    if name != AUTO and name not in CONTENDERS:
        known = ", ".join([*CONTENDERS, AUTO])
        raise InputError(f"{VARIABLE}={name} names no library: choose one of {known}, or unset it.")
    return name


@dataclass
class _InUse:
    """What `use` was given last, and the fastest of each class where that is not PyTorch's own."""

    rates: Rates = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)


_in_use = _InUse()


def use(rates: Rates) -> None:
    """From now on each class is served by its fastest contender; classes that are not named, by PyTorch's own."""
    _in_use.rates = rates
    _in_use.others = {name: best for name, of_class in rates.items() if (best := fastest(of_class)) != "torch"}


def in_use() -> Rates:
    """What `use` was given; empty before."""
    return _in_use.rates


def fastest(rates: Mapping[str, float]) -> str:
    """The contender of a class: PyTorch's own unless another one is clearly faster."""
    best = max(rates, key=lambda name: rates[name])
    return best if rates[best] > CLEARLY_FASTER * rates["torch"] else "torch"


class _Packed(NamedTuple):
    """A weight in oneDNN's own order, and how many rows a product with it has at least."""

    weight: Tensor
    least_rows: int


class FrozenWeights:
    """Weights that never change, where they are, for as long as this is used.

    Args:
        weights: those that many products with few rows are made with: oneDNN gets a copy of each in its own order.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        may_be = [weight for weight in weights if weight.is_cpu and has_onednn_packing(weight.dtype)]
        packed = {_place(weight): onednn_packed(weight, FEW_TOKENS) for weight in may_be if setting() != "torch"}
        of_shape = {copy.shape: copy for copy in packed.values()}
        least_rows = {shape: _least_rows(copy) for shape, copy in of_shape.items()}
        self._packed = {place: _Packed(copy, least_rows[copy.shape]) for place, copy in packed.items()}

    def __len__(self) -> int:
        return len(self._packed)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, in this thread, products that need no gradient are oneDNN's, by the copies where there are.

        Not where DELTALM_LINEAR leaves all products to PyTorch.
        """
        token = _frozen.set(None if setting() == "torch" else self._packed)
        try:
            yield
        finally:
            _frozen.reset(token)


def _least_rows(packed: Tensor) -> int:
    """1 where few rows are computed as they are among others."""
    x = torch.randn(LEAST_ROWS, packed.shape[1], generator=torch.Generator().manual_seed(1)).to(packed.dtype)
    with torch.inference_mode():
        among_others = onednn_linear(x, packed)
        are_alike = all(torch.equal(onednn_linear(x[:n], packed), among_others[:n]) for n in range(1, LEAST_ROWS))
    return 1 if are_alike else LEAST_ROWS


_frozen: ContextVar[Mapping[tuple[int, ...], _Packed] | None] = ContextVar("frozen", default=None)


def _place(weight: Tensor) -> tuple[int, ...]:
    return weight.data_ptr(), *weight.shape


def _frozen_product(x: Tensor, weight: Tensor, bias: Tensor | None, with_gelu: bool = False) -> Tensor | None:
    """The product where weights are frozen; None where they are not."""
    if torch.compiler.is_compiling() or (packed := _frozen.get()) is None:
        return None
    if _cannot_be_chosen(x, weight) or _needs_gradient(x, weight, bias):
        return None
    fastest_form, least_rows = packed.get(_place(weight)) or (weight, LEAST_ROWS)
    num_rows = x.shape[0]
    if num_rows >= least_rows:
        return onednn_linear(x, fastest_form, bias, with_gelu)
    return onednn_linear(F.pad(x, (0, 0, 0, least_rows - num_rows)), fastest_form, bias, with_gelu)[:num_rows]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias, as `torch.nn.functional.linear`. x: [T, K]; weight: [N, K]; bias: [N] -> [T, N]."""
    if (frozen := _frozen_product(x, weight, bias)) is not None:
        return frozen
    if _is_torchs_alone(x, weight):
        return F.linear(x, weight, bias)
    if _needs_gradient(x, weight, bias):
        return _Linear.apply(x, weight, bias)
    return CONTENDERS[_contender("forward", len(x), weight)](x, weight, bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU(x · weightᵀ + bias) in the erf form; in one pass where the library can and no gradient is needed."""
    if (frozen := _frozen_product(x, weight, bias, with_gelu=True)) is not None:
        return frozen
    is_plain = _is_torchs_alone(x, weight) or _needs_gradient(x, weight, bias)
    if is_plain or _contender("forward", len(x), weight) != "onednn":
        return F.gelu(linear(x, weight, bias))
    return onednn_linear(x, weight, bias, with_gelu=True)


def input_gradient(grad: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """grad · weight, the gradient of a layer's input; not differentiable.

    grad: [T, N]; weight: [N, K] -> [T, K], which is `out` where that is given.
    """
    name = "torch" if _is_torchs_alone(grad, weight) else _contender("input_gradient", len(grad), weight)
    if name == "torch":
        return torch.mm(grad, weight, out=out)
    found = CONTENDERS[name](grad, weight.T, None)
    return found if out is None else out.copy_(found)


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """gradᵀ · x, the gradient of `weight` [N, K]; not differentiable. grad: [T, N]; x: [T, K] -> [N, K]."""
    name = "torch" if _is_torchs_alone(grad, weight) else _contender("weight_gradient", len(grad), weight)
    return CONTENDERS[name](grad.T, x.T, None)


class _Linear(torch.autograd.Function):
    """The layer where one of its three products may be another library's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return CONTENDERS[_contender("forward", len(x), weight)](x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            input_gradient(grad, weight) if of_x else None,
            weight_gradient(grad, x, weight) if of_weight else None,
            grad.sum(0) if of_bias else None,
        )


def _cannot_be_chosen(x: Tensor, weight: Tensor) -> bool:
    """Whether it is no CPU's, nobody else computes it, or somebody looks on."""
    if not x.is_cpu or torch.compiler.is_compiling() or is_traced(x):
        return True
    return x.dim() != 2 or not x.shape[0] or x.dtype != weight.dtype or not has_onednn_linear(x.dtype)


def _is_torchs_alone(x: Tensor, weight: Tensor) -> bool:
    """Whether there is nothing to choose."""
    if _cannot_be_chosen(x, weight):
        return True
    forced = setting()
    return forced == "torch" or (forced == AUTO and not _in_use.others)


def _needs_gradient(*inputs: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def _contender(product: str, num_tokens: int, weight: Tensor) -> str:
    forced = setting()
    if forced != AUTO:
        return forced
    layer = Layer(weight.shape[0], weight.shape[1], weight.dtype)
    return _in_use.others.get(class_of(product, num_tokens, layer), "torch")

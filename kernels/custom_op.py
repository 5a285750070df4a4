"""One way to make a differentiable op: as light as an `autograd.Function` when called, a custom op where it is traced.

A call of a `torch.library` custom op costs the host twice to three times what a call of an `autograd.Function` costs,
which at a few thousand tokens is longer than a GPU computes. Compilers and tracers need the custom op, whose schema
PyTorch reads from the annotations of the function.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from deltalm_ds.kernels.torch_internals import is_traced


class CustomOp:
    """`torch.ops.deltalm.<name>`, called in the cheapest way.

    Args:
        name: of the op.
        run: computes it; annotated with the types of the op's schema. Its first argument is a tensor.
        shapes: of the same parameters, returns empty tensors of the results' shapes and dtypes.
        setup_context: saves for the backward, as PyTorch defines it; None for an op without gradients.
        gradients: (ctx, *gradients of the results) -> one for each argument. The gradient of a result that nothing was
            made of is None, not a tensor of zeros.
        mutates: the names of the arguments that it changes in place.
    """

    def __init__(
        self,
        name: str,
        run: Callable[..., Any],
        shapes: Callable[..., Any],
        setup_context: Callable[..., None] | None = None,
        gradients: Callable[..., Any] | None = None,
        mutates: Iterable[str] = (),
    ) -> None:
        self._run = run
        self._traced = torch.library.custom_op(f"deltalm::{name}", run, mutates_args=mutates)
        self._traced.register_fake(shapes)
        self._function: type[torch.autograd.Function] | None = None
        if setup_context is not None and gradients is not None:
            context = _without_zeros(setup_context)
            self._traced.register_autograd(gradients, setup_context=context)
            self._function = _autograd_function(name, run, context, gradients)

    def __call__(self, *inputs: Any) -> Any:
        """The op's results; no argument has a default."""
        if torch.compiler.is_compiling() or is_traced(inputs[0]):
            return self._traced(*inputs)
        with _device_guard(inputs[0]):
            if self._function is not None and torch.is_grad_enabled():
                return self._function.apply(*inputs)
            return self._run(*inputs)


def _autograd_function(
    name: str, run: Callable[..., Any], setup_context: Callable[..., None], gradients: Callable[..., Any]
) -> type[torch.autograd.Function]:
    """In the form whose `forward` has the context: for the other one PyTorch inspects a signature at every call."""

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = run(*inputs)
        setup_context(ctx, inputs, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(gradients)}
    return type(name, (torch.autograd.Function,), methods)


def _without_zeros(setup_context: Callable[..., None]) -> Callable[..., None]:
    """Zeros for results without a gradient would be tensors as large as the results."""

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.set_materialize_grads(False)
        setup_context(ctx, inputs, output)

    return setup


def _device_guard(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, whatever device its arguments are on."""
    if x.device.type == "cuda" and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return nullcontext()

"""Forward and backward of a micro-batch as two CUDA graphs, a pair for each padded shape that comes again.

At a few thousand tokens the host takes longer to start the hundreds of kernels of a micro-batch than a GPU to run them;
a graph starts them at once. What DeepSpeed does with gradients stays outside: a node of autograd hands them over to the
parameters, so that its hooks and its sums over micro-batches are what they always are.

`torch.cuda.make_graphed_callables` does the same for one shape. It is not used because every shape would keep gradients
of its own, a copy of the model each, and because what is not recorded would hand its gradients over in another order:
with ZeRO stage 2 all ranks must reduce them in one, and a shape that one rank has recorded another may not have met.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from deltalm_ds.errors import InputError
from deltalm_ds.kernels.dispatch import choose, compute_capability
from deltalm_ds.kernels.linear_cross_entropy import CrossEntropy
from deltalm_ds.kernels.table import OPS
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.cuda_graph import GraphRecorder
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.empty import empty_model
from deltalm_ds.model.packing import PackedSequences, Places
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.training.deepspeed_config import deepspeed_config, precision

MAX_GRAPHS = 64  # pairs that are kept; each is some megabytes of kernels' arguments
# that look at lengths or labels from the host, which a recording cannot
_WAITING_BACKENDS = {"attention": ("reference",), "linear_cross_entropy": ("torch", "reference")}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def reason_against_graphs(
    recipe: Recipe, config: DeltaLMConfig, device: torch.device, capability: tuple[int, int] | None = None
) -> str | None:
    """Why micro-batches of a recipe are not recorded; None if they are.

    Args:
        recipe: of the training.
        config: of the model.
        device: that it is trained on.
        capability: of a GPU that is planned for; by default that of the device.
    """
    ds_config = deepspeed_config(recipe)
    if not recipe.training.cuda_graphs:
        return "training.cuda_graphs is false"
    if device.type != "cuda":
        return "there is no GPU"
    if recipe.training.r_drop:
        return "R-Drop computes the divergence of two passes outside of them"
    if ds_config["zero_optimization"]["stage"] == 3:
        return "ZeRO stage 3 gathers weights while a micro-batch runs"
    if config.activation_checkpointing:
        return "activation checkpointing keeps states of the random generator on the host"
    capability = capability or compute_capability(device)
    for name, waiting in _WAITING_BACKENDS.items():
        backend = choose(OPS[name], capability, _DTYPES[precision(ds_config)]).backend
        if backend in waiting:
            return f"the {backend} backend of {name} waits for the GPU"
    return None


Kept = TypeVar("Kept")


class Recordings(Generic[Kept]):
    """What is made of a shape when it comes for the second time; of many, those that were used last are kept."""

    def __init__(self) -> None:
        self._seen: set[Any] = set()
        self._kept: OrderedDict[Any, Kept] = OrderedDict()

    def of(self, shape: Any, make: Callable[[], Kept]) -> Kept | None:
        """That of a shape, made now if it is not there; None where the shape comes for the first time."""
        if shape not in self._seen:
            self._seen.add(shape)
            return None
        if shape not in self._kept:
            if len(self._kept) == MAX_GRAPHS:
                self._kept.popitem(last=False)
            self._kept[shape] = make()
        self._kept.move_to_end(shape)
        return self._kept[shape]


class GraphedForward:
    """What takes the place of a model's `forward` in training.

    A shape that comes for the first time is computed as ever, in the second time it is recorded, and from then on
    replayed; of many shapes those that were used last are kept.

    Args:
        model: as DeepSpeed trains it, at ZeRO stage 1 or 2: its weights are changed, but stay where they are.
    """

    def __init__(self, model: DeltaLM) -> None:
        self._model = model
        self._parameters = _trained(model)
        self._addresses = [parameter.data_ptr() for parameter in self._parameters]
        # a model of the same memory: gradients of its weights are not seen by DeepSpeed's hooks
        self._twin = empty_model(model.config)
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self._twin.load_state_dict(weights, assign=True)
        for ours, theirs in zip(self._twin.parameters(), model.parameters(), strict=True):
            ours.requires_grad_(theirs.requires_grad)
        self._recorder = GraphRecorder(self._parameters[0].device)
        self._gradients: list[Tensor] = []
        self._recordings: Recordings[_Recorded] = Recordings()
        self.num_replays = 0

    def __call__(
        self, source: PackedSequences, target_input: PackedSequences, labels: Tensor, label_smoothing: float = 0.0
    ) -> CrossEntropy:
        """See `DeltaLM.forward`.

        Raises:
            InputError: a micro-batch cannot be recorded.
        """
        if not self._model.training:
            return DeltaLM.forward(self._model, source, target_input, labels, label_smoothing)
        assert [parameter.data_ptr() for parameter in self._parameters] == self._addresses, "weights have moved"
        one_pass = self._pass(source, target_input, labels, label_smoothing)
        return CrossEntropy(*_HandOver.apply(one_pass, *self._parameters))

    def _pass(
        self, source: PackedSequences, target_input: PackedSequences, labels: Tensor, label_smoothing: float
    ) -> "_Pass":
        sides = source, target_input
        shape = *((len(side.tokens), side.num_sequences, side.max_seqlen) for side in sides), label_smoothing

        def record() -> _Recorded:
            self._gradients = self._gradients or [torch.empty_like(weight) for weight in self._parameters]
            eager = _Eager(self._twin, _static(source), _static(target_input), labels.clone(), label_smoothing)
            return _Recorded(eager, self._gradients, self._recorder)

        recorded = self._recordings.of(shape, record)
        if recorded is None:
            return _Eager(self._twin, source, target_input, labels, label_smoothing)
        self.num_replays += 1
        recorded.load(source, target_input, labels)
        return recorded


def _trained(model: DeltaLM) -> list[nn.Parameter]:
    """Those that take a gradient, in the order of the model."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class _Pass(Protocol):
    """Forward and backward of a micro-batch, one after the other."""

    def forward(self) -> CrossEntropy: ...

    def backward(self, grad_loss: Tensor) -> Sequence[Tensor]: ...


class _HandOver(torch.autograd.Function):
    """A pass as one node of autograd, which gives each trained parameter its gradient."""

    @staticmethod
    def forward(ctx: Any, one_pass: _Pass, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.one_pass = one_pass
        ctx.set_materialize_grads(False)
        loss, token_loss, token_nll = one_pass.forward()
        ctx.mark_non_differentiable(token_loss, token_nll)
        return loss, token_loss, token_nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        one_pass: _Pass = ctx.one_pass
        del ctx.one_pass  # DeepSpeed's hooks keep a loss, and with it this node, until garbage is collected
        return None, *one_pass.backward(grad_loss)


class _Eager:
    """A pass that is computed as it is called."""

    def __init__(
        self,
        model: DeltaLM,
        source: PackedSequences,
        target_input: PackedSequences,
        labels: Tensor,
        label_smoothing: float,
    ) -> None:
        self._model, self._label_smoothing = model, label_smoothing
        self.source, self.target_input, self.labels = source, target_input, labels

    def forward(self) -> CrossEntropy:
        with torch.enable_grad():
            made = self._model(self.source, self.target_input, self.labels, self._label_smoothing)
        self._loss = made.loss
        return CrossEntropy(*(result.detach() for result in made))

    def backward(self, grad_loss: Tensor) -> Sequence[Tensor]:
        return torch.autograd.grad(self._loss, _trained(self._model), grad_loss)


class _Recorded:
    """A pass that is replayed; its inputs, results and gradients stay where they are.

    Args:
        eager: computes it from inputs that nobody else changes.
        gradients: where they are written; autograd adds or copies them before the next pass, as they are held here.
        recorder: of the device.

    Raises:
        InputError: what the pass does cannot be recorded.
    """

    def __init__(self, eager: _Eager, gradients: list[Tensor], recorder: GraphRecorder) -> None:
        self._eager, self._gradients = eager, gradients
        self._grad_loss = torch.ones((), device=eager.labels.device)
        try:
            recorder.warm_up(self._both)
            self._replay_forward = recorder.record(self._forward)
            self._replay_backward = recorder.record(self._backward)
        except RuntimeError as error:
            cause = error.__context__ or error  # ending a recording that failed fails once more
            raise InputError(
                f"A micro-batch cannot be recorded as a CUDA graph: {cause}. Set training.cuda_graphs=false."
            ) from error

    def load(self, source: PackedSequences, target_input: PackedSequences, labels: Tensor) -> None:
        """Copy the inputs of a micro-batch."""
        _copy(self._eager.source, source)
        _copy(self._eager.target_input, target_input)
        self._eager.labels.copy_(labels)

    def forward(self) -> CrossEntropy:
        self._replay_forward()
        return CrossEntropy(*(result.clone() for result in self._results))

    def backward(self, grad_loss: Tensor) -> Sequence[Tensor]:
        self._grad_loss.copy_(grad_loss)
        self._replay_backward()
        return self._gradients

    def _both(self) -> None:
        self._forward()
        self._backward()

    def _forward(self) -> None:
        self._results = self._eager.forward()

    def _backward(self) -> None:
        torch._foreach_copy_(self._gradients, list(self._eager.backward(self._grad_loss)))


def _static(sequences: PackedSequences) -> PackedSequences:
    """A copy, to be filled with others of the same shape."""
    places = Places(sequences.sequence_of_token.clone(), sequences.positions.clone())
    return PackedSequences(sequences.tokens.clone(), sequences.cu_seqlens.clone(), sequences.max_seqlen, places)


def _copy(static: PackedSequences, sequences: PackedSequences) -> None:
    """Fill what `_static` made; the model asks for positions alone."""
    static.tokens.copy_(sequences.tokens)
    static.cu_seqlens.copy_(sequences.cu_seqlens)
    static.positions.copy_(sequences.positions)

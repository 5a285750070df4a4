"""How ops are called, and the custom ops of the torch backend: `opcheck`, the same numbers compiled and recomputed.

Those of the fused kernels: `check_fused.py`.
"""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from deltalm_ds.kernels import custom_op, grouped_attention
from deltalm_ds.kernels.attention import attention
from deltalm_ds.kernels.custom_op import CustomOp
from deltalm_ds.kernels.feed_forward import feed_forward
from deltalm_ds.kernels.layer_norm import dropout_add_layer_norm
from deltalm_ds.kernels.linear_cross_entropy import linear_cross_entropy

P, EPS = 0.25, 1e-5
LABELS = torch.tensor([3, 0, -100, 5])
CU_Q, CU_K = torch.tensor([0, 3, 4], dtype=torch.int32), torch.tensor([0, 2, 5], dtype=torch.int32)


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


OPS: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "attention": (
        lambda q, k, v: attention(q, k, v, CU_Q, CU_K, False, P),
        [leaf(4, 2, 8), leaf(5, 2, 8, seed=1), leaf(5, 2, 8, seed=2)],
    ),
    "causal attention": (
        lambda q, k, v: attention(q, k, v, CU_Q, CU_Q, True, P),
        [leaf(4, 2, 8, seed=i) for i in range(3)],
    ),
    "layer_norm": (
        lambda x, r, w, b: dropout_add_layer_norm(x, r, w, b, EPS, P),
        [leaf(4, 24), leaf(4, 24, seed=1), leaf(24), leaf(24, seed=1)],
    ),
    "feed_forward": (lambda *x: feed_forward(*x, P), [leaf(4, 8), leaf(20, 8), leaf(20), leaf(8, 20), leaf(8)]),
    "linear_cross_entropy": (
        lambda h, w: linear_cross_entropy(h, w, LABELS, 29, 0.1).loss,
        [leaf(4, 8), leaf(32, 8)],
    ),
}


def value_and_gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(1)
    out = function(*inputs)
    return [out, *torch.autograd.grad(out.square().sum(), inputs)]


@pytest.mark.parametrize("op", OPS)
def test_compiled_and_checkpointed_are_the_same(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTALM_LINEAR", "torch")  # as compiled code always has it
    function, inputs = OPS[op]
    expected = value_and_gradients(function, inputs)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for variant in (compiled, lambda *x: checkpoint(function, *x, use_reentrant=False)):
        for a, b in zip(value_and_gradients(variant, inputs), expected, strict=True):
            assert torch.equal(a, b)


def test_opcheck() -> None:
    q, k, v = leaf(4, 2, 8), leaf(5, 2, 8, seed=1), leaf(5, 2, 8, seed=2)
    seed = torch.tensor([7])
    plain = [x.detach() for x in (q, k, v)]
    torch.library.opcheck(torch.ops.deltalm.grouped_attention.default, (q, k, v, CU_Q, CU_K, False, P, seed))
    torch.library.opcheck(
        torch.ops.deltalm.grouped_attention_backward.default,
        (torch.ones(4, 2, 8), *plain, CU_Q, CU_K, False, P, seed),
    )
    torch.library.opcheck(
        torch.ops.deltalm.linear_cross_entropy.default,
        (leaf(4, 8), leaf(32, 8), LABELS, 29, 0.1, False, True, True),
    )


def test_a_kept_graph_gives_the_same_gradients_again() -> None:
    """Where it is not kept, they are scaled in place."""
    hidden, weight = leaf(4, 8), leaf(32, 8)
    loss = 3 * linear_cross_entropy(hidden, weight, LABELS, 29, 0.1).loss
    first = [x.clone() for x in torch.autograd.grad(loss, (hidden, weight), retain_graph=True)]
    second = torch.autograd.grad(loss, (hidden, weight))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_gradcheck_of_attention_with_dropout(causal: bool, is_compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward make the same mask from the seed, in several groups."""
    monkeypatch.setattr(grouped_attention, "shapes_are_compiled", lambda x: is_compiled)
    monkeypatch.setattr(grouped_attention, "GROUP_SCORES", 64)
    cu, seed = torch.tensor([0, 3, 4, 7, 9]).int(), torch.tensor([5])
    q, k, v = (torch.randn(9, 1, 2, dtype=torch.float64).requires_grad_() for _ in range(3))
    attend = grouped_attention.grouped_attention
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, cu, cu, causal, 0.5, seed), (q, k, v))


def cubed() -> CustomOp:
    """x³, and what its gradient formula was given."""

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        return x**3, x.abs()

    def gradients(ctx, grad, grad_of_second):
        GIVEN.append(grad_of_second)
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad

    return CustomOp(
        "cubed_in_a_test",
        run,
        lambda x: (torch.empty_like(x), torch.empty_like(x)),
        lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
        gradients,
    )


GIVEN: list[Tensor | None] = []
CUBED = cubed()


def test_a_call_is_no_custom_op_and_makes_no_zeros() -> None:
    x = leaf(3)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        (grad,) = torch.autograd.grad(CUBED(x)[0].sum(), x)
    names = {event.key for event in profile.key_averages()}
    assert not any(name.startswith("deltalm::") for name in names)
    assert "aten::zeros" not in names
    assert GIVEN.pop() is None
    torch.testing.assert_close(grad, 3 * x.detach() ** 2)


def test_a_trace_has_the_custom_op() -> None:
    traced = make_fx(lambda x: CUBED(x)[0])(torch.ones(3))
    assert "deltalm.cubed_in_a_test" in traced.code


def test_without_gradients_nothing_is_saved() -> None:
    with torch.no_grad():
        assert CUBED(leaf(3))[0].grad_fn is None


def test_the_device_of_the_tensors_is_made_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with FakeTensorMode():
        here, there = (torch.empty(1, device=f"cuda:{index}") for index in (0, 1))
    assert isinstance(custom_op._device_guard(here), nullcontext)
    guard = custom_op._device_guard(there)
    assert isinstance(guard, torch.cuda.device)
    assert guard.idx == 1

"""The custom ops of the torch backend: `opcheck`, and the same numbers compiled and recomputed.

Those of the fused kernels: `check_fused.py`.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from deltalm_ds.kernels import grouped_attention
from deltalm_ds.kernels.attention import attention
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
def test_compiled_and_checkpointed_are_the_same(op: str) -> None:
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

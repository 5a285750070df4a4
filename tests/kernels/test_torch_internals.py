"""What kernels use of PyTorch that is not public does what they rely on: a change in PyTorch fails here first."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from deltalm_ds.kernels.torch_internals import (
    adds_products_in_float32,
    constant_when_traced,
    flash_attention_backward,
    flash_attention_forward,
    graph_is_kept,
    has_onednn_linear,
    has_onednn_packing,
    is_traced,
    onednn_linear,
    onednn_packed,
    softmax_backward,
)


def test_a_constant_is_marked_as_pytorch_marks_it() -> None:
    ours, theirs = constant_when_traced(lambda: 0), torch.compiler.assume_constant_result(lambda: 0)
    assert vars(ours) == vars(theirs) != {}


class Asking(torch.autograd.Function):
    """Puts down what `graph_is_kept` says in its backward."""

    answers: list[bool]

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        Asking.answers.append(graph_is_kept())
        return grad


def test_a_backward_knows_whether_its_graph_is_kept() -> None:
    Asking.answers = []
    y = Asking.apply(torch.ones(3, requires_grad=True)).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert Asking.answers == [True, False]


def test_a_tracer_is_seen() -> None:
    plain, seen = torch.ones(3), []
    assert not is_traced(plain)
    assert not is_traced(torch.nn.Parameter(plain))
    make_fx(lambda x: seen.append(is_traced(x)) or x + 1)(plain)
    with FakeTensorMode():
        seen.append(is_traced(torch.ones(3)))
    assert seen == [True, True]


def _addmm(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor, sums: torch.dtype, refuses: bool) -> None:
    if refuses:
        raise RuntimeError("self and mat2 must have the same dtype")  # as PyTorch 2.8 and 2.9
    total.copy_((total.double() + a.double() @ b.double()).to(sums))


@pytest.mark.parametrize(
    ("sums", "refuses", "adds"),
    [(torch.float32, False, True), (torch.bfloat16, False, False), (torch.float32, True, False)],
)
def test_a_product_added_in_float32_is_known_by_its_result(
    sums: torch.dtype, refuses: bool, adds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    assert not adds_products_in_float32.__wrapped__(cpu, torch.bfloat16)  # CUDA alone
    monkeypatch.setattr(torch, "addmm", lambda total, a, b, out_dtype, out: _addmm(total, a, b, sums, refuses))
    assert adds_products_in_float32.__wrapped__(cpu, torch.bfloat16) == adds


def test_addmm_takes_the_types_it_is_given() -> None:
    """By its schema: the sum and the type of the result beside the factors."""
    names = [argument.name for argument in torch.ops.aten.addmm.dtype_out._schema.arguments]
    assert names == ["self", "mat1", "mat2", "out_dtype", "beta", "alpha", "out"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA has it alone")
@pytest.mark.parametrize("beta", [0, 1])
def test_a_product_is_added_in_float32(beta: int) -> None:
    device = torch.device("cuda")
    if not adds_products_in_float32(device, torch.float16):
        pytest.skip("this PyTorch, or this GPU, has no such product")
    total = torch.full((40, 24), 0.25 if beta else float("nan"), device=device)
    factors = torch.full((24, 40), 64.0, device=device, dtype=torch.float16), torch.full_like(total[:24, :24], 64.0)
    torch.addmm(total, factors[0].T, factors[1].half(), beta=beta, out_dtype=torch.float32, out=total)
    assert (total == 24 * 4096 + 0.25 * beta).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_backward_is_the_derivative(dtype: torch.dtype) -> None:
    scores, grad = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = scores.softmax(-1)
    expected = p * (grad - (grad * p).sum(-1, keepdim=True))
    found = softmax_backward(grad.to(dtype), p.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_the_efficient_kernel_takes_what_it_is_given() -> None:
    """By its schema, as no GPU is needed for it: names and order of the arguments, and the result that is used."""
    schema = torch.ops.aten._efficient_attention_forward.default._schema
    positional = [argument.name for argument in schema.arguments if not argument.kwarg_only]
    sequences = ["cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"]
    assert positional == [
        "query",
        "key",
        "value",
        "bias",
        *sequences,
        "dropout_p",
        "custom_mask_type",
        "compute_log_sumexp",
    ]
    assert schema.returns[0].name == "output"
    required = {
        argument.name for argument in schema.arguments if argument.kwarg_only and not argument.has_default_value()
    }
    assert required == set()


LENGTHS, MASKS = ["cum_seq_q", "cum_seq_k", "max_q", "max_k"], ["rng_state", "unused"]


@pytest.mark.parametrize(
    ("op", "positional", "num_returns"),
    [
        (
            torch.ops.aten._flash_attention_forward,
            ["query", "key", "value", *LENGTHS, "dropout_p", "is_causal", "return_debug_mask"],
            5,
        ),
        (
            torch.ops.aten._flash_attention_backward,
            ["grad_out", "query", "key", "value", "out", "logsumexp", *LENGTHS, "dropout_p", "is_causal", *MASKS],
            3,
        ),
    ],
    ids=["forward", "backward"],
)
def test_flash_attention_takes_what_it_is_given(op: Any, positional: list[str], num_returns: int) -> None:
    schema = op.default._schema
    assert [argument.name for argument in schema.arguments if not argument.kwarg_only] == positional
    assert len(schema.returns) == num_returns
    assert all(argument.has_default_value() for argument in schema.arguments if argument.kwarg_only)


def test_flash_attention_returns_what_its_backward_takes() -> None:
    """By its shapes, as no GPU is needed for them."""
    q, k = (torch.empty(n, 2, 32, dtype=torch.float16, device="meta") for n in (9, 7))
    cu = torch.empty(4, dtype=torch.int32, device="meta")
    out, log_total, masks = flash_attention_forward(q, k, k, cu, cu, 5, 4, False, 0.1)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    assert (log_total.shape, log_total.dtype) == ((2, 9), torch.float32)
    assert (masks.shape, masks.dtype) == ((2,), torch.uint64)
    gradients = flash_attention_backward(out, q, k, k, out, log_total, masks, cu, cu, 5, 4, False, 0.1)
    assert [gradient.shape for gradient in gradients] == [q.shape, k.shape, k.shape]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel is for GPUs")
@pytest.mark.parametrize("causal", [False, True])
def test_the_efficient_kernel_is_attention(causal: bool) -> None:
    from deltalm_ds.kernels import attention, reference
    from deltalm_ds.kernels.attention_inputs import Lengths

    q, k, v = torch.randn(3, 9, 2, 32, device="cuda", dtype=torch.float16)
    cu = torch.tensor([0, 3, 4, 9], dtype=torch.int32, device="cuda")
    found = attention.OP.torch((q, k, v), Lengths(cu, cu), causal, 0.0)
    expected = reference.attention(q.double(), k.double(), v.double(), cu, cu, causal, 0.0, None)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=4e-3)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch is built without oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_onednn_multiplies_what_it_is_given(dtype: torch.dtype) -> None:
    assert has_onednn_linear(torch.float32), (
        "PyTorch has another name or place for it: kernels/linear.py lost a library"
    )
    if not has_onednn_linear(dtype):
        pytest.skip("this processor has no bfloat16")
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(size, dtype=dtype) for size in ((5, 48), (48, 64), (64,)))
    expected = x.double() @ weight.double() + bias.double()
    tolerance = 16 * torch.finfo(dtype).eps * 8  # of sums of about 8
    torch.testing.assert_close(onednn_linear(x, weight.T, bias).double(), expected, rtol=0, atol=tolerance)
    gelu = torch.nn.functional.gelu(expected)
    torch.testing.assert_close(onednn_linear(x, weight.T, bias, with_gelu=True).double(), gelu, rtol=0, atol=tolerance)
    assert not has_onednn_linear(torch.float64)
    assert has_onednn_packing(dtype)
    packed = onednn_packed(weight.T, num_tokens=64)
    torch.testing.assert_close(onednn_linear(x, packed, bias).double(), expected, rtol=0, atol=tolerance)

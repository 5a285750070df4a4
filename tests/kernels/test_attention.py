"""Attention over packed sequences against loops over sequences, heads and queries in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalm_ds.kernels import attention as module
from deltalm_ds.kernels import dispatch, grouped_attention
from deltalm_ds.kernels.attention import attention, cross_attention, decode_attention
from deltalm_ds.kernels.attention_inputs import Lengths

LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=6)


def cu(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def random_inputs(lengths_q, lengths_k, heads=2, head_dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    total_q, total_k = sum(lengths_q), sum(lengths_k)
    q, k, v = (
        torch.randn(n, heads, head_dim, generator=generator, dtype=torch.float64) for n in (total_q, total_k, total_k)
    )
    return q, k, v


def attention_by_loops(q, k, v, lengths_q, lengths_k, causal):
    out = torch.zeros_like(q)
    starts_q, starts_k = cu(lengths_q).tolist(), cu(lengths_k).tolist()
    rows = []
    for b, (num_queries, num_keys) in enumerate(zip(lengths_q, lengths_k, strict=True)):
        for i in range(num_queries):
            seen = min(i + 1, num_keys) if causal else num_keys
            heads = []
            for h in range(q.shape[1]):
                if not seen:
                    heads.append(torch.zeros_like(out[0, 0]))
                    continue
                scores = [q[starts_q[b] + i, h] @ k[starts_k[b] + j, h] / math.sqrt(q.shape[2]) for j in range(seen)]
                weights = torch.stack(scores).exp()
                heads.append((weights / weights.sum()) @ v[starts_k[b] : starts_k[b] + seen, h])
            rows.append(torch.stack(heads))
    return torch.stack(rows) if rows else out


def assert_equal_with_gradients(q, k, v, lengths_q, lengths_k, causal):
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    cu_q = cu(lengths_q)
    found = attention(*inputs, cu_q, cu_q if causal else cu(lengths_k), causal)
    reference_inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    expected = attention_by_loops(*reference_inputs, lengths_q, lengths_k, causal)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    if not expected.requires_grad:
        return
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=expected.dtype)
    for x, reference in zip(inputs, reference_inputs, strict=True):
        (found_grad,) = torch.autograd.grad(found, x, grad, retain_graph=True, materialize_grads=True)
        (expected_grad,) = torch.autograd.grad(expected, reference, grad, retain_graph=True, materialize_grads=True)
        torch.testing.assert_close(found_grad, expected_grad, rtol=1e-11, atol=1e-12)


@pytest.fixture(params=["exact shapes", "rounded shapes"], scope="module", autouse=True)
def shapes(request):
    """Everything twice: also with the shapes that float32 below the highest precision has on a CPU."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "rounded shapes":
            for place in (module, grouped_attention):
                patch.setattr(place, "shapes_are_compiled", lambda x: True)
        yield


@pytest.mark.parametrize(
    "pairs",
    [
        [(3, 40), (5, 2), (7, 7)],
        [(40, 3)],
        [(1, 33)] * 9,
        [(32, 32), (31, 33), (0, 5)],
        [(2, 3)] * 11,
        [(1, 3), (3, 3)],  # one side of equal lengths
        [(3, 1), (3, 3)],
    ],
)
def test_short_sequences_beside_long_ones(pairs):
    lengths_q, lengths_k = map(list, zip(*pairs, strict=True))
    q, k, v = random_inputs(lengths_q, lengths_k, heads=1)
    assert_equal_with_gradients(q, k, v, lengths_q, lengths_k, causal=False)


@settings(max_examples=40)
@given(LENGTHS, st.booleans())
def test_self_attention(lengths, causal):
    q, k, v = random_inputs(lengths, lengths)
    assert_equal_with_gradients(q, k, v, lengths, lengths, causal)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6))
def test_cross_attention_with_empty_sides(pairs):
    lengths_q, lengths_k = map(list, zip(*pairs, strict=True))
    q, k, v = random_inputs(lengths_q, lengths_k)
    assert_equal_with_gradients(q, k, v, lengths_q, lengths_k, causal=False)


@pytest.mark.parametrize("causal", [False, True])
def test_lengths_so_different_that_they_make_groups(causal):
    lengths = [1, 40, 2, 37, 9, 1, 18]
    q, k, v = random_inputs(lengths, lengths, heads=1)
    assert_equal_with_gradients(q, k, v, lengths, lengths, causal)


def test_queries_without_keys_get_zeros():
    q, k, v = random_inputs([3, 2], [0, 4])
    out = attention(q, k, v, cu([3, 2]), cu([0, 4]))
    assert not out[:3].any()
    assert out[3:].any()


def test_no_sequence_sees_another():
    lengths = [4, 7, 2]
    q, k, v = random_inputs(lengths, lengths)
    before = attention(q, k, v, cu(lengths), cu(lengths))
    k[4:11], v[4:11] = 100.0, -100.0
    after = attention(q, k, v, cu(lengths), cu(lengths))
    assert torch.equal(before[:4], after[:4])
    assert torch.equal(before[11:], after[11:])


def test_dropout_keeps_the_mean_and_is_drawn_from_torchs_generator():
    lengths = [5, 3]
    q, k, v = random_inputs(lengths, lengths)
    whole = attention(q, k, v, cu(lengths), cu(lengths))

    def dropped(seed):
        torch.manual_seed(seed)
        return attention(q, k, v, cu(lengths), cu(lengths), dropout_p=0.3)

    assert torch.equal(dropped(1), dropped(1))
    assert not torch.equal(dropped(1), dropped(2))
    mean = torch.stack([dropped(seed) for seed in range(3000)]).mean(0)
    torch.testing.assert_close(mean, whole, rtol=0, atol=0.08)  # four standard errors of the widest value


def test_decode_attention_sees_the_keys_of_its_mask_alone():
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 1, 3, 4, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, 2, 1, 5, 4, generator=generator, dtype=torch.float64)
    lengths = [5, 2]
    mask = torch.tensor([[True] * n + [False] * (5 - n) for n in lengths])[:, None, None, :]
    out = decode_attention(q, k, v, mask)
    for b, length in enumerate(lengths):
        packed = [x[b, :, :n].transpose(0, 1) for x, n in ((q, 3), (k, length), (v, length))]
        expected = attention_by_loops(*packed, [3], [length], causal=False)
        torch.testing.assert_close(out[b].transpose(0, 1), expected, rtol=1e-12, atol=1e-12)


def test_a_lower_float32_precision_takes_another_way_to_the_same_result():
    lengths = [5, 2, 9]
    q, k, v = random_inputs(lengths, lengths)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        for causal in (False, True):
            assert_equal_with_gradients(q, k, v, lengths, lengths, causal)
    finally:
        torch.set_float32_matmul_precision(precision)


@pytest.fixture
def efficient_kernel(monkeypatch):
    """A stand-in for PyTorch's kernel that leaves nan where there are no keys."""
    real, calls = torch.ops.aten._efficient_attention_forward, []

    def stand_in(q, k, v, bias, cu_q, cu_k, longest_q, longest_k, dropout_p, mask_type, **options):
        on_meta = [x.to("meta") for x in (q, k, v)]
        shape = real(*on_meta, bias, cu_q, cu_k, longest_q, longest_k, dropout_p, mask_type, **options)[0].shape
        calls.append((longest_q, longest_k))
        out = attention_by_loops(q[0], k[0], v[0], lengths_of(cu_q), lengths_of(cu_k), mask_type == 1)
        assert out[None].shape == shape
        has_keys = cu_k.diff().repeat_interleave(cu_q.diff()) > 0
        return (torch.where(has_keys[:, None, None], out, math.nan)[None],)

    monkeypatch.setattr(torch.ops.aten, "_efficient_attention_forward", stand_in)
    return calls


def lengths_of(cu_seqlens):
    return cu_seqlens.diff().numpy().tolist()


@pytest.mark.parametrize(
    ("lengths_q", "lengths_k", "causal"), [([3, 1], [3, 1], True), ([2, 3, 1], [4, 0, 2], False), ([4], [4], False)]
)
def test_memory_efficient_attention_is_called_as_pytorch_declares_it(efficient_kernel, lengths_q, lengths_k, causal):
    """The way of GPUs below sm_80."""
    q, k, v = (x.float() for x in random_inputs(lengths_q, lengths_k, head_dim=8))
    lengths = Lengths(cu(lengths_q), cu(lengths_k))
    found = module._efficient_attention(q, k, v, lengths, causal, 0.0)
    torch.testing.assert_close(found, attention_by_loops(q, k, v, lengths_q, lengths_k, causal))
    assert efficient_kernel == [(max(lengths_q), max(lengths_k))]


def gradients_by_formula(grad, q, k, v, starts_q, starts_k, causal):
    """Of q, k and v, without autograd."""
    grad_q, grad_k, grad_v = (torch.zeros_like(x) for x in (q, k, v))
    for b in range(len(starts_q) - 1):
        rows, keys = slice(*starts_q[b : b + 2]), slice(*starts_k[b : b + 2])
        scores = torch.einsum("qhd,khd->hqk", q[rows], k[keys]) / math.sqrt(q.shape[2])
        if causal:
            scores += torch.full(scores.shape[1:], -math.inf, dtype=q.dtype).triu(1)
        p = scores.softmax(2)
        grad_v[keys] = torch.einsum("hqk,qhd->khd", p, grad[rows])
        grad_p = torch.einsum("qhd,khd->hqk", grad[rows], v[keys])
        grad_scores = p * (grad_p - (grad_p * p).sum(2, keepdim=True)) / math.sqrt(q.shape[2])
        grad_q[rows] = torch.einsum("hqk,khd->qhd", grad_scores, k[keys])
        grad_k[keys] = torch.einsum("hqk,qhd->khd", grad_scores, q[rows])
    return grad_q, grad_k, grad_v


@pytest.fixture
def flash_kernels(monkeypatch):
    """FlashAttention-2 is said to serve this machine, with a plain implementation of its two operators for CPUs."""
    calls = []

    def forward(q, k, v, cu_q, cu_k, max_q, max_k, dropout_p, causal, return_debug_mask):
        calls.append((max_q, max_k, dropout_p, causal))
        log_total, masks = q.new_zeros(q.shape[1], len(q), dtype=torch.float32), q.new_zeros(2, dtype=torch.uint64)
        out = attention_by_loops(q, k, v, cu_q.diff().tolist(), cu_k.diff().tolist(), causal)
        return out, log_total, masks, masks.clone(), q.new_empty(0)

    def backward(grad, q, k, v, out, log_total, cu_q, cu_k, max_q, max_k, dropout_p, causal, masks, unused):
        assert log_total.shape == (q.shape[1], len(q))
        assert (masks.dtype, masks.shape) == (torch.uint64, (2,))
        assert (max_q, max_k, dropout_p, causal) == calls[-1]
        return gradients_by_formula(grad, q, k, v, cu_q.tolist(), cu_k.tolist(), causal)

    monkeypatch.setattr(dispatch, "compute_capability", lambda device: (8, 0))
    monkeypatch.setattr(dispatch, "SIXTEEN_BITS", (torch.float64,))
    monkeypatch.setenv(dispatch.VARIABLE, "flash")
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_flash_attention_forward", forward, "CPU")
        library.impl("_flash_attention_backward", backward, "CPU")
        yield calls


FLASH_CASES = [([3, 1], [3, 1], True), ([2, 3, 1], [4, 0, 2], False), ([2, 0], [1, 3], False), ([0], [3], False)]
FLASH_CASES += [([2], [0], False)]


@pytest.mark.parametrize(("lengths_q", "lengths_k", "causal"), FLASH_CASES)
def test_flash_attention_is_called_as_pytorch_declares_it(flash_kernels, lengths_q, lengths_k, causal):
    q, k, v = random_inputs(lengths_q, lengths_k, head_dim=8)
    assert_equal_with_gradients(q, k, v, lengths_q, lengths_k, causal)
    expected = [(max(lengths_q), max(lengths_k), 0.0, causal)] if len(q) and len(k) else []
    assert flash_kernels == expected


def test_flash_attention_is_compiled_with_lengths_that_vary(flash_kernels):
    compiled = torch.compile(
        lambda q, kv, cu_q, cu_k, max_q, max_k: cross_attention(q, kv, cu_q, cu_k, max_q, max_k),
        fullgraph=True,
        backend="aot_eager",
        dynamic=True,
    )
    for lengths_q, lengths_k in [([3, 2], [4, 1]), ([5, 1], [2, 9])]:
        q, k, v = random_inputs(lengths_q, lengths_k, head_dim=8)
        q, kv = q.requires_grad_(), torch.stack([k, v], 1).requires_grad_()
        found = compiled(q, kv, cu(lengths_q), cu(lengths_k), max(lengths_q), max(lengths_k))
        torch.testing.assert_close(found, attention_by_loops(q, *kv.unbind(1), lengths_q, lengths_k, False))
        gradients = torch.autograd.grad(found.square().sum(), (q, kv))
        assert [gradient.shape for gradient in gradients] == [q.shape, kv.shape]


def test_flash_attention_refuses_heads_that_it_has_no_kernels_for(flash_kernels):
    for head_dim in (12, 264):
        q, k, v = random_inputs([2], [2], head_dim=head_dim)
        with pytest.raises(ValueError, match=f"not of {head_dim}"):
            attention(q, k, v, cu([2]), cu([2]))


@pytest.mark.parametrize(
    "kernel", [module._flash, lambda packed, *others: module._efficient_attention(*packed, *others)]
)
def test_with_lengths_that_are_known_the_host_reads_nothing(kernel):
    """On tensors without values, of which nothing can be read."""
    packed = [x.half().to("meta").requires_grad_() for x in random_inputs([2, 3], [4, 1], head_dim=8)]
    cu_q, cu_k = cu([2, 3]).to("meta"), cu([4, 1]).to("meta")
    out = kernel(packed, Lengths(cu_q, cu_k, (3, 4)), False, 0.1)
    assert [x.shape for x in torch.autograd.grad(out, packed, out)] == [x.shape for x in packed]
    with pytest.raises(RuntimeError, match="meta"):
        kernel(packed, Lengths(cu_q, cu_k), False, 0.1)

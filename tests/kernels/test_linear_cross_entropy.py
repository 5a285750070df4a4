"""The fused output projection and loss against torch's cross-entropy on whole logits."""

import pytest
import torch

from deltalm_ds.kernels import linear_cross_entropy as module
from deltalm_ds.kernels import vocabulary_blocks
from deltalm_ds.kernels.linear_cross_entropy import IGNORED_LABEL, linear_cross_entropy

V, ROWS, M = 37, 64, 5  # 27 padding rows


def tensors(num_tokens, dtype=torch.float64):
    generator = torch.Generator().manual_seed(num_tokens)
    hidden = torch.randn(num_tokens, M, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(ROWS, M, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(V, (num_tokens,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), labels


def reference(hidden, weight, labels, label_smoothing):
    """torch smooths with eps/V for every token, fairseq with eps/(V - 1): hence the factor."""
    return torch.nn.functional.cross_entropy(
        hidden @ weight[:V].T, labels, label_smoothing=label_smoothing * V / (V - 1), reduction="none"
    )


@pytest.mark.parametrize("num_tokens", [0, 1, 6, 7, 8, 14, 20])  # chunks of 7: below, at and above their ends
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_and_gradients(num_tokens, label_smoothing, monkeypatch):
    monkeypatch.setattr(module, "CPU_CHUNK_TOKENS", 7)
    hidden, weight, labels = tensors(num_tokens)
    loss, token_loss, token_nll = linear_cross_entropy(hidden, weight, labels, V, label_smoothing)
    expected = reference(hidden, weight, labels, label_smoothing)
    torch.testing.assert_close(token_loss, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(token_nll, reference(hidden, weight, labels, 0.0).detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss, expected.sum(), rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(0.3 * loss, (hidden, weight))
    wanted = torch.autograd.grad(0.3 * expected.sum(), (hidden, weight))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    assert not found[1][V:].any()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_ignored_labels_are_torchs(label_smoothing, monkeypatch):
    monkeypatch.setattr(module, "CPU_CHUNK_TOKENS", 4)
    hidden, weight, labels = tensors(10)
    labels[[0, 5, 8, 9]] = IGNORED_LABEL
    loss, token_loss, token_nll = linear_cross_entropy(hidden, weight, labels, V, label_smoothing)
    expected = reference(hidden, weight, labels, label_smoothing)  # torch's ignore_index is -100
    torch.testing.assert_close(token_loss, expected.detach(), rtol=1e-12, atol=1e-12)
    assert not token_nll[labels == IGNORED_LABEL].any()
    found = torch.autograd.grad(loss, (hidden, weight))
    wanted = torch.autograd.grad(expected.sum(), (hidden, weight))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("num_tokens", [1, 4, 5])  # at most as many as the model has dimensions
@pytest.mark.parametrize("num_rows", [8, 19, 36, 37, 64])  # blocks of the vocabulary: even, uneven, one of one row, one
@pytest.mark.parametrize("needs_hidden", [True, False])
def test_logits_of_few_tokens_lie_in_the_gradient_of_the_weight(num_tokens, num_rows, needs_hidden, monkeypatch):
    monkeypatch.setattr(vocabulary_blocks, "BLOCK_ROWS", num_rows)
    monkeypatch.setattr(vocabulary_blocks, "PART_LOGITS", 2 * num_rows)
    hidden, weight, labels = tensors(num_tokens)
    if num_tokens > 1:
        labels[0], labels[1] = V - 1, IGNORED_LABEL
    loss, token_loss, token_nll = linear_cross_entropy(hidden.requires_grad_(needs_hidden), weight, labels, V, 0.1)
    expected = reference(hidden, weight, labels, 0.1)
    torch.testing.assert_close(token_loss, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(token_nll, reference(hidden, weight, labels, 0.0).detach(), rtol=1e-12, atol=1e-12)
    inputs = (hidden, weight)[not needs_hidden :]
    found, wanted = torch.autograd.grad(loss, inputs), torch.autograd.grad(expected.sum(), inputs)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("num_labelled", [0, 1, 7, 8, 9, 23, 24])
def test_padding_at_the_end_costs_nothing_and_changes_nothing(num_labelled, monkeypatch):
    multiplied = []
    product = vocabulary_blocks.linear
    monkeypatch.setattr(vocabulary_blocks, "linear", lambda x, w: multiplied.append(len(x)) or product(x, w))
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(24, 30, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(ROWS, 30, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(V, (24,), generator=generator)
    labels[num_labelled:] = IGNORED_LABEL
    loss, token_loss, token_nll = linear_cross_entropy(hidden, weight, labels, V, 0.1)
    assert set(multiplied) == {-(-num_labelled // 8) * 8}
    expected = reference(hidden, weight, labels, 0.1)
    torch.testing.assert_close(token_loss, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(token_nll, reference(hidden, weight, labels, 0.0).detach(), rtol=1e-12, atol=1e-12)
    found, wanted = torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(expected.sum(), (hidden, weight))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_tokens_take_no_memory_for_logits(dtype, monkeypatch):
    monkeypatch.setattr(vocabulary_blocks, "BLOCK_ROWS", 1024)
    hidden = torch.randn(64, 64).to(dtype).requires_grad_()
    weight = torch.randn(65_000, 64).to(dtype).requires_grad_()
    labels = torch.randint(64_991, (64,))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        linear_cross_entropy(hidden, weight, labels, 64_991, 0.1).loss.backward()
    assert weight.nbytes <= peak_bytes(profile) < 1.25 * weight.nbytes  # logits in their own place: 2


def test_gradcheck():
    hidden, weight, labels = tensors(4)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, labels, V, 0.1).loss, (hidden, weight))


def test_padding_rows_have_no_part_in_it():
    hidden, weight, labels = tensors(6)
    before = linear_cross_entropy(hidden, weight, labels, V, 0.1)
    with torch.no_grad():
        weight[V:] = 1e6
    after = linear_cross_entropy(hidden, weight, labels, V, 0.1)
    assert torch.equal(before.token_loss, after.token_loss)


@pytest.mark.parametrize("frozen", [0, 1])
def test_only_one_of_the_two_needs_a_gradient(frozen):
    inputs = list(tensors(6)[:2])
    labels = tensors(6)[2]
    expected = torch.autograd.grad(reference(*inputs, labels, 0.1).sum(), inputs)
    inputs[frozen] = inputs[frozen].detach()
    linear_cross_entropy(*inputs, labels, V, 0.1).loss.backward()
    torch.testing.assert_close(inputs[1 - frozen].grad, expected[1 - frozen], rtol=1e-11, atol=1e-12)


def test_nothing_is_kept_without_gradients():
    hidden, weight, labels = tensors(6)
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, labels, V, 0.1).loss
    assert loss.grad_fn is None


def test_sixteen_bits_are_summed_in_float32(monkeypatch):
    """The gradient of the weight of 4,000 tokens in 500 chunks: a sum in bfloat16 would stop growing at 256 terms."""
    monkeypatch.setattr(module, "CPU_CHUNK_TOKENS", 8)
    hidden, weight, labels = torch.ones(4000, M), torch.zeros(ROWS, M), torch.zeros(4000, dtype=torch.int64)
    inputs = [x.bfloat16().requires_grad_() for x in (hidden, weight)]
    loss, token_loss, _ = linear_cross_entropy(*inputs, labels, V)
    assert token_loss.dtype == loss.dtype == torch.float32
    loss.backward()
    assert inputs[1].grad.dtype == torch.bfloat16
    torch.testing.assert_close(inputs[1].grad[0].float(), torch.full((M,), -4000 * (1 - 1 / V)), rtol=0.01, atol=0)


def test_a_product_that_adds_to_float32_is_used_where_there_is_one(monkeypatch):
    """A stand-in for CUDA's, which adds without rounding and without a temporary as large as the weight."""
    calls = []

    def addmm(total, a, b, *, beta, out_dtype, out):
        calls.append(beta)
        assert out is total
        assert (total.dtype, out_dtype, a.dtype) == (torch.float32, torch.float32, torch.bfloat16)
        return out.copy_((beta * total.nan_to_num()).double() + a.double() @ b.double())

    hidden, weight, labels = tensors(20, torch.bfloat16)
    monkeypatch.setattr(module, "CPU_CHUNK_TOKENS", 7)
    expected = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels, V, 0.1).loss, weight)[0]
    monkeypatch.setattr(module, "adds_products_in_float32", lambda device, dtype: True)
    monkeypatch.setattr(torch, "addmm", addmm)
    found = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels, V, 0.1).loss, weight)[0]
    assert calls == [0, 1, 1]
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    ("num_rows", "bytes_each", "num_tokens"),
    [(250_112, 2, 4096), (250_112, 4, 2048), (32_000, 2, 8192), (128_000, 2, 8192), (2**31, 4, 1)],
)
def test_a_chunk_on_a_gpu_is_as_large_as_two_gibibytes_allow(num_rows, bytes_each, num_tokens):
    found = module.chunk_tokens(num_rows, bytes_each, on_cpu=False)
    assert found == num_tokens
    assert found == 1 or found * num_rows < 2**31  # elements, which some kernels number with 32 bits


def test_random_sixteen_bits_are_close_to_float32():
    hidden, weight, labels = tensors(20, torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, labels, V, 0.1).loss
    exact = reference(hidden.float(), weight.float(), labels, 0.1).sum()
    torch.testing.assert_close(loss, exact, rtol=5e-3, atol=0)  # logits are rounded to 8 bits


def test_the_logits_of_all_tokens_never_exist(monkeypatch):
    """All tensors of forward and backward together are smaller than they would be."""
    monkeypatch.setattr(module, "CPU_CHUNK_TOKENS", 10)
    hidden, weight, labels = tensors(200)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        linear_cross_entropy(hidden, weight, labels, V, 0.1).loss.backward()
    assert 10 * V < peak_bytes(profile) / 8 < 200 * V


def peak_bytes(profile):
    held = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        held += event.nbytes() if event.name() == "[memory]" else 0
        peak = max(peak, held)
    return peak

"""The fused kernels themselves; `test_fused.py` runs this in Triton's interpreter.

On a machine with a GPU run it directly, natively and with bfloat16 too: `pytest tests/kernels/check_fused.py`.
"""

import ctypes
import importlib
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
import triton
import triton.language as tl
from cases_embedding import assert_a_frequent_token_keeps_its_gradient
from cases_top_k import TopKCase, assert_top_k_equals_definition, top_k_cases
from guarded_memory import PAGE, Margins, behind_pages
from kernel_cases import Case, assert_equals_definition, cases_of, small_cases
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from deltalm_ds.kernels import dropout_mask, linear_cross_entropy
from deltalm_ds.kernels.dispatch import VARIABLE
from deltalm_ds.kernels.flash_attention import flash_attention
from deltalm_ds.kernels.fused import attention as fused_attention
from deltalm_ds.kernels.fused import linear_cross_entropy as fused_linear_cross_entropy
from deltalm_ds.kernels.fused.attention_kernels import _find_block
from deltalm_ds.kernels.fused.strip_sums import add_strips
from deltalm_ds.kernels.precision import sum_products_in_float32
from deltalm_ds.kernels.table import OPS
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.packing import PackedSequences

DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
# the interpreter computes bfloat16 wrongly: it adds and multiplies the bit patterns
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]
MARGINS = Margins()
sum_products_in_float32()


def guarded(x: Tensor) -> Tensor:
    """A copy of x that shows what happens beside it: a crash on a CPU, nan and a failure of the test on a GPU."""
    return behind_pages(x) if x.device.type == "cpu" else MARGINS.place(x)


@pytest.fixture(autouse=True)
def nothing_is_written_beside_a_tensor() -> Iterator[None]:
    """That the test guards."""
    yield
    MARGINS.check()


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """New tensors are full of nan (or of a wild number) and guarded: what is not written, or written beyond, shows."""

    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: object, **options: object) -> Tensor:
            x = make(*args, **options)
            return guarded(x.fill_(float("nan") if x.is_floating_point() else 99))

        return call

    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(Tensor, "new_empty", poisoned(Tensor.new_empty))


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every op is served by its Triton kernel."""
    monkeypatch.setenv(VARIABLE, "triton")
    torch.manual_seed(0)
    yield


CASES = [
    pytest.param(case, id=f"{op}-{case}") for op in OPS for dropped in (False, True) for case in cases_of(op, dropped)
]


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_table(case: Case, dtype: torch.dtype) -> None:
    assert_equals_definition(case, dtype, "triton", DEVICE, guarded)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", top_k_cases(), ids=str)
def test_table_of_top_k(case: TopKCase, dtype: torch.dtype) -> None:
    assert_top_k_equals_definition(case, dtype, "triton", DEVICE, guarded)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("blocks", [(16, 16), (32, 16), (16, 32)])
@pytest.mark.parametrize(
    "case", [case for case in cases_of("attention", True) if sum(map(len, case.inputs)) < 200], ids=str
)
def test_attention_in_small_blocks(case: Case, blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same whatever the blocks: short sequences then have many of them."""
    monkeypatch.setattr(fused_attention, "_blocks", lambda q, is_dropped: (fused_attention.Blocks(*blocks, 4),) * 3)
    assert_equals_definition(case, torch.float32, "triton", DEVICE, guarded)


needs_flash = pytest.mark.skipif(
    DEVICE == "cpu" or torch.cuda.get_device_capability() < (8, 0), reason="FlashAttention-2 is for GPUs from sm_80 on"
)


@needs_flash
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", cases_of("attention", False), ids=str)
def test_table_of_flash_attention(case: Case, dtype: torch.dtype) -> None:
    """PyTorch's own kernel, empty sequences and zero-length keys included."""
    assert_equals_definition(case, dtype, "flash", DEVICE)


@needs_flash
def test_flash_attention_drops_the_same_forward_and_backward() -> None:
    """With scores of 0 and values that are unit vectors, output and gradients of values are rows of the mask."""
    num_keys, p = 64, 0.25
    cu = torch.tensor([0, num_keys], dtype=torch.int32, device=DEVICE)
    q, k = torch.zeros(2, num_keys, 2, num_keys, dtype=torch.float16, device=DEVICE)
    v = torch.eye(num_keys, dtype=torch.float16, device=DEVICE)[:, None].repeat(1, 2, 1).requires_grad_()
    out = flash_attention(q, k, v, cu, cu, num_keys, num_keys, False, p)  # [query, head, key]
    (grad_v,) = torch.autograd.grad(out, v, v.detach())  # [key, head, query]
    assert torch.equal(out.permute(2, 1, 0), grad_v)
    assert out.count_nonzero() / out.numel() == pytest.approx(1 - p, abs=0.03)
    assert out.float().sum() / (2 * num_keys) == pytest.approx(1, abs=0.03)


@triton.jit
def find_block_kernel(cu_seqlens_ptr, num_sequences, found_ptr, SIZE: tl.constexpr):
    """found: [grid, 2] int32, sequence and place of each block."""
    block = tl.program_id(0)
    sequence, place = _find_block(cu_seqlens_ptr, num_sequences, block, SIZE)
    tl.store(found_ptr + 2 * block, sequence)
    tl.store(found_ptr + 2 * block + 1, place)


@pytest.mark.parametrize("num_sequences", [1, 530])
def test_every_block_of_every_sequence_is_found_once(num_sequences: int) -> None:
    """Also where there are more sequences than are read at once; some blocks may be behind the end of a sequence."""
    size = 4
    lengths = torch.randint(0, 9, (num_sequences,), generator=torch.Generator().manual_seed(0))
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(DEVICE, torch.int32)
    num_blocks, _ = fused_attention._grid(int(lengths.sum()), cu_seqlens, size, 1)
    found = torch.full((num_blocks, 2), -1, dtype=torch.int32, device=DEVICE)
    find_block_kernel[(num_blocks,)](cu_seqlens, num_sequences, found, SIZE=size)
    used = [(b, place) for b, place in found.tolist() if place * size < lengths[b]]
    assert found.min() >= 0
    assert used == [(b, place) for b in range(num_sequences) for place in range(-(-int(lengths[b]) // size))]


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("case", [case for case in cases_of("attention", True) if "packed" in case.name], ids=str)
def test_gradients_of_packed_tensors_are_not_stacked(case: Case) -> None:
    inputs = [x.float().to(DEVICE).requires_grad_() for x in case.inputs]
    out = case.function(*inputs)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.autograd.grad(out, inputs, torch.ones_like(out))
    called = {event.key for event in profile.key_averages()}
    assert "aten::new_empty" in called
    assert called & {"aten::stack", "aten::cat"} == set()


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(
    "case", [case for case in cases_of("linear_cross_entropy", False) if len(case.inputs[1]) < 100], ids=str
)
def test_loss_in_small_blocks(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of many blocks, whole ones and such with padding."""
    monkeypatch.setattr(fused_linear_cross_entropy, "BLOCK", 16)
    assert_equals_definition(case, torch.float32, "triton", DEVICE, guarded)


@pytest.mark.usefixtures("fused", "poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)  # which the kernel only converts
def test_a_frequent_token_keeps_its_gradient_in_16_bits(dtype: torch.dtype) -> None:
    assert_a_frequent_token_keeps_its_gradient(dtype, lambda x: guarded(x.to(DEVICE)))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case", [case for case in cases_of("linear_cross_entropy", False) if len(case.inputs[0]) > 2], ids=str
)
def test_loss_in_three_chunks(case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one is shorter; the weight's gradient is summed in float32 and rounded once."""
    num_tokens = -(-len(case.inputs[0]) // 3)
    monkeypatch.setattr(linear_cross_entropy, "_chunk_tokens", lambda weight: num_tokens)
    assert_equals_definition(case, dtype, "triton", DEVICE, guarded)


def test_poison_and_guards_keep_values(poisoned_memory: None) -> None:
    assert torch.empty_like(torch.ones(3)).isnan().all()
    assert torch.ones(3).new_empty(2).isnan().all()
    assert guarded(torch.arange(5)).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.skipif(DEVICE != "cpu", reason="guard pages are of the host's memory")
@pytest.mark.parametrize(("element", "crashes"), [(0, False), (-1, True), (PAGE // 4, True)])
def test_what_is_read_outside_crashes(element: int, crashes: bool) -> None:
    child = os.fork()
    if not child:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # without pytest's report of it
        page = guarded(torch.ones(PAGE // 4))
        ctypes.string_at(page.data_ptr() + 4 * element, 4)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]) == crashes


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("op", ["layer_norm", "feed_forward"])
def test_many_rows_in_few_strips(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of the backward that walk over several tiles of rows, one of them over fewer than the others."""
    monkeypatch.setattr(importlib.import_module(f"deltalm_ds.kernels.fused.{op}"), "NUM_STRIPS", 2)
    for case in cases_of(op, True):
        assert_equals_definition(case, torch.float32, "triton", DEVICE, guarded)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("num_strips", [1, 256, 600])
def test_strips_are_added_in_float32(num_strips: int) -> None:
    """Numbers around 1, as many as float16 could not add to their sum."""
    strip_sums = 1 + torch.randn(2, num_strips, 37, generator=torch.Generator().manual_seed(0)) / 1000
    found = add_strips(guarded(strip_sums.to(DEVICE)), torch.float16)
    expected = strip_sums.double().sum(1).to(DEVICE)
    torch.testing.assert_close(found.double(), expected, rtol=2.0**-11, atol=0)  # one rounding


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize(("op", "num_sums"), [("layer_norm", 0), ("feed_forward", 1)])
def test_gradients_of_parameters_are_summed_and_rounded_in_one_launch(op: str, num_sums: int) -> None:
    """Only the bias of the FFN's second product, whose gradient no kernel makes, is PyTorch's sum."""
    case = small_cases()[op]
    inputs = [x.half().to(DEVICE).requires_grad_() for x in case.inputs]
    out = case.function(*inputs)
    grad = torch.ones_like(out)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        out.backward(grad)
    called = Counter(event.name for event in profile.events())
    assert called["aten::new_empty"] > 0
    assert (called["aten::sum"], called["aten::_to_copy"]) == (num_sums, 0)


@triton.jit
def _fill_kernel(x_ptr, start, SIZE: tl.constexpr):
    tl.store(x_ptr + start + tl.arange(0, SIZE), tl.zeros([SIZE], tl.float32))


@pytest.mark.parametrize(("start", "is_found"), [(0, False), (-1, True), (1, True)])
def test_what_a_kernel_writes_outside_is_found(start: int, is_found: bool) -> None:
    margins = Margins()
    x = margins.place(torch.ones(16, device=DEVICE))
    _fill_kernel[(1,)](x, start, SIZE=16)
    assert (x == 0).all() == (not is_found)
    if is_found:
        with pytest.raises(AssertionError, match="4 bytes written"):
            margins.check()
    else:
        margins.check()


COMPILED = {**small_cases(), "alone": next(case for case in cases_of("layer_norm", True) if case.name == "alone")}


def leaf(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE).requires_grad_()


def value_and_gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(1)
    out = function(*inputs)
    return [out, *torch.autograd.grad(out.square().sum(), inputs)]


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("case", COMPILED.values(), ids=COMPILED.keys())
def test_compiled_and_checkpointed_are_the_same(case: Case) -> None:
    function, inputs = case.function, [x.float().to(DEVICE).requires_grad_() for x in case.inputs]
    expected = value_and_gradients(function, inputs)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for variant in (compiled, lambda *x: checkpoint(function, *x, use_reentrant=False)):
        for a, b in zip(value_and_gradients(variant, inputs), expected, strict=True):
            assert torch.equal(a, b)


def custom_ops() -> dict[str, tuple[object, ...]]:
    """Arguments of every custom op."""
    cu = torch.tensor([0, 3, 4], dtype=torch.int32, device=DEVICE)
    seed = torch.tensor([7], device=DEVICE)
    q, kv = leaf(4, 2, 32), leaf(4, 2, 2, 32, seed=1)
    x, residual, weight, bias = leaf(4, 8), leaf(4, 8, seed=1), leaf(8), leaf(8, seed=1)
    weight_in, bias_in, weight_out = leaf(20, 8), leaf(20), leaf(8, 20)
    labels = torch.tensor([3, 0, -100, 5], device=DEVICE)
    statistics = torch.ones(4, device=DEVICE)
    plain = [t.detach() for t in (q, kv, x, residual, weight, weight_in, bias_in, weight_out)]
    pq, pkv, px, pr, pw, pwi, pbi, pwo = plain
    return {
        "dropout": (x, 0.5, seed),
        "dropout_add_layer_norm": (x, residual, weight, bias, 1e-5, 0.5, seed),
        "dropout_add_layer_norm_backward": (px, px, pr, pw, statistics, statistics.clone(), 0.5, seed),
        "feed_forward": (x, weight_in, bias_in, weight_out, bias, 0.5, seed),
        "feed_forward_backward": (px, pr, torch.ones(4, 20, device=DEVICE), pwi, pbi, pwo, 0.5, seed),
        "attention": (leaf(4, 3, 2, 32), None, None, cu, cu, True, 0.5, seed),
        "attention_backward": (pq, pq, pkv, None, pq, torch.ones(2, 4, device=DEVICE), cu, cu, False, 0.5, seed),
        "add_rows_": (torch.ones(6, 8, device=DEVICE), labels.clamp(min=0), px, True),
        "linear_cross_entropy": (x, leaf(32, 8), labels, 29, 0.1, True, True, True),
        "row_top_k": (px, 3, labels[:, None].clamp(min=0), None),
    }


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("name", custom_ops())
def test_opcheck(name: str) -> None:
    for op in OPS:
        importlib.import_module(f"deltalm_ds.kernels.fused.{op}")  # which registers its custom ops
    torch.library.opcheck(getattr(torch.ops.deltalm, name).default, custom_ops()[name])


@pytest.mark.usefixtures("fused")
def test_dropout_masks_are_the_definition() -> None:
    """The rows, columns and heads of every op fall where `dropout_mask` says."""
    seed = torch.tensor([2**62 + 12345], device=DEVICE)
    from deltalm_ds.kernels.fused.dropout import dropout as fused_dropout

    mask = dropout_mask.keep_mask(seed, 0.1, torch.arange(37, device=DEVICE), 101)
    assert torch.equal(fused_dropout(torch.ones(37, 101, device=DEVICE), 0.1, seed), mask * (256 / 230))
    # one query: with scores of 0 and values that are unit vectors, the output is the row of the mask
    num_keys, head_dim = 32, 32
    q, k = torch.zeros(1, 2, head_dim, device=DEVICE), torch.zeros(num_keys, 2, head_dim, device=DEVICE)
    v = torch.eye(num_keys, device=DEVICE)[:, None].expand(-1, 2, -1).contiguous()
    cu_q, cu_k = torch.tensor([0, 0, 1], device=DEVICE).int(), torch.tensor([0, 0, num_keys], device=DEVICE).int()
    out = fused_attention.attention((q, k, v), cu_q, cu_k, False, 0.1, seed)
    for head in range(2):
        row = dropout_mask.keep_mask(seed, 0.1, torch.zeros(1, dtype=torch.int64, device=DEVICE), num_keys, head)[0]
        torch.testing.assert_close(out[0, head], row * (256 / 230) / num_keys)


def small_model(activation_checkpointing: bool) -> DeltaLM:
    torch.manual_seed(4)
    config = DeltaLMConfig(
        vocabulary_size=61, hidden_size=32, ffn_size=48, num_heads=2, num_encoder_layers=1, num_decoder_blocks=1,
        max_positions=16, dropout=0.1, attention_dropout=0.1, activation_dropout=0.1,
        activation_checkpointing=activation_checkpointing,
    )  # fmt: skip
    return DeltaLM(config).to(DEVICE).train()


def losses_of_training(backend: str, monkeypatch: pytest.MonkeyPatch, activation_checkpointing: bool) -> list[float]:
    monkeypatch.setenv(VARIABLE, backend)
    model = small_model(activation_checkpointing)
    generator = torch.Generator().manual_seed(6)
    losses = []
    for step in range(2):
        tokens = torch.randint(4, 61, (18,), generator=generator)
        source = PackedSequences.from_lengths(tokens[:10], [7, 1, 2]).to(DEVICE)
        target = PackedSequences.from_lengths(tokens[10:], [3, 4, 1]).to(DEVICE)
        torch.manual_seed(step)
        loss = model(source, target, tokens[10:].roll(-1).to(DEVICE), 0.1).loss
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.02 * parameter.grad
                parameter.grad = None
        losses.append(loss.item())
    return losses


def test_a_model_trains_as_by_the_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """All ops together, with all three kinds of dropout: seeds are drawn alike, so masks are equal."""
    fused_losses = losses_of_training("triton", monkeypatch, activation_checkpointing=False)
    expected = losses_of_training("reference", monkeypatch, activation_checkpointing=False)
    assert fused_losses == pytest.approx(expected, rel=1e-5)
    assert fused_losses[-1] != pytest.approx(fused_losses[0], rel=1e-3)
    assert losses_of_training("triton", monkeypatch, activation_checkpointing=True) == fused_losses


def test_the_backward_of_the_layers_makes_no_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that nothing was made of has no gradient, not one of zeros as large as itself."""
    monkeypatch.setenv(VARIABLE, "triton")
    model = small_model(activation_checkpointing=False)
    source, target = (PackedSequences.from_lengths(torch.arange(9), [7, 2]).to(DEVICE) for _ in range(2))
    encoder_states = model.encoder.layers[0](leaf(9, 32), source)
    out = model.decoder.blocks[0](leaf(9, 32, seed=1), target, encoder_states, source)
    grad = torch.ones_like(out)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        out.backward(grad)
    called = {event.key for event in profile.key_averages()}
    assert "aten::mm" in called
    assert called & {"aten::zeros", "aten::new_zeros", "aten::zeros_like", "aten::zero_"} == set()

"""The product of a linear layer and its gradients, by every library, against PyTorch's in float64."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from deltalm_ds.errors import InputError
from deltalm_ds.kernels import linear as module
from deltalm_ds.kernels.linear import (
    AUTO,
    CONTENDERS,
    FEW_TOKENS,
    LEAST_ROWS,
    MANY_OUTPUTS,
    MANY_TOKENS,
    PRODUCTS,
    VARIABLE,
    FrozenWeights,
    Layer,
    class_of,
    contenders,
    fastest,
    input_gradient,
    linear,
    linear_gelu,
    use,
    weight_gradient,
)
from deltalm_ds.kernels.torch_internals import has_onednn_packing

# of the largest result: rounding of sums in any order
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 8e-3}
CASES = [(name, dtype) for dtype in TOLERANCE for name in contenders(dtype)]
SHAPES = [(1, 1, 1), (5, 48, 64), (17, 31, 13), (300, 64, 96), (7, 96, 1001)]  # tokens, inputs, outputs


@pytest.fixture(autouse=True)
def nothing_is_chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(VARIABLE, raising=False)
    yield
    use({})


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Against an expectation in float64."""
    atol = TOLERANCE[found.dtype] * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=atol)


def gradients(function: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The result and the gradients of all inputs."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_result_and_gradients(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, has_bias: bool, shape: tuple[int, int, int]
) -> None:
    monkeypatch.setenv(VARIABLE, name)
    torch.manual_seed(0)
    tokens, inputs, outputs = shape
    sizes = [(tokens, inputs), (outputs, inputs), *([(outputs,)] if has_bias else [])]
    given = [torch.randn(size, dtype=dtype) for size in sizes]
    grad = torch.randn(tokens, outputs, dtype=dtype)
    found = gradients(linear, given, grad)
    expected = gradients(F.linear, [x.double() for x in given], grad.double())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert_close(one, other)


def layouts(rows: int, columns: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Matrices of one shape as they may lie in memory."""
    whole = torch.randn(rows, columns + 9, dtype=dtype)
    return {
        "columns of a wider one": whole[:, 3:-6],
        "transposed": torch.randn(columns, rows, dtype=dtype).T,
        "every second row": torch.randn(2 * rows, columns, dtype=dtype)[::2],
        "one row for all": whole[:1, :columns].expand(rows, columns),
        "off alignment": torch.randn(rows * columns + 1, dtype=dtype)[1:].view(rows, columns),
    }


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_every_layout_of_both_operands(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for a in layouts(6, 40, dtype).values():
        for b in layouts(24, 40, dtype).values():
            found = CONTENDERS[name](a, b, None)
            assert found.is_contiguous()
            assert_close(found, F.linear(a.double(), b.double()))


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_the_gradients_by_themselves(monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype) -> None:
    """As the loss has them made, with a weight that is the first rows of a longer one."""
    monkeypatch.setenv(VARIABLE, name)
    torch.manual_seed(0)
    grad, x, weight = (torch.randn(size, dtype=dtype) for size in ((9, 33), (9, 40), (64, 40)))
    assert_close(input_gradient(grad, weight[:33]), grad.double() @ weight[:33].double())
    assert_close(weight_gradient(grad, x, weight[:33]), grad.double().T @ x.double())


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_the_same_bits_every_time(monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype) -> None:
    monkeypatch.setenv(VARIABLE, name)
    torch.manual_seed(0)
    given = [torch.randn(size, dtype=dtype) for size in ((300, 96), (200, 96), (200,))]
    grad = torch.randn(300, 200, dtype=dtype)
    first = gradients(linear, given, grad)
    for _ in range(3):
        again = gradients(linear, given, grad)
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("name", [AUTO, "torch"])
def test_without_a_choice_it_is_exactly_torchs(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(VARIABLE, name)
    torch.manual_seed(0)
    given, grad = [torch.randn(size) for size in ((30, 96), (50, 96), (50,))], torch.randn(30, 50)
    expected = gradients(F.linear, given, grad)
    assert all(torch.equal(*pair) for pair in zip(gradients(linear, given, grad), expected, strict=True))


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_gelu_with_and_without_gradient(monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype) -> None:
    monkeypatch.setenv(VARIABLE, name)
    torch.manual_seed(0)
    given = [torch.randn(size, dtype=dtype) for size in ((9, 48), (64, 48), (64,))]
    grad = torch.randn(9, 64, dtype=dtype)
    expected = gradients(lambda *x: F.gelu(F.linear(*x)), [x.double() for x in given], grad.double())
    found = gradients(linear_gelu, given, grad)
    for one, other in zip(found, expected, strict=True):
        atol = (1 if dtype == torch.float32 else 2) * TOLERANCE[dtype] * max(1.0, other.abs().max().item())
        torch.testing.assert_close(one.double(), other, rtol=0, atol=atol)  # 16 bits are rounded twice
    with torch.no_grad():
        assert_close(linear_gelu(*given), expected[0])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of the left operand in each call of oneDNN."""
    made: list[tuple[int, ...]] = []
    multiply = CONTENDERS["onednn"]
    monkeypatch.setitem(CONTENDERS, "onednn", lambda a, b, bias: made.append(tuple(a.shape)) or multiply(a, b, bias))
    return made


needs_two = pytest.mark.skipif(len(contenders(torch.float32)) == 1, reason="PyTorch is built without oneDNN")


@needs_two
@pytest.mark.parametrize("product", PRODUCTS)
def test_each_class_is_served_by_its_fastest(calls: list[tuple[int, ...]], product: str) -> None:
    """Here one product of few tokens is faster by oneDNN, and nothing else."""
    layer = Layer(48, 32, torch.float32)
    use({class_of(product, 1, layer): {"torch": 100.0, "onednn": 104.0}})
    weight, bias = torch.randn(48, 32, requires_grad=True), torch.randn(48, requires_grad=True)
    for tokens, expected in ((MANY_TOKENS, [product]), (MANY_TOKENS + 1, [])):
        calls.clear()
        linear(torch.randn(tokens, 32, requires_grad=True), weight, bias).sum().backward()
        left = {"forward": (tokens, 32), "input_gradient": (tokens, 48), "weight_gradient": (48, tokens)}
        assert calls == [left[name] for name in expected]


@needs_two
def test_what_needs_no_gradient_is_not_computed(calls: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "onednn")
    weight = torch.randn(48, 32, requires_grad=True)
    linear(torch.randn(5, 32), weight).sum().backward()
    assert calls == [(5, 32), (48, 5)]  # forward and weight


@pytest.mark.parametrize("name", contenders(torch.float32))
def test_a_result_goes_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(VARIABLE, name)
    grad, weight, out = torch.randn(9, 33), torch.randn(33, 40), torch.empty(12, 40)
    assert input_gradient(grad, weight, out=out[3:]).data_ptr() == out[3:].data_ptr()
    assert_close(out[3:], grad.double() @ weight.double())


def test_only_what_is_clearly_faster_is_taken() -> None:
    assert fastest({"torch": 100.0, "onednn": 102.0}) == "torch"
    assert fastest({"torch": 100.0, "onednn": 104.0}) == "onednn"
    assert fastest({"torch": 100.0}) == "torch"


def test_an_output_layer_is_one_class_with_and_without_its_padding_rows() -> None:
    whole, used = (Layer(rows, 64, torch.float32) for rows in (MANY_OUTPUTS + 64, MANY_OUTPUTS + 1))
    assert class_of("forward", 5, whole) == class_of("forward", 5, used)


@needs_two
@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: torch.compile(linear, backend="eager", fullgraph=True)(x, w),
        lambda x, w: linear(x.double(), w.double()),
        lambda x, w: linear(x[:0], w),
        lambda x, w: linear(x[None], w),
        lambda x, w: linear(x.to("meta"), w.to("meta")),
    ],
)
def test_where_nothing_is_chosen(
    calls: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, call: Callable[[Tensor, Tensor], Any]
) -> None:
    """Under torch.compile, in other types, for no tokens, in other shapes, on other devices: torch's own function."""
    monkeypatch.setenv(VARIABLE, "onednn")
    torch.compiler.reset()
    x, weight = torch.randn(5, 32), torch.randn(48, 32, requires_grad=True)
    out = call(x, weight)
    assert out.shape[-1] == 48
    assert out.grad_fn is not None
    assert calls == []


@needs_two
def test_who_looks_on_sees_torchs_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "onednn")
    with FlopCounterMode(display=False) as counter:
        linear(torch.randn(5, 32), torch.randn(48, 32))
    assert counter.get_total_flops() == 2 * 5 * 32 * 48


def test_recomputed_activations_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, contenders(torch.float32)[-1])
    torch.manual_seed(0)
    given, grad = [torch.randn(size) for size in ((30, 96), (50, 96), (50,))], torch.randn(30, 50)
    again = gradients(lambda *x: checkpoint(linear, *x, use_reentrant=False), given, grad)
    assert all(torch.equal(*pair) for pair in zip(gradients(linear, given, grad), again, strict=True))


def test_a_wrong_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "mkl")
    sentence = "DELTALM_LINEAR=mkl names no library: choose one of torch, onednn, auto, or unset it."
    with pytest.raises(InputError, match=sentence):
        linear(torch.randn(5, 32), torch.randn(48, 32))


def test_without_onednn_there_is_nothing_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PyTorch that has it no more computes all the same, also where the variable asks for it."""
    monkeypatch.setattr(module, "has_onednn_linear", lambda dtype: False)
    monkeypatch.setenv(VARIABLE, "onednn")
    x, weight = torch.randn(5, 32), torch.randn(48, 32)
    assert torch.equal(linear(x, weight), F.linear(x, weight))
    assert contenders(torch.float32) == ["torch"]


needs_packing = pytest.mark.skipif(not has_onednn_packing(torch.float32), reason="PyTorch is built without oneDNN")


@pytest.fixture
def frozen_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each product that oneDNN makes."""
    made: list[int] = []
    multiply = module.onednn_linear
    monkeypatch.setattr(
        module, "onednn_linear", lambda x, *rest, **how: made.append(len(x)) or multiply(x, *rest, **how)
    )
    return made


@needs_packing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, LEAST_ROWS, FEW_TOKENS, 700])
@pytest.mark.parametrize("alone", ["alike", "otherwise"])
def test_frozen_weights_give_the_same_products(
    frozen_calls: list[int], monkeypatch: pytest.MonkeyPatch, num_tokens: int, dtype: torch.dtype, alone: str
) -> None:
    """However few rows are computed, which depends on the processor."""
    if not has_onednn_packing(dtype):
        pytest.skip("this processor has no bfloat16")
    least_rows = 1 if alone == "alike" else LEAST_ROWS
    monkeypatch.setattr(module, "_least_rows", lambda _: least_rows)
    x, weight, bias = (torch.randn(size).to(dtype) for size in ((num_tokens, 32), (48, 32), (48,)))
    expected = x.double() @ weight.double().T + bias.double()
    for least, frozen in (least_rows, FrozenWeights([weight])), (LEAST_ROWS, FrozenWeights([])):
        frozen_calls.clear()
        with torch.inference_mode(), frozen.used():
            results = linear(x, weight, bias), linear_gelu(x, weight, bias)
        assert frozen_calls == [max(num_tokens, least)] * 2
        for found, wanted in zip(results, (expected, torch.nn.functional.gelu(expected)), strict=True):
            atol = (1 if dtype == torch.float32 else 2) * TOLERANCE[dtype] * max(1.0, wanted.abs().max().item())
            torch.testing.assert_close(found.double(), wanted, rtol=0, atol=atol)


@needs_packing
@pytest.mark.parametrize("shape", [(48, 32), (768, 768), (3072, 768), (768, 3072)])
def test_a_row_is_the_same_alone_and_among_others(shape: tuple[int, int]) -> None:
    x, weight = torch.randn(FEW_TOKENS, shape[1]), torch.randn(shape)
    with torch.inference_mode(), FrozenWeights([weight]).used():
        among_others = linear(x, weight)
        for num_rows in (*range(1, LEAST_ROWS), 17):
            assert torch.equal(linear(x[:num_rows], weight), among_others[:num_rows])


@needs_packing
@pytest.mark.parametrize(("other", "least"), [(0, 1), (1, LEAST_ROWS), (LEAST_ROWS - 1, LEAST_ROWS)])
def test_few_rows_that_are_computed_otherwise_are_known(
    monkeypatch: pytest.MonkeyPatch, other: int, least: int
) -> None:
    monkeypatch.setattr(module, "onednn_linear", lambda x, w: x.double().sum(1) + 1e-7 * (len(x) == other))
    assert module._least_rows(torch.zeros(4, 32)) == least


@needs_packing
def test_frozen_weights_are_used_where_they_may_be(frozen_calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside alone, in this thread alone, without gradients, and not where somebody looks on or wants another."""
    x, weight = torch.randn(8, 32), torch.randn(48, 32)
    frozen = FrozenWeights([weight])
    frozen_calls.clear()  # it has looked how few rows are computed
    linear(x, weight)
    with frozen.used():
        linear(x.requires_grad_(), weight).sum().backward()
        with FlopCounterMode(display=False):
            linear(x.detach(), weight)
        thread = threading.Thread(target=lambda: linear(x.detach(), weight))
        thread.start()
        thread.join()
        monkeypatch.setenv(VARIABLE, "torch")
        with frozen.used():
            linear(x.detach(), weight)
        assert not FrozenWeights([weight])
        monkeypatch.delenv(VARIABLE)
        assert frozen_calls == []
        linear(x.detach(), weight)
    linear(x.detach(), weight)
    assert frozen_calls == [8]

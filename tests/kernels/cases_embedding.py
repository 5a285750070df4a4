"""Cases of the shared table: the output layer's use of it, and the rows of two lists of tokens."""

from collections.abc import Callable, Iterator

import torch
from kernel_cases import Case, Launch, model_width, normal, parameter
from torch import Tensor

from deltalm_ds.kernels.embedding import shared_embedding


def _uses(table: Tensor, *tokens: Tensor) -> Tensor:
    """All uses side by side: twice the table, and the rows."""
    alias, *rows = shared_embedding(table, *(part.to(table.device) for part in tokens))
    return torch.cat([2 * alias, *rows])


def _case(name: str, table: Tensor, *tokens: Tensor) -> Case:
    return Case(f"{name}-{'+'.join(str(len(part)) for part in tokens)}", lambda x: _uses(x, *tokens), (table,))


def cases(dropped: bool) -> list[Case]:
    """Runs below, at and above a tile's rows, of the first and the last row; widths beside a tile's columns."""
    if dropped:
        return []
    generator = torch.Generator().manual_seed(3)
    cases = []
    for num_rows, width, lengths in [(5, 1, (1,)), (11, 37, (40, 3)), (97, 129, (50, 0)), (3, 256, (70, 31))]:
        tokens = [torch.randint(num_rows, (length,), generator=generator) for length in lengths]
        cases.append(_case(f"random-{num_rows}x{width}", normal(num_rows, width), *tokens))
    for length in (31, 32, 33, 64, 65):
        cases.append(_case("first", normal(3, 5), torch.zeros(length, dtype=torch.int64)))
    cases.append(_case("last", normal(4, 130), torch.full((100,), 3), torch.tensor([0, 3])))
    cases.append(_case("none", normal(4, 3), torch.zeros(0, dtype=torch.int64)))
    return cases


def launches(dtype: torch.dtype, is_wide: bool) -> Iterator[Launch]:
    """Source and target."""
    table = parameter(64, model_width(is_wide), dtype=dtype)
    tokens = torch.tensor([5, 7, 5]), torch.tensor([2])
    yield Launch("", lambda: _uses(table, *tokens), (table,))


def rounded_at_every_addition(start: Tensor, values: Tensor) -> Tensor:
    """A model of ATen's CUDA kernel of index_put_(accumulate=True): each of the values [N, M] is added in turn to a row
    [M] that is of their dtype in between."""
    row = start
    for value in values:
        row = (row.float() + value.float()).to(row.dtype)
    return row


def gradient_of_one_token(values: Tensor, of_output: Tensor, place: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient [M] of a token that comes as often as there are rows in values [N, M].

    place: where inputs are put. of_output: [M], the gradient that the output layer gives to it.
    """
    table = place(torch.zeros(3, values.shape[1], dtype=values.dtype)).requires_grad_()
    alias, rows = shared_embedding(table, place(torch.ones(len(values), dtype=torch.int64)))
    of_table = torch.stack([torch.zeros_like(of_output), of_output, torch.zeros_like(of_output)])
    torch.autograd.backward((alias, rows), (place(of_table), place(values)))
    assert not table.grad[[0, 2]].any()
    return table.grad[1].cpu()


def assert_a_frequent_token_keeps_its_gradient(dtype: torch.dtype, place: Callable[[Tensor], Tensor]) -> None:
    """Where additions that are rounded to 16 bits lose it: sums of 4,096 equal terms, and of 1,600 random ones."""
    ones, zeros = torch.ones(4096, 2, dtype=dtype), torch.zeros(2, dtype=dtype)
    stop = 2 / torch.finfo(dtype).eps  # from there on 1 is half a unit
    assert rounded_at_every_addition(zeros, ones).tolist() == [stop, stop]
    assert gradient_of_one_token(ones, zeros, place).tolist() == [4096, 4096]
    loses, keeps = (0.05, 0.01) if dtype == torch.bfloat16 else (0.004, 0.001)
    values = (normal(1600, 128) + normal(128, seed=1) / 4).to(dtype)
    for start in (torch.zeros(128, dtype=dtype), (30 * normal(128, seed=2)).to(dtype)):
        exact = values.double().sum(0)
        lost, kept = (
            ((found.double() - start.double() - exact).norm() / exact.norm()).item()
            for found in (rounded_at_every_addition(start, values), gradient_of_one_token(values, start, place))
        )
        assert lost >= loses
        assert kept < keeps

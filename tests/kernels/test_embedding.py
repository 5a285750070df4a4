"""The shared table's gradient against three separate uses, whose gradients autograd sums by itself."""

import pytest
import torch
import torch.nn.functional as F
from cases_embedding import assert_a_frequent_token_keeps_its_gradient

from deltalm_ds.kernels.embedding import shared_embedding


def separate(table, *tokens):
    return table, *(F.embedding(part, table) for part in tokens)


def gradient(use, table, tokens, with_output=True):
    table = table.clone().requires_grad_()
    alias, *rows = use(table, *tokens)
    generator = torch.Generator().manual_seed(1)
    loss = sum((part * torch.randn(part.shape, generator=generator).to(part.dtype)).sum() for part in rows)
    if with_output:
        loss = loss + (alias * torch.randn(alias.shape, generator=generator).to(alias.dtype)).sum()
    loss.backward()
    return [part.detach() for part in rows], table.grad


TABLE = torch.randn(11, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("with_output", [True, False])
@pytest.mark.parametrize("lengths", [(7, 9), (1, 1), (40, 3), (0, 4)])
def test_is_the_sum_of_separate_uses(lengths, with_output):
    tokens = [torch.randint(11, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths]
    rows, grad = gradient(shared_embedding, TABLE, tokens, with_output)
    expected_rows, expected_grad = gradient(separate, TABLE, tokens, with_output)
    for ours, theirs in zip(rows, expected_rows, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    torch.testing.assert_close(grad, expected_grad)  # float64's default tolerance: another order of the sum


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_frequent_token_keeps_its_gradient_in_16_bits(dtype):
    assert_a_frequent_token_keeps_its_gradient(dtype, torch.Tensor.clone)


def test_a_frozen_use_is_left_out():
    """Of the rows that nothing was made of, and of the table."""
    tokens = torch.tensor([1, 2, 1]), torch.tensor([0, 1])
    table = TABLE.clone().requires_grad_()
    shared_embedding(table, *tokens)[2].sum().backward()
    assert table.grad.sum(1).tolist() == [5, 5, *[0] * 9]


def test_the_gradient_of_a_sum_is_no_row_of_its_own():
    """It is one number, broadcast, to which nothing can be added in place."""
    table = TABLE.clone().requires_grad_()
    alias, rows = shared_embedding(table, torch.tensor([2, 2]))
    (alias.sum() + rows.sum()).backward()
    assert table.grad[:4, 0].tolist() == [1, 1, 3, 1]


def test_gradcheck():
    tokens = torch.tensor([1, 2, 1]), torch.tensor([0, 1])
    table = TABLE[:3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda weight: shared_embedding(weight, *tokens), (table,))

"""The best continuations of beams: the torch path against the definition, and the definition against plain Python."""

import math

import pytest
import torch
from cases_top_k import TopKCase, assert_top_k_equals_definition, top_k_cases

from deltalm_ds.kernels import top_k
from deltalm_ds.kernels.dispatch import VARIABLE


@pytest.mark.parametrize("num_logits", [1, 2**19])  # rows one by one, and all at once
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", top_k_cases(), ids=str)
def test_torch_equals_the_definition(
    case: TopKCase, dtype: torch.dtype, num_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top_k, "LOGITS_OF_THREAD", num_logits)
    assert_top_k_equals_definition(case, dtype, "torch")


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_an_example_by_hand(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sentences of two beams; a ban (token 1) leaves the rest's probabilities as they are."""
    monkeypatch.setenv(VARIABLE, backend)
    probabilities = [[0.1, 0.4, 0.2, 0.3], [0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1]]
    logits = torch.tensor(probabilities).log() + torch.tensor([[3.0], [-2.0], [0.0], [70.0]])
    of_beams = torch.tensor([[0.5, 0.5], [1.0, 0.25]]).log()
    found = top_k.top_k(logits, of_beams, 4, torch.ones(4, 1, dtype=torch.int64))
    assert found.beams.tolist() == [[1, 0, 0, 1], [0, 0, 0, 1]]
    assert found.tokens.tolist() == [[0, 3, 2, 2], [0, 2, 3, 0]]
    scores = [[0.2, 0.15, 0.1, 0.1], [0.25, 0.25, 0.25, 0.175]]
    torch.testing.assert_close(found.scores, torch.tensor(scores).log(), atol=1e-5, rtol=0)
    token_scores = [[0.4, 0.3, 0.2, 0.2], [0.25, 0.25, 0.25, 0.7]]
    torch.testing.assert_close(found.token_scores, torch.tensor(token_scores).log(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_a_forced_token_may_be_a_banned_one(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, backend)
    logits, banned = torch.tensor([[0.0, math.log(2), 0.0]]), torch.tensor([[1]])
    found = top_k.top_k(logits, torch.zeros(1, 1), 2, banned, only=torch.tensor([1]))
    assert found.tokens[0, 0] == 1
    assert found.scores.tolist() == [[pytest.approx(math.log(0.5)), -math.inf]]


def test_damaged_logits_give_no_possible_continuation() -> None:
    logits = torch.full((1, 300), math.nan)
    assert not (top_k.top_k(logits, torch.zeros(1, 1), 4, torch.tensor([[1]])).scores > -math.inf).any()


def test_the_same_whatever_the_other_rows() -> None:
    logits = torch.randn(6, 3001, generator=torch.Generator().manual_seed(0))
    banned = torch.ones(6, 1, dtype=torch.int64)
    together = top_k.top_k(logits, torch.zeros(3, 2), 4, banned)
    alone = top_k.top_k(logits[2:4], torch.zeros(1, 2), 4, banned[2:4])
    assert all(torch.equal(a[1], b[0]) for a, b in zip(together, alone, strict=True))

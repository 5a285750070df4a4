"""Cases of the best continuations of beams, which have no gradient and one right order."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from kernel_cases import Case, Launch
from torch import Tensor

from deltalm_ds.kernels.dispatch import VARIABLE
from deltalm_ds.kernels.top_k import top_k


def cases(dropped: bool) -> list[Case]:
    """None with gradients: see `top_k_cases`."""
    return []


def launches(dtype: torch.dtype, is_wide: bool) -> Iterator[Launch]:
    """Without and with forced tokens; logits as of a table with padding rows."""
    logits = torch.zeros(3, 250_112, dtype=dtype)[:, :250_001]
    scores, banned = torch.zeros(1, 3), torch.ones(3, 2, dtype=torch.int64)
    for name, only in (("free", None), ("forced", torch.tensor([-1, 5, -1]))):
        yield Launch(name, lambda only=only: top_k(logits, scores, 6, banned, only).scores, ())


@dataclass(frozen=True)
class TopKCase:
    """Arguments of top_k; the logits are float64, of which every type has the same order."""

    name: str
    logits: Tensor  # [N, V]
    beam_scores: Tensor  # [B, K]
    num: int
    banned: Tensor  # [N, any number]
    only: Tensor | None = None

    def __str__(self) -> str:
        return self.name


def top_k_cases() -> list[TopKCase]:
    """Odd, prime and tiny sizes; ties within a block, between blocks and tiles; bans, forced tokens; -inf and -0."""
    no_ban = torch.empty(4, 0, dtype=torch.int64)
    scores = torch.tensor([[0.0, -1.3], [-2.7, -0.4]])
    fresh = torch.tensor([[0.0, -torch.inf], [0.0, -torch.inf]])
    banned = torch.tensor([[1, 1, 2], [1, 2, 3], [1, 4102, 4103], [1, 300, 0]])

    def different(num_columns: int, seed: int = 0) -> Tensor:
        """Logits [4, V] whose order survives 16 bits near the top of a row: steps of 1/8 and then a floor."""
        generator = torch.Generator().manual_seed(seed)
        ranks = torch.stack([torch.randperm(num_columns, generator=generator) for _ in range(4)])
        return (ranks.double() / -8).clamp(min=-40)

    many_ties = torch.randint(-3, 3, (4, 5003), generator=torch.Generator().manual_seed(1)).double()
    minus = torch.full((4, 300), -torch.inf, dtype=torch.float64)
    minus[:, 150] = 0.0
    sparse = torch.full((4, 9000), -torch.inf, dtype=torch.float64)
    sparse[:, 8500:8504] = torch.tensor([0.0, -1, 2, -5], dtype=torch.float64)
    zeros = torch.tensor([-0.0, 0.0] * 200, dtype=torch.float64).expand(4, -1).contiguous()
    return [
        TopKCase("one-tile", different(1031), scores, 4, no_ban),
        TopKCase("whole-tiles", different(8192), scores, 4, no_ban),
        TopKCase("many-tiles", different(9001), scores, 4, banned),
        TopKCase("first-step", different(257), fresh, 4, banned.clamp(max=256)),
        TopKCase("fewer-tokens-than-asked-for", different(5), scores, 12, banned.clamp(max=4)),
        TopKCase("fewer-blocks-than-asked-for", different(300), scores, 20, no_ban),
        TopKCase("greedy", different(301), torch.zeros(4, 1), 2, banned.clamp(max=300)),
        TopKCase("ties", many_ties, scores, 10, banned),
        TopKCase("equal-rows", torch.zeros(4, 4200, dtype=torch.float64), scores, 10, banned),
        TopKCase("signed-zeros", zeros, scores, 10, no_ban),
        TopKCase("extreme", different(700) * 250, scores, 6, no_ban),
        TopKCase("one-possible-token", minus, fresh, 2, no_ban),
        TopKCase("tiles-of-nothing", sparse, scores, 4, no_ban),
        TopKCase("forced", different(4200), scores, 4, banned, torch.tensor([7, -1, 4102, -1])),
        TopKCase("last-step", different(97), scores, 2, banned.clamp(max=96), torch.tensor([2, 2, 2, 2])),
    ]


def assert_top_k_equals_definition(
    case: TopKCase, dtype: torch.dtype, backend: str, device: str = "cpu", place: Any = None
) -> None:
    """The same beams and tokens in the same order, where a continuation is possible; scores as close as in float32."""
    place = place or Tensor.clone
    logits, scores, banned = case.logits.to(dtype), case.beam_scores, case.banned
    only = None if case.only is None else place(case.only.to(device))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "reference")
        expected = top_k(logits.double(), scores.double(), case.num, banned, case.only)
        patch.setenv(VARIABLE, backend)
        before = place(logits.to(device))
        found = top_k(before, place(scores.to(device)), case.num, place(banned.to(device)), only)
    assert torch.equal(before.cpu(), logits)  # the logits are only read
    assert [x.shape for x in found] == [x.shape for x in expected]
    assert (found.scores.dtype, found.token_scores.dtype) == (torch.float32, torch.float32)
    found = type(found)(*(x.cpu() for x in found))
    possible = expected.scores > -torch.inf
    assert torch.equal(found.scores > -torch.inf, possible)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a[possible].double(), b[possible].double(), rtol=1e-6, atol=1e-5)
    for beams, tokens in zip(found.beams.tolist(), found.tokens.tolist(), strict=True):
        pairs = set(zip(beams, tokens, strict=True))
        assert len(pairs) == len(beams)  # impossible ones are different too
        assert all(0 <= beam < scores.shape[1] and 0 <= token < logits.shape[1] for beam, token in pairs)

"""Cases of attention over packed sequences."""

from collections.abc import Iterator

import torch
from kernel_cases import DROPOUT, Case, Launch, normal, parameter

from deltalm_ds.kernels.attention import attention, cross_attention, self_attention


def _case(lengths: list[tuple[int, int]], head_dim: int, causal: bool, p: float, sharpness: float = 1.0) -> Case:
    lengths_q, lengths_k = (list(side) for side in zip(*lengths, strict=True))
    cu_q, cu_k = (torch.tensor([0, *side]).cumsum(0).to(torch.int32) for side in (lengths_q, lengths_k))
    q = normal(sum(lengths_q), 2, head_dim) * sharpness
    k, v = normal(sum(lengths_k), 2, head_dim, seed=1), normal(sum(lengths_k), 2, head_dim, seed=2)
    name = "+".join(f"{a}:{b}" for a, b in lengths)
    return Case(
        f"{name}-d{head_dim}-{'causal' if causal else 'full'}-{p}-x{sharpness:g}",
        lambda q, k, v: attention(q, k, v, cu_q.to(q.device), cu_k.to(q.device), causal, p),
        (q, k, v),
        loosen=sharpness,
        loosen_relative=1 if sharpness == 1 else 10,
        why="scores, and the rounding errors of 16 bits in them, grow with the queries",
    )


def _packed_cases(p: float) -> list[Case]:
    """Self-attention and cross-attention of tensors as the model's projections make them."""
    cu_q, cu_k = torch.tensor([0, 9, 9, 12], dtype=torch.int32), torch.tensor([0, 4, 10, 41], dtype=torch.int32)
    return [
        Case(
            f"packed-self-{p}",
            lambda qkv: self_attention(qkv, cu_q.to(qkv.device), 9, True, p),
            (normal(12, 3, 2, 32),),
        ),
        Case(
            f"packed-cross-{p}",
            lambda q, kv: cross_attention(q, kv, cu_q.to(q.device), cu_k.to(q.device), 9, 31, p),
            (normal(12, 2, 32), normal(41, 2, 2, 32, seed=1)),
        ),
    ]


def cases(dropped: bool) -> list[Case]:
    """Self, causal and cross; sequences without queries or keys; head dims that are padded; sharp scores."""
    p = DROPOUT if dropped else 0.0
    same = [(1, 1), (37, 37), (2, 2)]
    return [
        _case(same, 32, True, p),
        _case(same, 64, False, p),
        _case([(131, 131)], 32, True, p),
        _case([(3, 70), (70, 3), (0, 5), (1, 1), (4, 0)], 64, False, p),
        _case([(5, 7)], 40, False, p),
        _case([(3, 5), (2, 2)], 128, False, p),
        _case([(6, 9)], 32, False, p, sharpness=50.0),
        _case([(3, 0)], 32, False, p),
        *_packed_cases(p),
    ]


def launches(dtype: torch.dtype, is_wide: bool) -> Iterator[Launch]:
    """Causal and full, with dropout and without, of every head dimension."""
    cu = torch.tensor([0, 1] + [4] * 300, dtype=torch.int32)  # as many sequences as a large batch has
    for head_dim in (32, 40, 96, 128) if is_wide else (64,):
        qkv = parameter(4, 3, 2, head_dim, dtype=dtype)
        for causal, p in [(True, 0.1), (False, 0.0)] + ([] if is_wide else [(False, 0.1), (True, 0.0)]):
            yield Launch(
                f"{head_dim} {'causal' if causal else 'full'} {p}",
                lambda qkv=qkv, causal=causal, p=p: self_attention(qkv, cu, 3, causal, p),
                (qkv,),
            )

"""Attention over packed sequences by PyTorch's matrix products, a group of sequences of similar length at a time.

The way of CPUs. Scores exist for one group at a time and stay in the processor's cache; the backward makes them again,
so that nothing quadratic is stored. PyTorch's own kernel needs all sequences padded to the longest, and in 16 bits it
converts every small block to float32 and back (times in benchmarks/RESULTS.md): it serves groups of equally long
sequences where nothing is dropped and no gradient is needed (`attention_by_length`).

Legend: T tokens, B sequences, H heads, D head dim; of a group: N = sequences · H, Lq and Lk lengths.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deltalm_ds.kernels.custom_op import CustomOp
from deltalm_ds.kernels.dropout import keep_mask
from deltalm_ds.kernels.dropout_mask import scale
from deltalm_ds.kernels.torch_internals import softmax_backward

GROUP_SCORES = 1 << 17  # of a group, unless one sequence has more: all that is made of them stays in a core's cache
LENGTH_MULTIPLE = 8  # of lengths where code is compiled for every shape: shapes are then few
SHORT_LENGTH = 32  # up to it, padding costs less than calls for another group


# PyTorch reads a custom op's schema from its annotations, and calls its shape function with the same parameters: they
# stand in forward, backward and both shape functions.
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    causal: bool,
    p: float,
    seed: Tensor | None,
) -> Tensor:
    """softmax(q kᵀ / √D) v within each sequence; see `deltalm_ds.kernels.attention`.

    16-bit scores are rounded to 16 bits before the softmax, which is float32.

    Args:
        q: [Tq, H, D], any floating dtype.
        k: [Tk, H, D].
        v: [Tk, H, D].
        cu_seqlens_q: [B + 1] int32, cumulative lengths from 0.
        cu_seqlens_k: [B + 1] int32.
        causal: query i sees keys 0…i.
        p: rate of dropout on the probabilities.
        seed: [1] int64, of the generator that draws the masks; None where nothing is dropped.

    Returns:
        [Tq, H, D], the dtype of q.
    """
    plan = _plan_of(q, cu_seqlens_q, cu_seqlens_k)
    out = _room(q, [side_q for side_q, _ in plan])
    for group in _groups(plan, q, k, v, causal, p, seed):
        group.side_q.unpad_(out, _product(group.dropped(), group.v, scale(p)))
    return out


def _forward_shapes(q, k, v, cu_seqlens_q, cu_seqlens_k, causal, p, seed):
    return q.new_empty(q.shape)


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    causal: bool,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    plan = _plan_of(q, cu_seqlens_q, cu_seqlens_k)
    grad_q = _room(q, [side_q for side_q, _ in plan])
    grad_k, grad_v = (_room(x, [side_k for _, side_k in plan]) for x in (k, v))
    for group in _groups(plan, q, k, v, causal, p, seed):
        grad_out = group.side_q.pad(grad)
        group.side_k.unpad_(grad_v, _product(group.dropped().transpose(1, 2), grad_out, scale(p)))
        grad_p = _product(grad_out, group.v.transpose(1, 2), scale(p)).to(group.probabilities.dtype)
        if group.kept is not None:
            grad_p *= group.kept
        grad_scores = softmax_backward(grad_p, group.probabilities).to(q.dtype)
        group.side_q.unpad_(grad_q, _product(grad_scores, group.k, 1 / math.sqrt(q.shape[2])))
        group.side_k.unpad_(grad_k, _product(grad_scores.transpose(1, 2), group.q, 1 / math.sqrt(q.shape[2])))
    return grad_q, grad_k, grad_v


def _backward_shapes(grad, q, k, v, cu_seqlens_q, cu_seqlens_k, causal, p, seed):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.causal, ctx.p, seed = inputs
    ctx.save_for_backward(*tensors, seed)


def _gradients(ctx, grad):
    if grad is None:
        return (None,) * 8
    *tensors, seed = ctx.saved_tensors
    return *_BACKWARD(grad, *tensors, ctx.causal, ctx.p, seed), None, None, None, None, None


_BACKWARD = CustomOp("grouped_attention_backward", _backward, _backward_shapes)
grouped_attention = CustomOp("grouped_attention", _forward, _forward_shapes, _setup_context, _gradients)


def attention_by_length(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, causal: bool
) -> Tensor:
    """The same without dropout and gradients, by PyTorch's kernel for each length, where no shape is compiled.

    What a sequence gives does not depend on those beside it, to the last bit. Arguments: see `_forward`.
    """
    plan = _plan_of(q, cu_seqlens_q, cu_seqlens_k)
    out = _room(q, [side_q for side_q, _ in plan])
    for side_q, side_k in plan:
        queries, keys, values = side_q.grid(q), side_k.grid(k), side_k.grid(v)
        side_q.unpad_(out, F.scaled_dot_product_attention(queries, keys, values, is_causal=causal))
    return out


class _Side(NamedTuple):
    """Where the queries or the keys of a group lie: in rows of the batch, and of a grid [num, length], padded.

    packed_rows: a slice where they follow each other and fill the grid, else [tokens of the group] int64.
    """

    num: int
    length: int
    packed_rows: slice | Tensor
    grid_rows: Tensor  # [tokens of the group] int64
    mask: Tensor | None  # [num, 1, 1, length] float32, -inf at padding; None if there is none

    def grid(self, x: Tensor) -> Tensor:
        """[T, H, D] -> [num, H, L, D], zeros as padding; no copy where the rows follow each other."""
        if isinstance(self.packed_rows, slice):
            rows = x[self.packed_rows]
        else:
            grid = x.new_zeros(self.num * self.length, *x.shape[1:])
            rows = grid.index_copy_(0, self.grid_rows, x.index_select(0, self.packed_rows))
        return rows.view(self.num, self.length, *x.shape[1:]).transpose(1, 2)

    def pad(self, x: Tensor) -> Tensor:
        """[T, H, D] -> [N, L, D], zeros as padding."""
        return self.grid(x).reshape(-1, self.length, x.shape[2])

    def unpad_(self, total: Tensor, x: Tensor) -> None:
        """Write x [N, L, D], or [num, H, L, D], to its rows of total [T, H, D]."""
        grid = x.view(self.num, -1, *x.shape[-2:]).transpose(1, 2)  # [num, L, H, D]
        if isinstance(self.packed_rows, slice):
            total[self.packed_rows].view(grid.shape).copy_(grid)
        else:
            rows = grid.reshape(-1, *total.shape[1:]).index_select(0, self.grid_rows)
            total.index_copy_(0, self.packed_rows, rows)


class _Group(NamedTuple):
    """q, k, v: [N, L, D]; probabilities: [N, Lq, Lk], float32 at least; kept: 1 where dropout leaves them."""

    side_q: _Side
    side_k: _Side
    q: Tensor
    k: Tensor
    v: Tensor
    probabilities: Tensor
    kept: Tensor | None

    def dropped(self) -> Tensor:
        """The probabilities after dropout but for its scale, in the dtype of v."""
        dropped = self.probabilities if self.kept is None else self.probabilities * self.kept
        return dropped.to(self.v.dtype)


def _room(x: Tensor, sides: list[_Side]) -> Tensor:
    """A tensor like x for what the sides write; zeros if they leave rows out."""
    num_rows = sum(len(side.grid_rows) for side in sides)
    return x.new_empty(x.shape) if num_rows == len(x) else x.new_zeros(x.shape)


def _groups(
    plan: list[tuple[_Side, _Side]], q: Tensor, k: Tensor, v: Tensor, causal: bool, p: float, seed: Tensor | None
) -> Iterator[_Group]:
    generator = None if seed is None else torch.Generator(q.device).manual_seed(int(seed))
    for side_q, side_k in plan:
        queries, keys, values = side_q.pad(q), side_k.pad(k), side_k.pad(v)
        scores = _product(queries, keys.transpose(1, 2), 1 / math.sqrt(q.shape[2]))
        scores = scores.to(torch.promote_types(q.dtype, torch.float32))  # PyTorch's softmax is slow in 16 bits
        if causal:  # padding is on the right, so no valid query sees it
            scores += _causal_mask(*scores.shape[1:], scores.dtype, scores.device)
        elif side_k.mask is not None:
            scores.view(len(side_k.mask), -1, *scores.shape[1:]).add_(side_k.mask)
        probabilities = scores.softmax(-1)
        kept = None if generator is None else keep_mask(probabilities, p, generator)
        yield _Group(side_q, side_k, queries, keys, values, probabilities, kept)


@functools.lru_cache(maxsize=64)
def _causal_mask(num_queries: int, num_keys: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[Lq, Lk], -inf behind the query's own place."""
    return torch.full((num_queries, num_keys), -torch.inf, dtype=dtype, device=device).triu(1)


def _product(a: Tensor, b: Tensor, factor: float) -> Tensor:
    """a b · factor. a: [N, X, Y]; b: [N, Y, Z]."""
    return a.new_empty(a.shape[0], a.shape[1], b.shape[2]).baddbmm_(a, b, beta=0, alpha=factor)


def shapes_are_compiled(x: Tensor) -> bool:
    """Whether products of such tensors go to oneDNN, which compiles code for every new shape, 0.6 ms each."""
    if x.device.type != "cpu" or x.dtype == torch.float64:
        return False
    return x.dtype != torch.float32 or torch.get_float32_matmul_precision() != "highest"


def _plan_of(q: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor) -> list[tuple[_Side, _Side]]:
    lengths_q, lengths_k = (tuple(cu_seqlens.diff().tolist()) for cu_seqlens in (cu_seqlens_q, cu_seqlens_k))
    return _plan(lengths_q, lengths_k, q.shape[1], shapes_are_compiled(q), q.device)


@functools.lru_cache(maxsize=16)  # all layers ask for the same few, in forward and backward
def _plan(
    lengths_q: tuple[int, ...], lengths_k: tuple[int, ...], num_heads: int, is_compiled: bool, device: torch.device
) -> list[tuple[_Side, _Side]]:
    """Where queries and keys of each group are. Sequences without queries or keys are in none."""
    multiple = LENGTH_MULTIPLE if is_compiled else 1
    max_scores = 4 * GROUP_SCORES if is_compiled else GROUP_SCORES  # a call of oneDNN costs more
    groups = _members_of_groups(lengths_q, lengths_k, max_scores // num_heads, multiple)
    return [(_side(lengths_q, group, multiple, device), _side(lengths_k, group, multiple, device)) for group in groups]


def _members_of_groups(
    lengths_q: tuple[int, ...], lengths_k: tuple[int, ...], max_area: int, multiple: int
) -> list[list[int]]:
    """Sequence numbers in groups of at most `max_area` padded scores a head, if they have more than one.

    With a multiple of 1, the sequences of a group are equally long; otherwise at least half as long as its longest, or
    all short.
    """
    members = [b for b, (q, k) in enumerate(zip(lengths_q, lengths_k, strict=True)) if q and k]
    members.sort(key=lambda b: (lengths_q[b], lengths_k[b]), reverse=True)
    groups: list[list[int]] = []
    longest_q = longest_k = 0
    for b in members:
        q, k = lengths_q[b], max(longest_k, lengths_k[b])
        if multiple == 1:
            is_similar = (q, lengths_k[b]) == (longest_q, longest_k)
        else:
            is_similar = max(longest_q, k) <= SHORT_LENGTH or (2 * q >= longest_q and 2 * lengths_k[b] >= longest_k)
        fits = groups and (len(groups[-1]) + 1) * _round_up(longest_q, multiple) * _round_up(k, multiple) <= max_area
        if fits and is_similar:
            groups[-1].append(b)
            longest_k = k
        else:
            groups.append([b])
            longest_q, longest_k = q, lengths_k[b]
    return groups


def _side(lengths: tuple[int, ...], members: list[int], multiple: int, device: torch.device) -> _Side:
    starts = [0, *itertools.accumulate(lengths)]
    longest = _round_up(max(lengths[b] for b in members), multiple)
    packed_rows: slice | Tensor = torch.cat([torch.arange(starts[b], starts[b + 1]) for b in members]).to(device)
    is_token = torch.arange(longest) < torch.tensor([lengths[b] for b in members])[:, None]  # [num, longest]
    grid_rows = is_token.flatten().nonzero().squeeze(1).to(device)
    if not is_token.all():
        mask = torch.where(is_token, 0.0, -torch.inf)[:, None, None, :].to(device)
        return _Side(len(members), longest, packed_rows, grid_rows, mask)
    if members == list(range(members[0], members[0] + len(members))):
        packed_rows = slice(starts[members[0]], starts[members[-1] + 1])
    return _Side(len(members), longest, packed_rows, grid_rows, None)


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple

"""Attention over packed sequences by PyTorch's matrix products, a group of sequences of similar length at a time.

The way of CPUs. Scores exist for one group at a time and stay in the processor's cache; the backward makes them again,
so that nothing quadratic is stored. PyTorch's own kernel needs all sequences padded to the longest, and in 16 bits it
converts every small block to float32 and back (times in benchmarks/RESULTS.md): it serves groups of equally long
sequences where nothing is dropped and no gradient is needed (`attention_by_length`).

Legend: T tokens, B sequences, H heads, D head dim; of a group: N = sequences · H, Lq and Lk lengths; G all rows of all
groups, padding too.
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


class Similarity(NamedTuple):
    """Which sequences may share a group, their shorter ones padded.

    ratio: the longest is at most so many times as long as each,
    short: or none is longer than this: padding then costs less than calls for another group.
    multiple: of the lengths of a group; where code is compiled for every shape, shapes are then few.
    scores: of a group, times GROUP_SCORES.
    """

    ratio: float
    short: int
    multiple: int
    scores: int


EQUAL = Similarity(1, 0, 1, 1)
SIMILAR = Similarity(1.5, 0, 1, 1)
COMPILED = Similarity(2, 32, 8, 4)  # a call of oneDNN costs more


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
    side_q, side_k = _sides(q, k, cu_seqlens_q, cu_seqlens_k)
    out = side_q.room(q)
    for group in _groups(side_q, side_k, q, k, v, causal, p, seed):
        _product(group.dropped(), group.v, scale(p), group.grid_q.of(out))
    return side_q.unpad(out, q)


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
    side_q, side_k = _sides(q, k, cu_seqlens_q, cu_seqlens_k)
    all_grad, factor = side_q.pad(grad), 1 / math.sqrt(q.shape[2])
    grad_q, grad_k, grad_v = side_q.room(q), side_k.room(k), side_k.room(v)
    for group in _groups(side_q, side_k, q, k, v, causal, p, seed):
        grad_out = group.grid_q.of(all_grad)
        _product(group.dropped().transpose(1, 2), grad_out, scale(p), group.grid_k.of(grad_v))
        grad_p = _product(grad_out, group.v.transpose(1, 2), scale(p)).to(group.probabilities.dtype)
        if group.kept is not None:
            grad_p *= group.kept
        grad_scores = softmax_backward(grad_p, group.probabilities).to(q.dtype)
        _product(grad_scores, group.k, factor, group.grid_q.of(grad_q))
        _product(grad_scores.transpose(1, 2), group.q, factor, group.grid_k.of(grad_k))
    return side_q.unpad(grad_q, q), side_k.unpad(grad_k, k), side_k.unpad(grad_v, v)


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
    side_q, side_k = _sides(q, k, cu_seqlens_q, cu_seqlens_k, EQUAL)
    all_q, all_k, all_v = side_q.pad(q), side_k.pad(k), side_k.pad(v)
    out = side_q.room(q)
    for grid_q, grid_k in zip(side_q.grids, side_k.grids, strict=True):
        group = (grid_q.of(all_q), grid_k.of(all_k), grid_k.of(all_v))
        queries, keys, values = (x.unflatten(0, (-1, q.shape[1])) for x in group)  # [sequences, H, L, D]
        found = F.scaled_dot_product_attention(queries, keys, values, is_causal=causal)
        grid_q.of(out).copy_(found.flatten(0, 1))
    return side_q.unpad(out, q)


class _Grid(NamedTuple):
    """Queries or keys of a group: rows of [G, D] that are [sequences, H, L], and -inf at padding.

    mask: [sequences, 1, 1, L] float32; None without padding.
    """

    length: int
    rows: slice
    mask: Tensor | None

    def of(self, groups: Tensor) -> Tensor:
        """[G, D] -> [N, L, D], the same memory."""
        return groups[self.rows].view(-1, self.length, groups.shape[1])


class _Side(NamedTuple):
    """Where queries or keys are, every head by itself: in the batch, and in all groups, one after the other.

    Both have one row more, of zeros.

    rows: [G] int32, of the batch; its last for padding.
    places: [T · H] int32, in the groups; their last for a token that is in none.
    grids: of the groups.
    even_length: of all sequences, if the groups have them as the batch does: then nothing is looked up.
    """

    rows: Tensor
    places: Tensor
    grids: list[_Grid]
    even_length: int | None

    def pad(self, x: Tensor) -> Tensor:
        """[T, H, D] -> [G, D]."""
        if self.even_length:
            return x.unflatten(0, (-1, self.even_length)).transpose(1, 2).reshape(-1, x.shape[2])
        batch = x.new_empty(len(self.places) + 1, x.shape[2])
        batch[:-1].view(x.shape).copy_(x)
        batch[-1] = 0
        return batch.index_select(0, self.rows)

    def room(self, x: Tensor) -> Tensor:
        """[G + 1, D] for what groups make, in the dtype of x."""
        groups = x.new_empty(len(self.rows) + 1, x.shape[2])
        groups[-1] = 0
        return groups

    def unpad(self, groups: Tensor, x: Tensor) -> Tensor:
        """[G + 1, D] -> [T, H, D], the shape of x."""
        if self.even_length:
            grid = groups[:-1].view(-1, x.shape[1], self.even_length, x.shape[2])
            return grid.transpose(1, 2).reshape(x.shape)
        return groups.index_select(0, self.places).view(x.shape)


class _Group(NamedTuple):
    """q, k, v: [N, L, D]; probabilities: [N, Lq, Lk], float32 at least; kept: 1 where dropout leaves them."""

    grid_q: _Grid
    grid_k: _Grid
    q: Tensor
    k: Tensor
    v: Tensor
    probabilities: Tensor
    kept: Tensor | None

    def dropped(self) -> Tensor:
        """The probabilities after dropout but for its scale, in the dtype of v."""
        dropped = self.probabilities if self.kept is None else self.probabilities * self.kept
        return dropped.to(self.v.dtype)


def _groups(
    side_q: _Side, side_k: _Side, q: Tensor, k: Tensor, v: Tensor, causal: bool, p: float, seed: Tensor | None
) -> Iterator[_Group]:
    generator = None if seed is None else torch.Generator(q.device).manual_seed(int(seed))
    all_q, all_k, all_v = side_q.pad(q), side_k.pad(k), side_k.pad(v)
    for grid_q, grid_k in zip(side_q.grids, side_k.grids, strict=True):
        queries, keys, values = grid_q.of(all_q), grid_k.of(all_k), grid_k.of(all_v)
        scores = _product(queries, keys.transpose(1, 2), 1 / math.sqrt(q.shape[2]))
        scores = scores.to(torch.promote_types(q.dtype, torch.float32))  # PyTorch's softmax is slow in 16 bits
        if causal:  # padding is on the right, so no valid query sees it
            scores += _causal_mask(*scores.shape[1:], scores.dtype, scores.device)
        elif grid_k.mask is not None:
            scores.view(len(grid_k.mask), -1, *scores.shape[1:]).add_(grid_k.mask)
        probabilities = scores.softmax(-1)
        kept = None if generator is None else keep_mask(probabilities, p, generator)
        yield _Group(grid_q, grid_k, queries, keys, values, probabilities, kept)


@functools.lru_cache(maxsize=64)
def _causal_mask(num_queries: int, num_keys: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[Lq, Lk], -inf behind the query's own place."""
    return torch.full((num_queries, num_keys), -torch.inf, dtype=dtype, device=device).triu(1)


def _product(a: Tensor, b: Tensor, factor: float, out: Tensor | None = None) -> Tensor:
    """a b · factor, in `out` if it is given. a: [N, X, Y]; b: [N, Y, Z]."""
    out = a.new_empty(a.shape[0], a.shape[1], b.shape[2]) if out is None else out
    return out.baddbmm_(a, b, beta=0, alpha=factor)


def shapes_are_compiled(x: Tensor) -> bool:
    """Whether products of such tensors go to oneDNN, which compiles code for every new shape, 0.6 ms each."""
    if x.device.type != "cpu" or x.dtype == torch.float64:
        return False
    return x.dtype != torch.float32 or torch.get_float32_matmul_precision() != "highest"


def _sides(
    q: Tensor, k: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, similarity: Similarity | None = None
) -> tuple[_Side, _Side]:
    """Where queries and keys of each group are; by default of groups as the products of such tensors need them."""
    lengths_q, lengths_k = (tuple(cu_seqlens.diff().tolist()) for cu_seqlens in (cu_seqlens_q, cu_seqlens_k))
    similarity = similarity or (COMPILED if shapes_are_compiled(q) else SIMILAR)
    return _plan(lengths_q, lengths_k, (len(q), len(k)), q.shape[1], similarity, q.device)


@functools.lru_cache(maxsize=8)  # all layers ask for the same three, in forward and backward
def _plan(
    lengths_q: tuple[int, ...],
    lengths_k: tuple[int, ...],
    num_tokens: tuple[int, int],
    num_heads: int,
    similarity: Similarity,
    device: torch.device,
) -> tuple[_Side, _Side]:
    groups = _members_of_groups(lengths_q, lengths_k, num_heads, similarity)
    sides = zip((lengths_q, lengths_k), num_tokens, strict=True)
    side_q, side_k = (_side(lengths, groups, num, num_heads, similarity.multiple, device) for lengths, num in sides)
    return side_q, side_k


def _members_of_groups(
    lengths_q: tuple[int, ...], lengths_k: tuple[int, ...], num_heads: int, similarity: Similarity
) -> list[list[int]]:
    """Sequence numbers in groups of similar ones, the longest first. Those without queries or keys are in none."""
    ratio, short, multiple, scores = similarity
    max_area = scores * GROUP_SCORES // num_heads  # padded scores a head, of more than one sequence
    members = [b for b, (q, k) in enumerate(zip(lengths_q, lengths_k, strict=True)) if q and k]
    members.sort(key=lambda b: (lengths_q[b], lengths_k[b]), reverse=True)
    groups: list[list[int]] = []
    longest_q = longest_k = shortest_k = 0
    for b in members:
        q, k = lengths_q[b], max(longest_k, lengths_k[b])
        is_similar = longest_q <= ratio * q and k <= ratio * min(shortest_k, lengths_k[b])
        fits = groups and (len(groups[-1]) + 1) * _round_up(longest_q, multiple) * _round_up(k, multiple) <= max_area
        if fits and (is_similar or max(longest_q, k) <= short):
            groups[-1].append(b)
            longest_k, shortest_k = k, min(shortest_k, lengths_k[b])
        else:
            groups.append([b])
            longest_q, longest_k, shortest_k = q, lengths_k[b], lengths_k[b]
    return groups


def _side(
    lengths: tuple[int, ...],
    groups: list[list[int]],
    num_tokens: int,
    num_heads: int,
    multiple: int,
    device: torch.device,
) -> _Side:
    starts = [0, *itertools.accumulate(lengths)]
    no_row, heads = num_tokens * num_heads, torch.arange(num_heads)[:, None]
    all_rows, grids = [torch.empty(0, dtype=torch.int64)], []
    begin = 0
    for members in groups:
        length = _round_up(max(lengths[b] for b in members), multiple)
        start, own_length = torch.tensor([(starts[b], lengths[b]) for b in members]).T[:, :, None]  # [sequences, 1]
        column = torch.arange(length)
        is_token = column < own_length  # [sequences, L]
        rows = (start + column)[:, None] * num_heads + heads  # [sequences, H, L]
        all_rows.append(rows.where(is_token[:, None], no_row).flatten())
        mask = None if is_token.all() else torch.where(is_token, 0.0, -torch.inf)[:, None, None].to(device)
        grids.append(_Grid(length, slice(begin, begin + rows.numel()), mask))
        begin += rows.numel()
    rows = torch.cat(all_rows)
    places = torch.full((no_row + 1,), begin)
    places[rows] = torch.arange(begin)
    is_even = all(grid.mask is None for grid in grids) and list(itertools.chain(*groups)) == list(range(len(lengths)))
    even_length = lengths[0] if is_even and len(set(lengths)) == 1 and sum(lengths) == num_tokens else None
    return _Side(rows.int().to(device), places[:-1].int().to(device), grids, even_length)


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple

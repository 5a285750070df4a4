"""What attention is given: query, key and value as matrix products make them, and where the sequences lie.

Query, key and value come in one of three forms: (q, k, v), each [T, H, D]; (q, kv) with kv [Tk, 2, H, D]; or (qkv,),
[T, 3, H, D]. A gradient has the form of its tensor. Legend: T tokens, B sequences, H heads, D head dim.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Lengths(NamedTuple):
    """Where the sequences of a batch lie.

    cu_seqlens_q, cu_seqlens_k: [B + 1] int32, cumulative lengths from 0, of queries and of keys. max_seqlens: the
    longest length of each, None where the host does not know them.
    """

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlens: tuple[int, int] | None = None

    def longest(self) -> tuple[int, int]:
        """The longest lengths; waits for the device if the host does not know them."""
        if self.max_seqlens is not None:
            return self.max_seqlens
        lengths = (self.cu_seqlens_q.diff(), self.cu_seqlens_k.diff())
        longest_q, longest_k = torch.stack([x.max() for x in lengths]).tolist()
        return longest_q, longest_k


def unpacked(*packed: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, views [T, H, D] of what is given, in any of their forms."""
    given = [tensor for tensor in packed if tensor is not None]
    q, k, v = [view for tensor in given for view in ((tensor,) if tensor.dim() == 3 else tensor.unbind(1))]
    return q, k, v

"""The randomness of dropout: seeds, rounded rates, and the definition of every mask.

An element falls out if its byte is below `threshold`. The byte of row r, column c, plane h is number c mod 16 of the
16 bytes that Philox4x32-10 [Salmon+11] makes of the counter (c // 16, r, h, 0) under the seed as key: a pure function
of (seed, position), the same in forward, backward and recomputation. One call of Philox for 16 elements costs a fused
kernel less than half of what a call an element would.
"""

import torch
from torch import Tensor

MASK_32 = 0xFFFFFFFF


def draw_seed(p: float, device: torch.device) -> Tensor | None:
    """[1] int64 on `device`, drawn from torch's generator; None where nothing is dropped (and nothing drawn)."""
    return torch.randint(2**63 - 1, (1,), device=device) if threshold(p) else None


def threshold(p: float) -> int:
    """The rate p as a number of 256ths, below 256."""
    return min(round(p * 256), 255)


def scale(p: float) -> float:
    """What kept elements are multiplied by: it follows the rounded rate, so that the mean is kept exactly."""
    return 256 / (256 - threshold(p))


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32. Counters and results are 32-bit words in int64 tensors; seed: int64."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & MASK_32, (seed >> 32) & MASK_32
    for _ in range(10):
        high_0, low_0 = _multiply(c0, 0xD2511F53)
        high_2, low_2 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high_2 ^ c1 ^ k0, low_2, high_0 ^ c3 ^ k1, low_0
        k0, k1 = (k0 + 0x9E3779B9) & MASK_32, (k1 + 0xBB67AE85) & MASK_32
    return c0, c1, c2, c3


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low word of a 32 x 32 bit product, in halves that fit into int64."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    total = low + ((high & 0xFFFF) << 16)
    return ((high >> 16) + (total >> 32)) & MASK_32, total & MASK_32


def keep_mask(seed: Tensor, p: float, rows: Tensor, num_columns: int, plane: int = 0) -> Tensor:
    """True where an element stays.

    Args:
        seed: [1] int64.
        p: rate, rounded to a 256th.
        rows: [R] int64, the numbers of the rows.
        num_columns: columns of each row, from 0.
        plane: the number of the head, 0 where there are none.

    Returns:
        [R, num_columns] bool.
    """
    num_groups = -(-num_columns // 16)
    group = torch.arange(num_groups, device=rows.device).expand(len(rows), num_groups)
    row, zero = rows[:, None].expand_as(group), torch.zeros_like(group)
    words = torch.stack(philox((group, row, zero + plane, zero), seed), dim=-1)  # [R, G, 4]
    number_of_byte = torch.arange(4, device=rows.device)
    random_bytes = (words[..., None] >> (8 * number_of_byte)) & 0xFF  # [R, G, 4, 4]
    return random_bytes.reshape(len(rows), 16 * num_groups)[:, :num_columns] >= threshold(p)

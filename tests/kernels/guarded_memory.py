"""Tensors whose surroundings show what is written or read out of bounds: pages or margins around each."""

import ctypes
import mmap

import torch
from torch import Tensor

PAGE = mmap.PAGESIZE
MARGIN = 1 << 16  # bytes before and behind a tensor: several rows or blocks of any kernel
POISON = 0xFF  # every byte of a margin: nan in every floating type, -1 or 255 in others


def behind_pages(x: Tensor) -> Tensor:
    """A copy of x, on a CPU, that ends where forbidden memory begins; touching the page before or after is a crash."""
    size = x.numel() * x.element_size()
    if not size:
        return x.clone()
    inner = -(-size // PAGE) * PAGE
    buffer = mmap.mmap(-1, inner + 2 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    for page in (address, address + PAGE + inner):
        assert libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0) == 0
    copy = torch.frombuffer(buffer, dtype=x.dtype, count=x.numel(), offset=PAGE + inner - size)
    return copy.view(x.shape).copy_(x.detach())


class Margins:
    """Copies of tensors between margins of poison, on any device: what is read there is nan, what is written stays."""

    def __init__(self) -> None:
        self._margins: list[Tensor] = []

    def place(self, x: Tensor) -> Tensor:
        """A copy of x, as aligned as a tensor of its own."""
        size = x.numel() * x.element_size()
        buffer = torch.full((size + 2 * MARGIN,), POISON, dtype=torch.uint8, device=x.device)
        self._margins += [buffer[:MARGIN], buffer[MARGIN + size :]]
        return buffer[MARGIN : MARGIN + size].view(x.dtype).view(x.shape).copy_(x.detach())

    def check(self) -> None:
        """Assert that all margins are as they were, and forget them."""
        margins, self._margins = self._margins, []
        for number, margin in enumerate(margins):
            places = (margin != POISON).nonzero().flatten()
            side = ("before", "behind")[number % 2]
            assert not len(places), f"tensor {number // 2}: {len(places)} bytes written {side} it, from {places[0]} on"

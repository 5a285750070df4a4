"""Memory allocators: the C library's, told to keep freed memory and to take large pages, and PyTorch's."""

import ctypes
import resource
from pathlib import Path

import psutil

# of PyTorch's allocator on GPUs: the name of today, and that of before, which has precedence (CUDAAllocatorConfig.h)
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
# of glibc's malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
# of Linux
MADV_HUGEPAGE = 14
LARGE_PAGE = 1 << 21  # bytes
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
STRICT = "2"  # what is reserved counts as taken


def keep_freed_memory(in_large_pages: bool = False) -> None:
    """Let this process reuse the memory of freed tensors; does nothing where the C library is not glibc.

    glibc maps every large block anew and unmaps it when freed, so that each tensor of a training step on a CPU costs a
    page fault for every 4 KiB, more than half of the step's time at base size (benchmarks/RESULTS.md). The price is
    memory: what was freed in between is only used again where it fits.

    Args:
        in_large_pages: for a search, which reads its decoder's weights at every step. Training was no faster so.
    """
    libc = ctypes.CDLL(None)
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is not None:
        libc.malloc_trim(0)  # what was freed before stays in pieces of other sizes
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # the largest size there is
        if in_large_pages and not _addresses_are_counted():
            _ask_for_large_pages(libc)


def _addresses_are_counted() -> bool:
    """Whether memory that is reserved and never touched is taken from what this process or others may have."""
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    if any(limit != resource.RLIM_INFINITY for limit in limits):
        return True
    return not OVERCOMMIT.exists() or OVERCOMMIT.read_text().strip() == STRICT


def _ask_for_large_pages(libc: ctypes.CDLL) -> None:
    """Reserve as many addresses for the heap as there is memory, and ask Linux for pages of 2 MiB there.

    Many systems give them to those alone who ask (`madvise` in /sys/kernel/mm/transparent_hugepage/enabled). In pages
    of 4 KiB, products of weights that were not read since the step before wait for the page tables, in a virtual
    machine for its host's as well, and take up to twice as long. A block that is asked for and freed, untouched, takes
    no memory, and leaves its addresses to the blocks that follow.
    """
    size = psutil.virtual_memory().available
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.free.argtypes = [ctypes.c_void_p]
    block = libc.malloc(size)
    if block:
        start = -(-block // LARGE_PAGE) * LARGE_PAGE
        libc.madvise(start, block + size - start, MADV_HUGEPAGE)  # a kernel without them says no
        libc.free(block)

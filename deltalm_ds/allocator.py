"""Memory allocators: the C library's, told not to give freed memory back to the system at once, and PyTorch's."""

import ctypes

# of PyTorch's allocator on GPUs: the name of today, and that of before, which has precedence (CUDAAllocatorConfig.h)
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
# of glibc's malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Let this process reuse the memory of freed tensors; does nothing where the C library is not glibc.

    glibc maps every large block anew and unmaps it when freed, so that each tensor of a training step on a CPU costs a
    page fault for every 4 KiB, more than half of the step's time at base size (benchmarks/RESULTS.md). The price is
    memory: what was freed in between is only used again where it fits.
    """
    libc = ctypes.CDLL(None)
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is not None:
        libc.malloc_trim(0)  # what was freed before stays in pieces of other sizes
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # the largest size there is

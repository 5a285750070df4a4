"""Many files in one stretch of memory addresses, so that numpy sees them as one array.

Picking values out of thousands of files is then one operation and not one per file. The stretch is reserved as a
whole, without memory; a file is laid over its place when it is first needed. Files do not stay open, their pages are
those of the page cache, shared by all processes, and forked processes inherit the mapping. A process may have 65,530
mappings by default (vm.max_map_count), and this has at most one more than files.
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

MAP_FIXED = 0x10  # of Linux and macOS; module mmap maps at no given address

_mmap = ctypes.CDLL(None, use_errno=True).mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)


class MappedFiles:
    """Places for files of the given sizes; those that were not mapped must not be touched.

    Attributes:
        bytes: all of it, uint8 and read-only; `begins[i]` is where file i starts, a multiple of the page size.
    """

    def __init__(self, num_bytes: Sequence[int]) -> None:
        self._num_bytes = np.array(num_bytes, dtype=np.int64)
        pages = -(-self._num_bytes // mmap.PAGESIZE)
        self.begins = (np.cumsum(pages) - pages) * mmap.PAGESIZE
        size = max(1, int(pages.sum())) * mmap.PAGESIZE
        self.bytes = np.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE, 0), dtype=np.uint8)

    def map(self, number: int, path: Path) -> np.ndarray:
        """Lay file `number` over its place; nothing of it is read. Returns its bytes, a view.

        Raises:
            OSError: it cannot be opened or mapped, or does not have the size it was given.
        """
        begin, size = int(self.begins[number]), int(self._num_bytes[number])
        file = os.open(path, os.O_RDONLY)
        try:
            # Beyond the end of a file its pages cannot be read: the process would be killed.
            if os.fstat(file).st_size != size:
                raise OSError(errno.EINVAL, f"The file does not have {size:,} bytes")
            address = self.bytes.ctypes.data + begin
            if size and _mmap(address, size, mmap.PROT_READ, mmap.MAP_SHARED | MAP_FIXED, file, 0) != address:
                raise OSError(ctypes.get_errno(), f"{os.strerror(ctypes.get_errno())} (see vm.max_map_count)")
        finally:
            os.close(file)
        return self.bytes[begin : begin + size]

"""Page faults of tensors that are made again and again and the sizes of pages, counted by the kernel."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

COUNT = """
import resource, sys, torch
from deltalm_ds.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for size in [1 << 24, 1 << 23, 1 << 22] * 20:
    torch.zeros(size)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def count_faults(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's setting")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    # some blocks are made anew until the heap is large enough: small ones settle in what large ones left
    assert count_faults("kept") < count_faults("given back") / 2


PAGES = """
import sys, torch
from deltalm_ds.allocator import keep_freed_memory
keep_freed_memory(in_large_pages=sys.argv[1] == "large")
tensors = [torch.ones(1 << 22) for _ in range(16)]  # each of 16 MiB
del tensors[::2]
keep_freed_memory(in_large_pages=sys.argv[1] == "large")  # as another engine in the same process does
tensors += [torch.ones(1 << 22) for _ in range(8)]
asked_for = rss = 0
for line in open("/proc/self/smaps"):
    name, *words = line.split()
    rss = int(words[0]) if name == "Rss:" else rss
    asked_for += rss if name == "VmFlags:" and "hg" in words else 0
print(open("/proc/self/smaps_rollup").read(), open("/proc/self/status").read(), f"AskedFor: {asked_for} kB")
"""
ALLOWED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def mebibytes(how: str, address_space: int = resource.RLIM_INFINITY) -> dict[str, float]:
    """What the kernel says of a process that holds 256 MiB of tensors."""
    found = subprocess.run(
        [sys.executable, "-c", PAGES, how],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space)),
    ).stdout
    return {name: int(number) / 1024 for name, number in re.findall(r"(\w+):\s+(\d+) kB", found)}


@pytest.mark.skipif(not ALLOWED.exists(), reason="this kernel has pages of one size, and nobody can ask for others")
def test_a_search_has_its_weights_in_large_pages() -> None:
    small, large = mebibytes("small"), mebibytes("large")
    assert small["AskedFor"] == 0 and large["AskedFor"] >= 256
    assert large["Rss"] < small["Rss"] + 64  # reserving takes no memory
    if "[madvise]" in ALLOWED.read_text():  # given to those who ask; else to all, or to nobody
        assert small["AnonHugePages"] == 0
        assert 32 <= large["AnonHugePages"] <= large["Rss"]  # memory that is in pieces has few large pages left


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells of it, which only Linux has")
def test_addresses_that_are_counted_are_not_reserved() -> None:
    memory = psutil.virtual_memory().total
    assert mebibytes("large", 4 * memory)["VmPeak"] < memory / 2**21

"""Every op of the table beside its peers: the benchmarks of `benchmarks/kernels/`, one after the other."""

import importlib

from benchmarks.device import failure
from benchmarks.kernels.harness import measure
from benchmarks.recording import FAILED, keep, parser
from deltalm_ds.allocator import keep_freed_memory
from deltalm_ds.kernels.table import OPS

FIRST = ("attention", "linear_cross_entropy", "layer_norm")  # what goals are set for, should the time be short


def main() -> None:
    """Measure and keep."""
    arguments = parser(__doc__).parse_args()
    keep_freed_memory()
    for op in sorted(OPS, key=lambda op: op not in FIRST):
        try:
            for work in importlib.import_module(f"benchmarks.kernels.{op}").works():
                for row in measure(work):
                    keep(arguments, "kernels", {"op": op, **row})
        except Exception as error:  # inputs that do not fit, say; the next op may
            keep(arguments, "kernels", {"op": op, FAILED: failure(error)})


if __name__ == "__main__":
    main()

"""The machine: card, versions, what is missing, and the rates of a copy and of the products of a step."""

import importlib.util
import os
import sys

import torch

from benchmarks.device import DEVICE, ON_GPU, TOY, best_seconds, copy_rate, failure, peak_rate, product_rate
from benchmarks.recording import FAILED, commit, keep, parser

SOURCE, TARGET, WIDTH, FFN, VOCABULARY = (16, 8, 32, 64, 515) if TOY else (64 * 512, 64 * 114, 768, 3072, 250_001)
# [m, k] · [k, n] of base's step, whose rates decide its time
PRODUCTS = {
    "queries, keys and values": (SOURCE, WIDTH, 3 * WIDTH),
    "into the FFN": (SOURCE, WIDTH, FFN),
    "out of the FFN": (SOURCE, FFN, WIDTH),
    "weight gradient of q, k, v": (3 * WIDTH, SOURCE, WIDTH),
    "weight gradient of the output": (WIDTH, SOURCE, WIDTH),
    "weight gradient of the FFN": (FFN, SOURCE, WIDTH),
    "logits": (TARGET, WIDTH, VOCABULARY),
    "gradient of the hidden states": (TARGET, VOCABULARY, WIDTH),
    "weight gradient of the logits": (VOCABULARY, TARGET, WIDTH),
}
WANTED = (
    "triton",
    "pydantic",
    "deepspeed",
    "transformers",
    "liger_kernel",
    "ctranslate2",
    "babel",
    "hypothesis",
    "xdist",
)


def main() -> None:
    """Measure and keep."""
    arguments = parser(__doc__).parse_args()

    def add(**row: object) -> None:
        keep(arguments, "facts", row)

    versions = {"python": sys.version.split()[0], "torch": str(torch.__version__), "commit": commit()}
    missing = [name for name in WANTED if importlib.util.find_spec(name) is None]
    add(what="versions", **versions, cpus=os.cpu_count(), missing=missing)
    if ON_GPU:
        card = torch.cuda.get_device_properties(0)
        add(what="card", name=card.name, memory_gb=card.total_memory / 1e9, processors=card.multi_processor_count)
        add(what="peak of 16 bits by the data sheet", tflops=(peak_rate() or 0) / 1e12)
    add(what="copy", gb_per_s=copy_rate() / 1e9)
    for dtype in (torch.bfloat16, torch.float32):
        add(what=f"large product, {dtype}", tflops=product_rate(dtype) / 1e12)
    for name, (m, k, n) in PRODUCTS.items():
        try:
            a, b = torch.randn(m, k, device=DEVICE).bfloat16(), torch.randn(n, k, device=DEVICE).bfloat16()
            seconds = best_seconds(lambda a=a, b=b: a @ b.T, 0.05)
            add(what=name, shape=[m, k, n], tflops=2 * m * k * n / seconds / 1e12)
        except Exception as error:  # too little memory, say
            add(what=name, **{FAILED: failure(error)})


if __name__ == "__main__":
    main()

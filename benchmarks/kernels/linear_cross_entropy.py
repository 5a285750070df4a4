"""Output projection and loss: `make bench-kernels/linear_cross_entropy`, with `ARGS=--record` to keep it.

On a CPU a quarter of an hour on two cores, and up to 20 GB: by the peers thousands of tokens have gigabytes of logits.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.device import DEVICE, ON_GPU, TOY
from benchmarks.kernels.harness import DTYPES, Contender, Work, leaf, main, on_gpu
from deltalm_ds.kernels.linear_cross_entropy import linear_cross_entropy
from deltalm_ds.kernels.reference import IGNORED_LABEL

WIDTH, VOCABULARY, ROWS = (32, 515, 576) if TOY else (768, 250_001, 250_048)
NUM_TOKENS = (8,) if TOY else (8192,) if ON_GPU else (205, 1640, 3280)
SMOOTHING = 0.1


def plain(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The same loss from whole logits; torch smooths with the label included, hence the factor."""
    smoothing = SMOOTHING * VOCABULARY / (VOCABULARY - 1)
    return F.cross_entropy(hidden @ weight[:VOCABULARY].T, labels, label_smoothing=smoothing, reduction="sum")


def _liger(inputs: list[Tensor], labels: Tensor) -> dict[str, Contender]:
    """Liger's fused loss: as it comes, and with float32 sums, as ours are, in fewer chunks.

    It knows no padding rows: its vocabulary has them too.
    """

    def forward(*options: Any) -> Tensor:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

        # without bias and weights of tokens; then the ignored label, and the weight of a z-loss
        settings = (None, None, IGNORED_LABEL, 0.0, SMOOTHING, "sum", *options)
        return LigerFusedLinearCrossEntropyFunction.apply(*inputs, labels, *settings)[0]

    # its softcap and z-loss; dtype of sums; three extras and two choices left alone; its budget of memory, 64 times
    precise = (None, False, torch.float32, False, False, False, None, None, 64)
    return {"Liger": (forward, inputs), "Liger, float32 sums": (lambda: forward(*precise), inputs)}


def works() -> Iterator[Work]:
    """Ours in each type against plain logits of the same, and of float32."""
    for num_tokens in NUM_TOKENS:
        labels = torch.randint(VOCABULARY, (num_tokens,), device=DEVICE)
        inputs = {dtype: [leaf(num_tokens, WIDTH, dtype=dtype), leaf(ROWS, WIDTH, dtype=dtype)] for dtype in DTYPES}
        for _, weight in inputs.values():
            weight.data /= WIDTH**0.5  # logits as of a fresh model
        for dtype in DTYPES:
            ours = inputs[dtype]
            contenders = {
                "ours": (lambda x=ours, y=labels: linear_cross_entropy(*x, y, VOCABULARY, SMOOTHING).loss, ours),
                **{
                    f"logits + cross_entropy, {other}": (lambda x=x, y=labels: plain(*x, y), x)
                    for other, x in inputs.items()
                    if other in (dtype, DTYPES[0])
                },
                **on_gpu(_liger(ours, labels)),
            }
            name = f"{num_tokens} tokens x {WIDTH}, vocabulary {VOCABULARY:,}, {dtype}"
            yield Work(name, "GFLOP/s", 6 * num_tokens * WIDTH * VOCABULARY, contenders)


if __name__ == "__main__":
    main("linear_cross_entropy", works())

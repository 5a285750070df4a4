"""The best continuations of beams: `make bench-kernels/top_k`, with `ARGS=--record` to keep it. No backward."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.device import DEVICE, ON_GPU, TOY
from benchmarks.kernels.harness import Contender, Work, main
from deltalm_ds.kernels.top_k import top_k

SENTENCES = 2 if TOY else 64 if ON_GPU else 16
BEAM, PADDING_ROWS = 5, 111
VOCABULARY = 515 if TOY else 250_001


def work(num_tokens: int, dtype: torch.dtype) -> Work:
    """Candidates of one step of beam search, `<pad>` banned."""
    num_rows = SENTENCES * BEAM
    logits = torch.randn(num_rows, num_tokens + PADDING_ROWS, device=DEVICE).to(dtype)[:, :num_tokens]
    beam_scores = torch.randn(SENTENCES, BEAM, device=DEVICE)
    banned = torch.ones(num_rows, 1, dtype=torch.int64, device=DEVICE)

    def eager() -> Tensor:
        """As fairseq: all log-probabilities in float32, and the best of all beams' at once."""
        log_p = logits.log_softmax(1, dtype=torch.float32)
        log_p[:, 1] = float("-inf")
        return (log_p + beam_scores.view(-1, 1)).view(SENTENCES, -1).topk(2 * BEAM).values

    contenders: dict[str, Contender] = {
        "ours": (lambda: top_k(logits, beam_scores, 2 * BEAM, banned).scores, []),
        "eager": (eager, []),
    }
    return Work(f"{num_rows} rows x {num_tokens:,}, {dtype}", "GB/s", logits.numel() * dtype.itemsize, contenders)


def works() -> Iterator[Work]:
    """Logits of both types."""
    for dtype in (torch.float32, torch.bfloat16):
        yield work(VOCABULARY, dtype)


if __name__ == "__main__":
    main("top_k", works())

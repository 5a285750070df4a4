"""What a micro-batch costs the host: milliseconds and launches of forward and backward, measured without a GPU.

Python, autograd and the binding of every launch are real; kernels are compiled for sm_90 and not run, and matrices are
so narrow that their products on the CPU take next to nothing. As long as a GPU computes for less than this, it waits.

    python -m benchmarks.host_cost              the table
    python -m benchmarks.host_cost --profile    where the host's time goes in ours
"""

import cProfile
import pstats
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.recording import parser, report
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.packing import PackedSequences

WIDTH, FFN, HEADS, VOCABULARY = 96, 192, 12, 512
LENGTHS = (8, 8, 8, 8)  # of four sequences, source and target alike
ROUNDS = 15
PRODUCTS = torch.library.Library("aten", "IMPL")  # what it puts in place ends with it
Contender = tuple[torch.nn.Module, Callable[[], Tensor]]
NOTE = (
    "Medians of 15 rounds in turn, one thread. Base's layers and heads (12 + 6 blocks; mBART 12 + 9), dropout 0.1 "
    "everywhere, 96 wide. Launches: of our kernels; PyTorch's own ops are counted as dispatched. Not in it: the "
    "driver's part of a launch, DeepSpeed's hooks, the optimizer."
)


def main() -> None:
    """Measure every contender and show the table."""
    options = parser(__doc__)
    options.add_argument("--profile", action="store_true", help="where the time goes, instead of the table")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    launches: list[Any] = []
    _leave_out_products()
    contenders = {"fused": _ours(launches), "mBART eager": _mbart()}
    if arguments.profile:
        _show_profile(contenders["fused"][1])
        return
    rows = []
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, contender in contenders.items():
            spent[name].append(_milliseconds(*contender))
    for name, (_, forward) in contenders.items():
        launches.clear()
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            forward().backward()
        ahead, back = (statistics.median(values) for values in zip(*spent[name], strict=True))
        rows.append(
            {
                "contender": name,
                "forward ms": ahead,
                "backward ms": back,
                "both ms": ahead + back,
                "launches of kernels": len(launches),
                "dispatched ops": sum(event.count for event in recorded.key_averages() if event.key.startswith("aten")),
            }
        )
    report(arguments, "Host time of a micro-batch, no GPU", "python -m benchmarks.host_cost", rows, [NOTE])


def _leave_out_products() -> None:
    """Products only allocate their result: a Python function for each, about as long as cuBLAS needs to launch one."""
    PRODUCTS.impl("mm", lambda a, b: a.new_empty(a.shape[0], b.shape[1]), "CPU")
    PRODUCTS.impl("addmm", lambda bias, a, b, **_: a.new_empty(a.shape[0], b.shape[1]), "CPU")
    PRODUCTS.impl("mm.out", lambda a, b, *, out: out, "CPU")


def _milliseconds(model: torch.nn.Module, forward: Callable[[], Tensor]) -> tuple[float, float]:
    model.zero_grad(set_to_none=True)  # as at the start of a step
    start = time.process_time()
    loss = forward()
    middle = time.process_time()
    loss.backward()
    return (middle - start) * 1e3, (time.process_time() - middle) * 1e3


def _ours(launches: list[Any]) -> Contender:
    from deltalm_ds.kernels.ahead_of_time import launch_nothing, pretend

    pretend(90)
    launch_nothing(launches.append)
    config = DeltaLMConfig.preset(
        "base", vocabulary_size=VOCABULARY, hidden_size=WIDTH, ffn_size=FFN, num_heads=HEADS,
        dropout=0.1, attention_dropout=0.1, activation_dropout=0.1,
    )  # fmt: skip
    model = DeltaLM(config).bfloat16().train()
    rows = PackedSequences.from_sequences([list(range(4, 4 + length)) for length in LENGTHS])
    return model, lambda: model(rows, rows, rows.tokens, 0.1).loss


def _mbart() -> Contender:
    from transformers import MBartConfig, MBartForConditionalGeneration

    config = MBartConfig(
        vocab_size=VOCABULARY, d_model=WIDTH, encoder_layers=12, decoder_layers=9, encoder_ffn_dim=FFN,
        decoder_ffn_dim=FFN, encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, dropout=0.1,
        attention_dropout=0.1, activation_dropout=0.1, scale_embedding=False, max_position_embeddings=512,
    )  # fmt: skip
    model = MBartForConditionalGeneration(config).bfloat16().train()
    tokens = torch.arange(4, 12).repeat(len(LENGTHS), 1)
    mask = torch.ones_like(tokens)
    inputs = {"input_ids": tokens, "attention_mask": mask, "decoder_input_ids": tokens, "labels": tokens}
    return model, lambda: model(**inputs, use_cache=False).loss


def _show_profile(forward: Callable[[], Tensor]) -> None:
    for _ in range(3):
        forward().backward()
    recorder = cProfile.Profile()
    recorder.enable()
    for _ in range(5):
        forward().backward()
    recorder.disable()
    pstats.Stats(recorder).sort_stats("tottime").print_stats(40)


if __name__ == "__main__":
    main()

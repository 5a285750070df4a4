"""A whole training step of DeltaLM-base against the roofline of the same run: `make bench-train_step`.

The roofline is the time of the step's matrix products alone, each at its own shape and dtype, plus 28 bytes a
parameter (Adam's reads and writes in float32) at the measured copy bandwidth. Every row runs in a process of its own,
so its peak memory is honest; rooflines are timed beside the rows they are divided by.

    python -m benchmarks.train_step                     all rows: 4 x (<= 128, <= 64) tokens and 16 times that many
    python -m benchmarks.train_step --rows bare-bf16    one row, with where its time goes
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.recording import parser, report
from deltalm_ds.allocator import keep_freed_memory
from deltalm_ds.data.collation import Batch
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.packing import PackedSequences

SOURCE_LENGTHS, TARGET_LENGTHS = (128, 115, 94, 72), (64, 58, 47, 36)  # 409 and 205 tokens
VOCABULARY = 250_001
ADAM_BYTES = 28  # a parameter: gradient, weight and two moments read, the last three written
BETAS, EPS, CLIP, SMOOTHING = (0.9, 0.98), 1e-8, 1.0, 0.1
KINDS = ("bare", "engine", "mbart", "mbart_kept")
ROWS = tuple(f"{kind}-{precision}" for precision in ("fp32", "bf16") for kind in KINDS)
NOTE = (
    "bare: a plain loop; engine: DeepSpeed, one rank, ZeRO 1. mbart: transformers' model in the same plain loop; "
    "mbart_kept: with freed memory kept too, as our training does (deltalm_ds/allocator.py), which its users do not "
    "have by themselves. Our forward includes the gradients of the loss."
)


def main() -> None:
    """Run every row in its own process and show the table."""
    options = parser(__doc__)
    options.add_argument("--rows", default=",".join(ROWS), help="which rows, comma-separated")
    options.add_argument("--scales", default="1,16", help="multiples of the small batch")
    options.add_argument("--steps", type=int, default=5, help="timed steps of the small batch")
    options.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.worker:
        name, scale = arguments.worker.split(":")
        print(json.dumps(_measure(name, int(scale), arguments.steps)))
        return
    rows, notes = [], [NOTE]
    for scale in arguments.scales.split(","):
        for name in arguments.rows.split(","):
            command = [sys.executable, "-m", "benchmarks.train_step", "--worker", f"{name}:{scale}"]
            command += ["--steps", str(arguments.steps)]
            worker = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if worker.returncode == -signal.SIGKILL:
                notes.append(f"{name} x{scale}: killed, as it needs more memory than this machine has.")
                continue
            worker.check_returncode()
            rows.append(json.loads(worker.stdout.splitlines()[-1]))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    report(arguments, "Whole training step, DeltaLM-base, vocabulary 250,001", "make bench-train_step", rows, notes)


def _measure(name: str, scale: int, steps: int) -> dict[str, Any]:
    kind, precision = name.split("-")
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    torch.manual_seed(0)
    steps = max(2, steps // scale)
    batch = _batch(scale)
    parts: Counter[str] = Counter()
    step, num_parameters = {"bare": _bare, "engine": _engine, "mbart": _mbart, "mbart_kept": _mbart}[kind](
        batch, dtype, parts
    )
    if kind != "mbart":
        keep_freed_memory()
    for _ in range(max(1, 2 // scale)):  # the heap has its size after two steps
        step()
    parts.clear()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    median = sorted(seconds)[len(seconds) // 2]
    products, update = _products_seconds(scale, dtype), ADAM_BYTES * num_parameters / _copy_bandwidth()
    tokens = scale * (sum(SOURCE_LENGTHS) + sum(TARGET_LENGTHS))
    return {
        "row": f"{name} x{scale}",
        "tokens": tokens,
        "s/step": median,
        "roofline s": products + update,
        "x roofline": median / (products + update),
        "tokens/s": tokens / median,
        "forward s": parts["forward"] / steps,
        "backward s": parts["backward"] / steps,
        "optimizer s": parts["optimizer"] / steps,
        "products alone s": products,
        "Adam at copy speed s": update,
        "peak GiB": peak,
    }


def _batch(scale: int) -> Batch:
    generator = torch.Generator().manual_seed(1)

    def draw(lengths: tuple[int, ...]) -> list[list[int]]:
        return [torch.randint(4, VOCABULARY, (n,), generator=generator).tolist() for n in lengths * scale]

    sources, targets = draw(SOURCE_LENGTHS), draw(TARGET_LENGTHS)
    labels = torch.tensor([token for target in targets for token in target])
    return Batch(
        PackedSequences.from_sequences(sources),
        PackedSequences.from_sequences([[2, *target[:-1]] for target in targets]),
        labels,
        torch.zeros(len(sources), dtype=torch.long),
    ).padded()


@contextmanager
def _timed(parts: Counter[str], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    parts[name] += time.perf_counter() - start


def _model() -> DeltaLM:
    return DeltaLM(DeltaLMConfig.preset("base", vocabulary_size=VOCABULARY)).train()


def _bare(batch: Batch, dtype: torch.dtype, parts: Counter[str]) -> tuple[Callable[[], None], int]:
    """Our model in a plain loop."""
    model = _model()
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    update = _Update(model, dtype)

    def step() -> None:
        with _timed(parts, "forward"):
            loss = model(batch.source, batch.target_input, batch.labels, SMOOTHING)[0]
        with _timed(parts, "backward"):
            (loss / len(batch.labels)).backward()
        with _timed(parts, "optimizer"):
            update()

    return step, num_parameters


class _Update:
    """Clip to norm 1 and Adam, in float32; 16-bit models have float32 masters.

    A block of elements at a time, so that their float32 gradient never leaves the processor's cache.
    """

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype) -> None:
        self.weights = list(model.parameters())
        self.masters = [weight.data if dtype == torch.float32 else weight.data.clone() for weight in self.weights]
        model.to(dtype)
        self.moments = [(torch.zeros_like(master), torch.zeros_like(master)) for master in self.masters]
        self.num_steps = torch.tensor(0.0)

    @torch.no_grad()
    def __call__(self) -> None:
        blocks = [block for weight in self.weights for block in _blocks(weight.grad)]
        norm = torch.stack([torch.dot(block, block) for block in map(Tensor.float, blocks)]).sum().sqrt()
        divisor = ((norm + 1e-6) / CLIP).clamp(min=1.0)
        self.num_steps += 1
        for weight, master, (mean, square) in zip(self.weights, self.masters, self.moments, strict=True):
            for gradient, w, p, m, v in zip(*map(_blocks, (weight.grad, weight, master, mean, square)), strict=True):
                torch._fused_adamw_(
                    [p], [gradient.float()], [m], [v], [], [self.num_steps], lr=1e-4, beta1=BETAS[0], beta2=BETAS[1],
                    weight_decay=0.0, eps=EPS, amsgrad=False, maximize=False, grad_scale=divisor,
                )  # fmt: skip
                if w.data_ptr() != p.data_ptr():
                    w.copy_(p)
            weight.grad = None


def _blocks(x: Tensor) -> tuple[Tensor, ...]:
    return x.detach().view(-1).split(1 << 20)


def _engine(batch: Batch, dtype: torch.dtype, parts: Counter[str]) -> tuple[Callable[[], None], int]:
    """The same through our DeepSpeed engine, one rank, ZeRO 1."""
    from deltalm_ds.recipe.loading import load_recipe, recipe_path
    from deltalm_ds.training.deepspeed_engine import initialize, start_distributed

    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ.setdefault("MASTER_PORT", "29577")
    start_distributed()
    name = "fp32_zero1" if dtype == torch.float32 else "bf16_zero1"
    recipe = load_recipe(recipe_path("cldr_en_de"), [f"deepspeed={name}"])
    model = _model()
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    engine = initialize(model, recipe)
    engine.train()

    def step() -> None:
        with _timed(parts, "forward"):
            loss = engine(batch.source, batch.target_input, batch.labels, SMOOTHING)[0]
        with _timed(parts, "backward"):
            engine.backward(loss / len(batch.labels), scale_wrt_gas=False)
        with _timed(parts, "optimizer"):
            engine.step()

    return step, num_parameters


def _mbart(batch: Batch, dtype: torch.dtype, parts: Counter[str]) -> tuple[Callable[[], None], int]:
    """The peer: transformers' mBART of the same width and size (12 + 9 layers), padded batches, dropout 0.1."""
    from transformers import MBartConfig, MBartForConditionalGeneration

    config = MBartConfig(
        vocab_size=VOCABULARY, d_model=768, encoder_layers=12, decoder_layers=9, encoder_ffn_dim=3072,
        decoder_ffn_dim=3072, encoder_attention_heads=12, decoder_attention_heads=12, dropout=0.1,
        attention_dropout=0.0, activation_dropout=0.0, scale_embedding=False, max_position_embeddings=512,
    )  # fmt: skip
    model = MBartForConditionalGeneration(config).train()
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    update = _Update(model, dtype)
    scale = (len(batch.source.lengths) - 1) // len(SOURCE_LENGTHS)
    source, mask = _padded(batch.source.tokens, SOURCE_LENGTHS * scale, 1)
    inputs, _ = _padded(batch.target_input.tokens, TARGET_LENGTHS * scale, 1)
    labels, _ = _padded(batch.labels, TARGET_LENGTHS * scale, -100)

    def step() -> None:
        with _timed(parts, "forward"):
            logits = model(input_ids=source, attention_mask=mask, decoder_input_ids=inputs, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), labels.flatten(), label_smoothing=SMOOTHING
            )
        with _timed(parts, "backward"):
            loss.backward()
        with _timed(parts, "optimizer"):
            update()

    return step, num_parameters


def _padded(tokens: Tensor, lengths: tuple[int, ...], fill: int) -> tuple[Tensor, Tensor]:
    rows = torch.full((len(lengths), max(lengths)), fill)
    for row, part in zip(rows, tokens[: sum(lengths)].split(list(lengths)), strict=True):
        row[: len(part)] = part
    return rows, (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


# --- the roofline ---


def _products(scale: int) -> Counter[tuple[int, int, int, int]]:
    """How often a step multiplies [batch, m, k] by [batch, k, n], forward and backward, per (batch, m, k, n)."""
    source, target, width, ffn, heads = scale * sum(SOURCE_LENGTHS), scale * sum(TARGET_LENGTHS), 768, 3072, 12
    found: Counter[tuple[int, int, int, int]] = Counter()

    def linear(tokens: int, inputs: int, outputs: int, times: int) -> None:
        for m, k, n in ((tokens, inputs, outputs), (tokens, outputs, inputs), (outputs, tokens, inputs)):
            found[1, m, k, n] += times

    def attend(queries: tuple[int, ...], keys: tuple[int, ...], times: int) -> None:
        for q, k in zip(queries, keys, strict=True):
            d = width // heads
            for m, inner, n in ((q, d, k), (q, k, d), (q, d, k), (k, q, d), (q, k, d), (k, q, d)):
                found[heads, m, inner, n] += times * scale

    linear(source, width, 3 * width, 12)  # encoder
    linear(source, width, width, 12)
    linear(source, width, ffn, 12)
    linear(source, ffn, width, 12)
    attend(SOURCE_LENGTHS, SOURCE_LENGTHS, 12)
    linear(target, width, 3 * width, 6)  # decoder
    linear(target, width, width, 6 * 3)
    linear(source, width, 2 * width, 6)
    linear(target, width, ffn, 12)
    linear(target, ffn, width, 12)
    attend(TARGET_LENGTHS, TARGET_LENGTHS, 6)
    attend(TARGET_LENGTHS, SOURCE_LENGTHS, 6)
    linear(target, width, VOCABULARY, 1)
    return found


def _products_seconds(scale: int, dtype: torch.dtype) -> float:
    """Every product timed alone, the operands in the layout of a linear layer."""
    total = 0.0
    for (batch, m, k, n), times in _products(scale).items():
        a, b = torch.randn(batch, m, k).to(dtype), torch.randn(batch, n, k).to(dtype).transpose(1, 2)
        out = torch.empty(batch, m, n, dtype=dtype)
        multiply = (lambda a=a[0], b=b[0], out=out[0]: torch.mm(a, b, out=out)) if batch == 1 else (
            lambda a=a, b=b, out=out: torch.bmm(a, b, out=out)
        )  # fmt: skip
        total += times * _seconds(multiply)
    return total


def _copy_bandwidth() -> float:
    """Bytes read and written a second by a copy far larger than the caches."""
    source = torch.ones(1 << 27)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source))


def _seconds(call: Callable[[], object]) -> float:
    """The least of several runs, after one to warm up."""
    call()
    best, spent = float("inf"), 0.0
    while spent < 0.15 or best == float("inf"):
        start = time.perf_counter()
        call()
        took = time.perf_counter() - start
        best, spent = min(best, took), spent + took
    return best


if __name__ == "__main__":
    main()

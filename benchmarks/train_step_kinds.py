"""What `train_step` trains: our model in a plain loop, in DeepSpeed's engine, in our training step, and the peer.

Each is a function of a batch, a dtype and the clock of the parts; it gives a step to call and how many parameters.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.device import DEVICE, ON_GPU, TOY
from deltalm_ds.data.collation import Batch
from deltalm_ds.linear_choice import use_fastest
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.packing import PackedSequences

VOCABULARY = 515 if TOY else 250_001
BETAS, EPS, CLIP, SMOOTHING = (0.9, 0.98), 1e-8, 1.0, 0.1


@dataclass(frozen=True)
class Size:
    """What is trained, and on what: a model, and the lengths of the smallest batch, of which scales are multiples."""

    width: int
    ffn: int
    heads: int
    layers: int
    blocks: int
    source: tuple[int, ...]
    target: tuple[int, ...]
    scales: str
    rows: tuple[str, ...]

    def config(self) -> DeltaLMConfig:
        """DeltaLM-base of these sizes."""
        sizes = {"hidden_size": self.width, "ffn_size": self.ffn, "num_heads": self.heads}
        sizes |= {"num_encoder_layers": self.layers, "num_decoder_blocks": self.blocks}
        return DeltaLMConfig.preset("base", vocabulary_size=VOCABULARY, **sizes)

    def model(self) -> DeltaLM:
        """Seeded fresh weights in float32."""
        torch.manual_seed(0)
        with DEVICE:  # 362 million random numbers take a CPU seconds
            return DeltaLM(self.config()).train()

    def tokens(self, scale: int) -> int:
        """Of source and target."""
        return scale * (sum(self.source) + sum(self.target))


KINDS = ("bare", "engine", "mbart", "mbart_kept")
GPU_KINDS = ("trainer", "mbart", "bare", "torch")
BASE = (768, 3072, 12, 12, 6)
if TOY:
    SIZE = Size(32, 64, 2, 2, 1, (8,), (4,), "2", ("trainer-bf16", "mbart-bf16"))
elif ON_GPU:
    SIZE = Size(*BASE, (512,), (114,), "64,13", tuple(f"{kind}-bf16" for kind in GPU_KINDS))
else:
    every = tuple(f"{kind}-{precision}" for precision in ("fp32", "bf16") for kind in KINDS)
    SIZE = Size(*BASE, (128, 115, 94, 72), (64, 58, 47, 36), "1,16", every)


class Parts:
    """Seconds of the parts of all steps: by the clock on a CPU, by events on a GPU, which nobody waits for."""

    def __init__(self) -> None:
        self.marks: list[tuple[str, Any, Any]] = []

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """What runs inside is of this part."""
        start = self._now()
        yield
        self.marks.append((name, start, self._now()))

    def _now(self) -> Any:
        if not ON_GPU:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> Counter[str]:
        """By part; the device is done with them."""
        total: Counter[str] = Counter()
        for name, start, end in self.marks:
            total[name] += start.elapsed_time(end) / 1e3 if ON_GPU else end - start
        return total


def make_batch(scale: int) -> Batch:
    generator = torch.Generator().manual_seed(1)

    def draw(lengths: tuple[int, ...]) -> list[list[int]]:
        return [torch.randint(4, VOCABULARY, (n,), generator=generator).tolist() for n in lengths * scale]

    sources, targets = draw(SIZE.source), draw(SIZE.target)
    labels = torch.tensor([token for target in targets for token in target])
    return Batch(
        PackedSequences.from_sequences(sources),
        PackedSequences.from_sequences([[2, *target[:-1]] for target in targets]),
        labels,
        torch.zeros(len(sources), dtype=torch.long),
    ).padded()


def bare(batch: Batch, dtype: torch.dtype, parts: Parts) -> tuple[Callable[[], None], int]:
    """Our model in a plain loop."""
    model, batch = SIZE.model(), batch.to(DEVICE)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    update = _Update(model, dtype)
    use_fastest(model)

    def step() -> None:
        with parts.timed("forward"):
            loss = model(batch.source, batch.target_input, batch.labels, SMOOTHING)[0]
        with parts.timed("backward"):
            (loss / len(batch.labels)).backward()
        with parts.timed("optimizer"):
            update()

    return step, num_parameters


class _Update:
    """Clip to norm 1 and Adam, in float32; 16-bit models have float32 masters."""

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype) -> None:
        self.weights = list(model.parameters())
        self.masters = [weight.data if dtype == torch.float32 else weight.data.clone() for weight in self.weights]
        model.to(dtype)
        self.moments = [(torch.zeros_like(master), torch.zeros_like(master)) for master in self.masters]
        self.num_steps = torch.tensor(0.0, device=DEVICE)

    @torch.no_grad()
    def __call__(self) -> None:
        self.num_steps += 1
        if ON_GPU:
            self._update_whole_tensors()
        else:
            self._update_in_blocks()
        for weight in self.weights:
            weight.grad = None

    def _update_whole_tensors(self) -> None:
        """A launch for many tensors at once."""
        gradients = [weight.grad.float() for weight in self.weights]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        means, squares = map(list, zip(*self.moments, strict=True))
        self._adam(self.masters, gradients, means, squares, norm)
        if self.weights[0].dtype != torch.float32:
            torch._foreach_copy_([weight.data for weight in self.weights], self.masters)

    def _update_in_blocks(self) -> None:
        """A block of elements at a time, so that their float32 gradient never leaves the processor's cache."""
        blocks = [block for weight in self.weights for block in _blocks(weight.grad)]
        norm = torch.stack([torch.dot(block, block) for block in map(Tensor.float, blocks)]).sum().sqrt()
        for weight, master, (mean, square) in zip(self.weights, self.masters, self.moments, strict=True):
            for gradient, w, p, m, v in zip(*map(_blocks, (weight.grad, weight, master, mean, square)), strict=True):
                self._adam([p], [gradient.float()], [m], [v], norm)
                if w.data_ptr() != p.data_ptr():
                    w.copy_(p)

    def _adam(
        self, weights: list[Tensor], gradients: list[Tensor], means: list[Tensor], squares: list[Tensor], norm: Tensor
    ) -> None:
        torch._fused_adamw_(
            weights, gradients, means, squares, [], [self.num_steps] * len(weights), lr=1e-4, beta1=BETAS[0],
            beta2=BETAS[1], weight_decay=0.0, eps=EPS, amsgrad=False, maximize=False,
            grad_scale=((norm + 1e-6) / CLIP).clamp(min=1.0),
        )  # fmt: skip


def _blocks(x: Tensor) -> tuple[Tensor, ...]:
    return x.detach().view(-1).split(1 << 20)


def join_alone() -> None:
    """Make this process the only rank."""
    from deltalm_ds.training.deepspeed_engine import start_distributed
    from deltalm_ds.training.rendezvous import free_port, wanted_port

    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(wanted_port() or free_port())
    start_distributed()


def ds_engine_of(dtype: torch.dtype) -> tuple[Any, int]:
    """Our model in a DeepSpeed engine, one rank, ZeRO 1."""
    from deltalm_ds.recipe.loading import load_recipe, recipe_path
    from deltalm_ds.training.deepspeed_engine import initialize

    join_alone()
    name = "fp32_zero1" if dtype == torch.float32 else "bf16_zero1"
    model = SIZE.model()
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    ds_engine = initialize(model, load_recipe(recipe_path("cldr_en_de"), [f"deepspeed={name}"]))
    use_fastest(ds_engine.module)
    return ds_engine, num_parameters


def engine(batch: Batch, dtype: torch.dtype, parts: Parts) -> tuple[Callable[[], None], int]:
    """A plain loop around it."""
    ds_engine, num_parameters = ds_engine_of(dtype)
    ds_engine.train()
    batch = batch.to(DEVICE)

    def step() -> None:
        with parts.timed("forward"):
            loss = ds_engine(batch.source, batch.target_input, batch.labels, SMOOTHING)[0]
        with parts.timed("backward"):
            ds_engine.backward(loss / len(batch.labels), scale_wrt_gas=False)
        with parts.timed("optimizer"):
            ds_engine.step()

    return step, num_parameters


def trainer(batch: Batch, dtype: torch.dtype, parts: Parts) -> tuple[Callable[[], None], int]:
    """The step of `deltalm train`, from the batch on the host to the updated weights; on a GPU by CUDA graphs."""
    from deltalm_ds.data.padding import on_ladder
    from deltalm_ds.training.graphs import GraphedForward
    from deltalm_ds.training.sections import Sections
    from deltalm_ds.training.spikes import not_finite_or_one
    from deltalm_ds.training.step import LossSums, train_step

    ds_engine, num_parameters = ds_engine_of(dtype)
    if ON_GPU:
        ds_engine.module.forward = GraphedForward(ds_engine.module)
        batch = batch.padded(on_ladder, pinned=True)
    sums = LossSums(1, DEVICE)

    def step() -> None:
        size = len(batch.labels)
        done = train_step(
            ds_engine, [batch], size, 1e-4, SMOOTHING, (0, 0), lambda: None, Sections(), not_finite_or_one
        )
        sums.add(*done.losses[0])

    return step, num_parameters


def mbart(batch: Batch, dtype: torch.dtype, parts: Parts) -> tuple[Callable[[], None], int]:
    """The peer: transformers' mBART of the same width and size (12 + 9 layers), padded batches, dropout 0.1."""
    from transformers import MBartConfig, MBartForConditionalGeneration

    config = MBartConfig(
        vocab_size=VOCABULARY, d_model=SIZE.width, encoder_layers=SIZE.layers, decoder_layers=SIZE.blocks * 3 // 2,
        encoder_ffn_dim=SIZE.ffn, decoder_ffn_dim=SIZE.ffn, encoder_attention_heads=SIZE.heads,
        decoder_attention_heads=SIZE.heads, dropout=0.1, attention_dropout=0.0, activation_dropout=0.0,
        scale_embedding=False, max_position_embeddings=512,
    )  # fmt: skip
    with DEVICE:
        model = MBartForConditionalGeneration(config).train()
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    update = _Update(model, dtype)
    scale = (len(batch.source.lengths) - 1) // len(SIZE.source)
    source, mask = _padded(batch.source.tokens, SIZE.source * scale, 1)
    inputs, _ = _padded(batch.target_input.tokens, SIZE.target * scale, 1)
    labels, _ = _padded(batch.labels, SIZE.target * scale, -100)
    if mask is not None and mask.all():
        mask = None  # without one, transformers takes the fastest attention that PyTorch has

    def step() -> None:
        with parts.timed("forward"):
            logits = model(input_ids=source, attention_mask=mask, decoder_input_ids=inputs, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), labels.flatten(), label_smoothing=SMOOTHING
            )
        with parts.timed("backward"):
            loss.backward()
        with parts.timed("optimizer"):
            update()

    return step, num_parameters


def _padded(tokens: Tensor, lengths: tuple[int, ...], fill: int) -> tuple[Tensor, Tensor]:
    rows = torch.full((len(lengths), max(lengths)), fill)
    for row, part in zip(rows, tokens[: sum(lengths)].split(list(lengths)), strict=True):
        row[: len(part)] = part
    return rows.to(DEVICE), (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long().to(DEVICE)


MAKERS = {"bare": bare, "torch": bare, "engine": engine, "trainer": trainer, "mbart": mbart, "mbart_kept": mbart}

"""The step that `deltalm plan` estimates from this machine's rates of products and copies, beside measured steps.

Each row trains a size under DeepSpeed on one rank, by the step of `deltalm train`; the rates are measured in the same
process, behind it.

    python -m benchmarks.plan_time                      four sizes in float32
    python -m benchmarks.plan_time --rows tiny:fp32,base:bf16
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from benchmarks.recording import keep, parser, report, row_of_process
from benchmarks.train_step_kinds import join_alone
from deltalm_ds.data.collation import Batch
from deltalm_ds.linear_choice import use_fastest
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.packing import PackedSequences

STEPS = 3
LIMIT_S = 240.0


@dataclass(frozen=True)
class Size:
    """A model, and a batch of equal pairs."""

    config: DeltaLMConfig
    sequences: int
    source_length: int
    target_length: int


def _size(preset: str, vocabulary: int, batch: tuple[int, int, int], **shape: Any) -> Size:
    return Size(DeltaLMConfig.preset(preset, vocabulary_size=vocabulary, **shape), *batch)


_MULTI30K = {"hidden_size": 192, "ffn_size": 512, "num_heads": 4, "num_encoder_layers": 3, "num_decoder_blocks": 3}
SIZES = {
    "tiny": _size("tiny", 4_000, (64, 16, 16)),  # the demo's
    "multi30k": _size("tiny", 8_000, (80, 16, 16), **_MULTI30K),
    "half": _size("base", 64_000, (2, 96, 64), num_encoder_layers=6, num_decoder_blocks=3),
    "base": _size("base", 64_000, (2, 96, 64)),
}
NOTE = (
    f"One rank, ZeRO 1, dropout 0.1; measured: the median of {STEPS} steps, processor time of a thread, as the "
    "rates are. Planned: products at the rates of their own shapes, operands not in caches; passes at 0.4 of a "
    "copy's rate; calls as in layers too narrow to compute anything, and 0.4 ms a parameter of DeepSpeed's hooks, by a "
    "profile of the smallest of these sizes."
)


def main() -> None:
    """Measure every row in a process of its own and show the table."""
    options = parser(__doc__)
    options.add_argument("--rows", default=",".join(f"{size}:fp32" for size in SIZES), help="size:precision")
    options.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.worker:
        print(json.dumps(_compared(*arguments.worker.split(":"))))
        return
    rows = []
    for name in arguments.rows.split(","):
        row = row_of_process(["-m", "benchmarks.plan_time", "--worker", name], LIMIT_S)
        rows.append(keep(arguments, "plan_time", {"row": name, **row}))
    report(arguments, "Planned steps beside measured ones", "python -m benchmarks.plan_time", rows, [NOTE])


def _compared(name: str, precision: str) -> dict[str, Any]:
    from deltalm_ds.training.network import Topology
    from deltalm_ds.training.parameter_groups import WeightCounts
    from deltalm_ds.training.step_time import Step, step_seconds
    from deltalm_ds.training.step_work import MicroBatch
    from deltalm_ds.training.this_machine import this_machine

    size = SIZES[name]
    ds_engine, batch = _ds_engine(size, precision), _batch(size)
    measured = _measured(ds_engine, batch)
    shape = MicroBatch(len(batch.source.tokens), len(batch.labels), size.sequences)
    weights = WeightCounts.of(ds_engine.module)
    step = Step(size.config, _config(precision), weights.trained, weights.tensors, shape, 1)
    machine = this_machine(torch.bfloat16 if precision == "bf16" else torch.float32)
    planned = step_seconds(step, machine, Topology(1, 1, math.inf, math.inf))
    total = sum(planned.values())
    compared = {"measured s": median(measured), "least s": min(measured), "planned s": total}
    ratio = {"planned / measured": total / median(measured)}
    return {"tokens": sum(shape[:2]), **compared, **ratio, "copy GB/s": machine.copy_rate / 1e9, **planned}


def _config(precision: str) -> dict[str, Any]:
    from deltalm_ds.files import read_json
    from deltalm_ds.training.deepspeed_config import config_path, for_ranks

    return for_ranks(read_json(config_path(f"{precision}_zero1")), 1, on_cpu=True)


def _ds_engine(size: Size, precision: str) -> Any:
    from deltalm_ds.recipe.loading import load_recipe, recipe_path
    from deltalm_ds.training.deepspeed_engine import initialize

    join_alone()
    ds_engine = initialize(
        DeltaLM(size.config), load_recipe(recipe_path("cldr_en_de"), [f"deepspeed={precision}_zero1"])
    )
    use_fastest(ds_engine.module)
    return ds_engine


def _batch(size: Size) -> Batch:
    generator = torch.Generator().manual_seed(1)
    source, target = (
        PackedSequences.from_sequences(
            torch.randint(4, size.config.vocabulary_size, (size.sequences, length), generator=generator).tolist()
        )
        for length in (size.source_length, size.target_length)
    )
    return Batch(source, target, target.tokens.clone(), torch.zeros(size.sequences, dtype=torch.int64)).padded()


def _measured(ds_engine: Any, batch: Batch) -> list[float]:
    """Processor seconds of steps by each thread, after two that the heap grows in."""
    from deltalm_ds.training.sections import Sections
    from deltalm_ds.training.spikes import not_finite_or_one
    from deltalm_ds.training.step import train_step

    seconds = []
    for step in range(2 + STEPS):
        start = time.process_time()
        train_step(
            ds_engine, [batch], len(batch.labels), 1e-4, 0.1, (0, step), lambda: None, Sections(), not_finite_or_one
        )
        seconds.append((time.process_time() - start) / torch.get_num_threads())
    return seconds[2:]


if __name__ == "__main__":
    main()

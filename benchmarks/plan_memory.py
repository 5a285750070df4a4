"""The memory that `deltalm plan` estimates beside what two CPU ranks of training really take, by the system's count.

python -m benchmarks.plan_memory                    three sizes, stages 1 to 3, float32 and bfloat16
python -m benchmarks.plan_memory --cells base:1:fp32
"""

import multiprocessing
import os
import queue
import resource
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.recording import FAILED, keep, parser, report
from deltalm_ds.data.collation import Batch
from deltalm_ds.data.padding import MULTIPLE
from deltalm_ds.files import read_json
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.empty import empty_model
from deltalm_ds.model.packing import PackedSequences
from deltalm_ds.recipe.loading import load_recipe, recipe_path
from deltalm_ds.training.checkpoint import Share
from deltalm_ds.training.deepspeed_config import config_path, for_ranks
from deltalm_ds.training.deepspeed_engine import initialize, start_distributed
from deltalm_ds.training.parameter_groups import WeightCounts
from deltalm_ds.training.plan import memory_of_rank
from deltalm_ds.training.rendezvous import free_port
from deltalm_ds.training.sections import Sections
from deltalm_ds.training.spikes import not_finite_or_one
from deltalm_ds.training.step import LossSums, train_step

RANKS, STEPS = 2, 3  # the heap has its size after two steps
LIMIT_S = 1800.0  # of a cell, on a busy machine
PRECISIONS, STAGES = ("fp32", "bf16"), (1, 2, 3)


@dataclass(frozen=True)
class Size:
    """A model, and a micro-batch of so many sequences of so many tokens on each side."""

    config: DeltaLMConfig
    sequences: int
    length: int


def _size(vocabulary: int, sequences: int, length: int, **shape: int) -> Size:
    return Size(DeltaLMConfig.preset("base", vocabulary_size=vocabulary, **shape), sequences, length)


_HALF = {"num_encoder_layers": 6, "num_decoder_blocks": 3}
SIZES = {
    "small": _size(32_000, 12, 64, hidden_size=512, ffn_size=2048, num_heads=8, **_HALF),
    "half": _size(64_000, 4, 64, **_HALF),
    "base": _size(64_000, 4, 48),
}
NOTE = (
    f"{RANKS} ranks, the larger of their peaks over {STEPS} steps, each with the copy for a checkpoint; planned: "
    "`memory_of_rank`, the libraries of a process (420 MiB) included. The states are most of it: activations and loss "
    "are the column of that name."
)


def main() -> None:
    """Measure every cell in processes of its own and show the table."""
    options = parser(__doc__)
    cells = [f"{size}:{stage}:{precision}" for size in SIZES for stage in STAGES for precision in PRECISIONS]
    options.add_argument("--cells", default=",".join(cells), help="size:stage:precision, comma-separated")
    arguments = options.parse_args()
    rows = [keep(arguments, "plan_memory", _row(*cell.split(":"))) for cell in arguments.cells.split(",")]
    report(arguments, "Planned memory beside the measured peak", "python -m benchmarks.plan_memory", rows, [NOTE])


def _row(size: str, stage: str, precision: str) -> dict[str, Any]:
    named = {"size": size, "stage": int(stage), "precision": precision}
    planned = planned_bytes(SIZES[size], f"{precision}_zero{stage}")
    peaks = _peaks(f"{size}:{stage}:{precision}")
    if not isinstance(peaks, list):
        return named | {FAILED: peaks}
    gib = 2**30
    states = {"activations and loss GiB": (planned["activations"] + planned["loss"]) / gib}
    compared = {"planned GiB": planned["total"] / gib, "measured GiB": max(peaks) / gib}
    return named | states | compared | {"planned / measured": planned["total"] / max(peaks)}


def planned_bytes(size: Size, ds_config_name: str) -> dict[str, int]:
    """What the plan says of a rank of `RANKS`."""
    ds_config = for_ranks(read_json(config_path(ds_config_name)), RANKS, on_cpu=True)
    model = empty_model(size.config)
    tokens = size.sequences * size.length
    weights, sizes = WeightCounts.of(model), [(tokens, tokens)]
    return memory_of_rank(ds_config, size.config, weights, sizes, RANKS, torch.device("cpu"), has_graphs=False)


def _peaks(cell: str) -> list[int] | str:
    """Peak bytes of each rank, or why one of them failed. Ranks are forks, so that imports are paid once."""
    port = free_port()
    forked = multiprocessing.get_context("fork")
    told: multiprocessing.Queue[int] = forked.Queue()
    ranks = [forked.Process(target=_rank, args=(rank, port, cell, told), daemon=True) for rank in range(RANKS)]
    for rank in ranks:
        rank.start()
    try:
        return [told.get(timeout=LIMIT_S) for _ in ranks]
    except queue.Empty:
        return f"no answer of every rank in {LIMIT_S:.0f} s"
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()


def _rank(rank: int, port: int, cell: str, told: "multiprocessing.Queue[int]") -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()})
    told.put(_peak_of_training(*cell.split(":")))


def _peak_of_training(size_name: str, stage: str, precision: str) -> int:
    """The most bytes that this process, one of the ranks, had while it trained."""
    torch.set_num_threads(1)
    start_distributed()
    size = SIZES[size_name]
    recipe = load_recipe(recipe_path("cldr_en_de"), [f"deepspeed={precision}_zero{stage}"])
    ds_engine = initialize(DeltaLM(size.config), recipe)
    side = PackedSequences.from_sequences([[5] * size.length] * size.sequences)
    batch = Batch(side, side, side.tokens.clone(), torch.zeros(size.sequences, dtype=torch.int64)).padded()
    assert len(batch.labels) <= size.sequences * size.length + MULTIPLE
    sums = LossSums(1, ds_engine.device)
    share = None
    for step in range(STEPS):
        tokens = RANKS * len(batch.labels)
        done = train_step(ds_engine, [batch], tokens, 1e-4, 0.1, (0, step), lambda: None, Sections(), not_finite_or_one)
        sums.add(*done.losses[0])
        share = share or Share(ds_engine)
        share.copy()
    torch.distributed.barrier()  # a rank that leaves first looks to the other like one that crashed
    torch.distributed.destroy_process_group()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()

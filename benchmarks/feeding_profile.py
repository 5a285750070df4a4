"""Where a micro-batch's time goes, ours beside `torch-arrays` of benchmarks/feeding.py: `make bench-feeding_profile`.

Both build, frame and pack rows by the same functions; what differs is how rows are chosen, read and batched. A stage's
time is its own, without that of stages it calls; the rest is of ours the little between them, of torch its sampler and
the cutting of rows one by one. The page cache is warm.
"""

import time
from pathlib import Path
from typing import Any

from benchmarks import feeding_loaders
from benchmarks.feeding import ASKED, SCRATCH, build_rows, in_own_process, load_into_cache
from benchmarks.recording import parser, report
from benchmarks.stages import REST, StageClock
from deltalm_ds.arrays.ragged import RaggedRows
from deltalm_ds.data import stream
from deltalm_ds.data.objectives import OBJECTIVES
from deltalm_ds.data.sampler import Sampler

LOADERS = {"ours": "ours", "torch-arrays": "torch"}  # and what its data are called
SHARED = ("objective", "framing", "packing")
OURS_ALONE = ("choosing samples", "choosing rows", "lengths and limits", "dealing by length")


def main() -> None:
    """Time the stages of both loaders, each in a process of its own, and show the nanoseconds a token."""
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=400_000, help="pairs")
    options.add_argument("--seconds", type=float, default=3, help="how long each loader is timed")
    options.add_argument("--work", type=Path, default=SCRATCH, help="where the data lies")
    arguments = options.parse_args()
    columns = {}
    for loader, data in LOADERS.items():
        directory = arguments.work / f"{data}-{arguments.rows}"
        in_own_process(build_rows, directory, arguments.rows)
        for objective in ASKED:
            case = directory, loader, objective, arguments.seconds
            columns[f"{objective}, {loader}"] = in_own_process(_profile, *case)
    stages = sorted(set().union(*columns.values()), key=lambda stage: (stage in SHARED, stage))
    rows: list[dict[str, Any]] = [
        {"ns a token": stage} | {name: times.get(stage, 0.0) for name, times in columns.items()} for stage in stages
    ]
    rows.append({"ns a token": "all"} | {name: sum(times.values()) for name, times in columns.items()})
    title = f"Where the time of feeding goes: {arguments.rows:,} pairs, warm"
    report(arguments, title, "python -m benchmarks.feeding_profile", rows, [_limit(columns, name) for name in ASKED])


def _limit(columns: dict[str, dict[str, float]], objective: str) -> str:
    ours, torch = (columns[f"{objective}, {loader}"] for loader in LOADERS)
    all_ours, all_torch = sum(ours.values()), sum(torch.values())
    alone, shared = (sum(ours[stage] for stage in stages) for stages in (OURS_ALONE, SHARED))
    return (
        f"{objective}: {all_torch / all_ours:.2f} times torch's speed; 3 times would leave "
        f"{all_torch / 3 - shared:.1f} ns a token for what is not shared, which takes {all_ours - shared:.1f}. "
        f"Of that, {alone:.1f} ns go to what torch's loader does not do: mixing corpora, an order "
        "without a stored list, limits, and micro-batches of a number of tokens; without these ours would have "
        f"{all_torch / (all_ours - alone):.1f} times its speed."
    )


def _profile(directory: Path, loader: str, objective: str, seconds: float) -> dict[str, float]:
    """Nanoseconds a token of each stage."""
    clock = StageClock()
    for owner, name, stage in [
        (Sampler, "draw", "choosing samples"),
        (stream, "permuted_rows", "choosing rows"),
        (stream.BatchBuilder, "select", "lengths and limits"),
        (stream, "deal_micro_batches", "dealing by length"),
        (stream.BatchBuilder, "_read_column", "reading"),
        (RaggedRows, "from_rows", "reading"),
        (OBJECTIVES[objective], "build", "objective"),
        *((module, "frame", "framing") for module in (stream, feeding_loaders)),
        *((module, "collate", "packing") for module in (stream, feeding_loaders)),
    ]:
        clock.time(owner, name, stage)
    load_into_cache(directory)
    batches, num_tokens = feeding_loaders.FEEDERS[loader](directory, objective), 0
    for _ in range(100):
        next(batches)
    clock.seconds.clear()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(feeding_loaders.MICRO_BATCHES):
            batch = next(batches)
            num_tokens += len(batch.source.tokens) + len(batch.labels)
    clock.go_to(REST)
    return {stage: spent * 1e9 / num_tokens for stage, spent in clock.seconds.items()}


if __name__ == "__main__":
    main()

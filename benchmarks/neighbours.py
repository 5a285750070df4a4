"""Beside a busy neighbour, with waiting threads that spin and that sleep: `make bench-neighbours`.

Translating alone, beside a Python loop, and beside two programs that multiply with as many threads as there are cores;
training alone. Each with waiting threads that spin for ever, with OpenMP's default (they spin for milliseconds), that
sleep at once, and as our entry points have it: threads that soon sleep, and as many of them as others leave free. The
fair share is the best rate alone times the part of the cores that a program of as many threads as cores gets where all
busy threads get the same. Run it on a machine with nothing else to do.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.recording import parser, report
from deltalm_ds.threads import SET_BY_USERS, WAITING

SETTINGS = {
    "spin": {"OMP_WAIT_POLICY": "active"},
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "ours": WAITING,
}
SPIN = "while True: pass"
TRAIN = "import torch\na = torch.randn(512, 512)\nwhile True: a @ a"
WORKS = (  # what, and its neighbours
    ("translate", ()),
    ("translate", (SPIN,)),
    ("translate", (TRAIN, TRAIN)),
    ("train", ()),
)
NAMES = {SPIN: "a Python loop", TRAIN: "torch with as many threads as cores"}
SENTENCES, LENGTH, STEPS = 200, 24, 8
ROUNDS = 3


def main() -> None:
    """Run every work under every setting, in turn, and show the table."""
    options = parser(__doc__)
    options.add_argument("--preset", default="base", help="size of the model")
    options.add_argument("--vocabulary", type=int, default=32_000, help="its ids")
    options.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.worker:
        print(json.dumps(_measure(arguments)))
        return
    alone: dict[tuple[str, str], float] = {}
    rows = []
    for work, neighbours in WORKS:
        for setting in SETTINGS:
            rate = _rate(arguments, work, neighbours, setting)
            if not neighbours:
                alone[work, setting] = rate
            best_alone = max(value for (name, _), value in alone.items() if name == work)
            rows.append(_row(work, neighbours, setting, rate, best_alone))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    title = f"Beside busy neighbours, DeltaLM-{arguments.preset}, {os.cpu_count()} cores"
    note = "Lines (translating, beam 4) or tokens (training, a plain loop) a second: median of 3 processes."
    report(arguments, title, " ".join(["python -m benchmarks.neighbours", *sys.argv[1:]]), rows, [note])


def _row(work: str, neighbours: tuple[str, ...], setting: str, rate: float, best_alone: float) -> dict[str, Any]:
    cores = os.cpu_count() or 1
    wanted = sum(1 if neighbour == SPIN else cores for neighbour in neighbours)
    share = best_alone * cores / (cores + wanted)  # ours wants them all
    return {
        "work": work,
        "neighbours": ", ".join(f"{neighbours.count(n)} x {NAMES[n]}" for n in dict.fromkeys(neighbours)) or "none",
        "waiting threads": setting,
        "rate": rate,
        "of the best alone": rate / best_alone,
        "of the fair share": rate / share,
    }


def _rate(arguments: argparse.Namespace, work: str, neighbours: tuple[str, ...], setting: str) -> float:
    command = [sys.executable, "-m", "benchmarks.neighbours", "--worker", work]
    command += ["--preset", arguments.preset, "--vocabulary", str(arguments.vocabulary)]
    environment = {name: value for name, value in os.environ.items() if name not in SET_BY_USERS}
    rates = []
    for _ in range(ROUNDS):
        with running(neighbours):
            worker = subprocess.run(
                command, env=environment | SETTINGS[setting], stdout=subprocess.PIPE, text=True, check=True
            )
        rates.append(float(json.loads(worker.stdout.splitlines()[-1])))
    return sorted(rates)[len(rates) // 2]


@contextmanager
def running(neighbours: tuple[str, ...]) -> Iterator[None]:
    """Programs that run meanwhile, each a Python source; they are busy when this begins."""
    processes = [subprocess.Popen([sys.executable, "-c", code]) for code in neighbours]
    try:
        time.sleep(2.0 if neighbours else 0.0)  # until they are busy
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _measure(arguments: argparse.Namespace) -> float:
    """What a worker does, once to warm up and once timed: its rate."""
    import torch

    from deltalm_ds.model.config import DeltaLMConfig
    from deltalm_ds.model.deltalm import DeltaLM

    torch.manual_seed(0)
    model = DeltaLM(DeltaLMConfig.preset(arguments.preset, vocabulary_size=arguments.vocabulary))
    run, amount = (_translating if arguments.worker == "translate" else _training)(model, arguments.vocabulary)
    run()
    start = time.perf_counter()
    run()
    return amount / (time.perf_counter() - start)


def _translating(model: Any, vocabulary: int) -> tuple[Callable[[], object], int]:
    """Outputs of one length, whatever the random weights say."""
    import torch

    from deltalm_ds.generation.engines.pytorch import engine_of_frozen
    from deltalm_ds.generation.interface import SearchOptions
    from deltalm_ds.threads import threads_to_take

    if WAITING.items() <= os.environ.items():  # as our entry points do it
        torch.set_num_threads(threads_to_take())
    sources = torch.randint(4, vocabulary, (SENTENCES, LENGTH)).tolist()
    options = SearchOptions(beam=4, min_length=LENGTH, max_length=LENGTH)
    engine = engine_of_frozen(model)
    batches = [sources[start : start + 25] for start in range(0, SENTENCES, 25)]
    return lambda: [engine.generate(batch, options) for batch in batches], SENTENCES


def _training(model: Any, vocabulary: int) -> tuple[Callable[[], object], int]:
    import torch

    from deltalm_ds.allocator import keep_freed_memory
    from deltalm_ds.linear_choice import use_fastest
    from deltalm_ds.model.packing import PackedSequences

    keep_freed_memory()
    use_fastest(model.train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    source, target = (
        PackedSequences.from_sequences(torch.randint(4, vocabulary, (8, length)).tolist()) for length in (64, 40)
    )

    def run() -> None:
        for _ in range(STEPS):
            model(source, target, target.tokens, 0.1).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return run, STEPS * 8 * (64 + 40)


if __name__ == "__main__":
    main()

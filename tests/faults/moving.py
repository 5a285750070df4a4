"""A long run that is killed and moved between 1, 2 and 4 ranks on the way, beside one that nobody touches.

    python -m tests.faults.moving --steps 20000 --out moving

After every `--leg` steps the moved run is killed (-9, every second time stopped by SIGTERM) and goes on with another
number of ranks, ZeRO stage, micro-batch and accumulation. Printed are relative differences of the losses: behind the
first move, where they are those of another order of sums, and later, when training has made them grow as it does
with any other rounding. There is no dropout: its masks depend on how a batch is dealt to ranks. What happened is in
OUT/outcomes.jsonl; started again, it goes on.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

from tests.faults.tiny import Outcomes, Training, has_ended, records, write_experiment

# ranks, and what else is another one from leg to leg
LEGS = (
    (1, "deepspeed=fp32_zero1", "batch.min_micro_batches=1", "batch.micro_batch_tokens=160"),
    (2, "deepspeed=fp32_zero2", "batch.min_micro_batches=1", "batch.micro_batch_tokens=90"),
    (4, "deepspeed=fp32_zero1", "batch.min_micro_batches=1", "batch.micro_batch_tokens=160"),
    (2, "deepspeed=fp32_zero3", "batch.min_micro_batches=2", "batch.micro_batch_tokens=120"),
    (1, "deepspeed=fp32_zero2", "batch.min_micro_batches=3", "batch.micro_batch_tokens=64"),
)
LONGEST_S = 3600.0


def main(arguments: list[str] | None = None) -> int:
    """Train both to their end, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--leg", type=int, default=2000, help="steps between two moves")
    parser.add_argument("--out", type=Path, default=Path("moving"))
    options = parser.parse_args(arguments)
    training = {"max_steps": options.steps, "save_every": max(10, options.leg // 4)}
    schedule = {"warmup_steps": max(20, options.steps // 50)}
    model = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    recipe = write_experiment(options.out.absolute(), model=model, training=training, schedule=schedule)
    outcomes = Outcomes(options.out / "outcomes.jsonl")
    still, moved = options.out / "still", options.out / "moved"
    while not has_ended(still, options.steps):
        _train(recipe, still, 0, options.steps, options.steps, outcomes)
    while not has_ended(moved, options.steps):
        number = sum(line["run"] == "moved" for line in outcomes.lines)
        _train(recipe, moved, number, (number + 1) * options.leg, options.steps, outcomes)
    return _compare(moved, still, options.steps, outcomes)


def _train(recipe: Path, run: Path, number: int, until: int, steps: int, outcomes: Outcomes) -> None:
    """One start of a run, ended once its log has so many steps, unless these are all.

    Args:
        recipe: what is trained.
        run: where.
        number: of the start, which decides its circumstances and how it is ended.
        until: the step.
        steps: of the whole run.
        outcomes: where it is noted.
    """
    ranks, *overrides = LEGS[number % len(LEGS)]
    began = time.monotonic()
    training = Training(recipe, run, ranks, *overrides)
    ends = "by itself"
    if until < steps and training.await_that(lambda: _is_logged(run, until), LONGEST_S):
        ends = "SIGTERM" if number % 2 else "SIGKILL"
        for process in [training.starter] if number % 2 else training.processes()["ranks"]:
            process.send_signal(getattr(signal, ends))
    code = training.await_end(LONGEST_S)
    if ends == "by itself" and code:
        raise AssertionError(training.messages[-3000:])
    seconds = round(time.monotonic() - began)
    outcomes.add(run=run.name, ranks=ranks, settings=overrides, ends=ends, code=code, seconds=seconds)


def _is_logged(run: Path, step: int) -> bool:
    """Whether one of the last records is of this step or a later one."""
    time.sleep(0.2)
    path = run / "metrics.jsonl"
    if not path.exists():
        return False
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        lines = file.read().split(b"\n")
    return any(int(line.split(b",")[0].removeprefix(b'{"step": ')) >= step for line in lines[1:-1])


def _compare(moved: Path, still: Path, steps: int, outcomes: Outcomes) -> int:
    ours, theirs = records(moved, "train"), records(still, "train")
    missing = [step for step in range(1, steps + 1) if step not in ours or step not in theirs]
    if missing:
        print(f"{len(missing)} steps have no record, such as {missing[0]}")
        return 1
    apart = {step: abs(ours[step]["loss"] / theirs[step]["loss"] - 1) for step in ours}
    moved_at = min((step for step in apart if apart[step] > 0), default=steps)
    for following in (10, 100, 1000):
        largest = max(apart[step] for step in apart if step < moved_at + following)
        print(f"up to {following} steps behind the first step that differs, {moved_at}: at most {largest:.2e} apart")
    for begin in range(0, steps, max(steps // 10, 1)):
        leg = [step for step in apart if begin < step <= begin + max(steps // 10, 1)]
        mean, other = (sum(run[step]["loss"] for step in leg) / len(leg) for run in (ours, theirs))
        largest = max(apart[step] for step in leg)
        print(f"steps {leg[0]} to {leg[-1]}: at most {largest:.2e} apart, their mean loss {abs(mean / other - 1):.2e}")
    seconds = {name: sum(one["seconds"] for one in outcomes.lines if one["run"] == name) for name in ("still", "moved")}
    print(f"undisturbed in {seconds['still']} s; moved in {seconds['moved']} s, {len(outcomes.lines) - 1} starts")
    return 0


if __name__ == "__main__":
    sys.exit(main())

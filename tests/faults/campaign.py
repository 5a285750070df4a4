"""Kill runs again and again, at any moment, and see whether anything comes out differently.

    python -m tests.faults.campaign --kills 100 --out faults

A run is killed `KILLS_PER_RUN` times, on one rank or on two, goes on from there each time, and at last is left to end.
Its losses at every step, its validations and the files of its last weights must be those of a run that nobody
disturbed, to the last digit. Between two starts its newest checkpoint is damaged now and then. What happened is in
OUT/outcomes.jsonl; started again, the campaign goes on behind it. Everything random comes from the number of the kill.
"""

import argparse
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from deltalm_ds.errors import STOPPED_EXIT_CODE
from deltalm_ds.files import read_json
from deltalm_ds.recipe.loading import load_recipe
from deltalm_ds.runs.checkpoints import checkpoint_directories, checkpoint_name
from tests.faults.tiny import Outcomes, Training, differences, has_ended, records, write_experiment

KILLS_PER_RUN = 10
STEPS = 500  # more than a run gets through while it is killed
RANKS = (2, 1)  # of the runs, in turn
# what is killed, with -9 unless it is a signal; and when
TARGETS = ("ranks", "starter", "SIGTERM", "everything", "SIGTERM everywhere", "one rank", "launcher")
MOMENTS = ("training", "saving", "starting")
START_S, TRAINING_S, SAVING_S = 9.0, 1.5, 0.05  # the moment is anywhere in the first so many seconds
DAMAGES = ("none", "truncated", "none", "flipped bit", "none", "deleted")


@dataclass(frozen=True)
class Kill:
    """One kill, from its number alone."""

    number: int
    target: str
    moment: str
    delay: float
    damage: str

    @classmethod
    def of(cls, number: int) -> "Kill":
        """The kill of a number: targets, moments and damages in turn, each with the others; the delay is random."""
        target = TARGETS[number % len(TARGETS)]
        moment = MOMENTS[(number + number // len(TARGETS)) % len(MOMENTS)]
        longest = {"training": TRAINING_S, "saving": SAVING_S, "starting": START_S}[moment]
        damage = DAMAGES[(number // 2) % len(DAMAGES)]
        return cls(number, target, moment, round(random.Random(number).uniform(0, longest), 3), damage)


def main(arguments: list[str] | None = None) -> int:
    """Go on until so many kills were made and every run was compared; 1 if one of them differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=STEPS, help="of each run; the same for a campaign that goes on")
    parser.add_argument("--out", type=Path, default=Path("faults"))
    options = parser.parse_args(arguments)
    began = time.monotonic()
    model = {"dropout": 0.2, "attention_dropout": 0.1, "activation_dropout": 0.1}
    recipe = write_experiment(options.out.absolute(), model=model, training={"max_steps": options.steps})
    outcomes = Outcomes(options.out / "outcomes.jsonl")
    before = len(_kills(outcomes))
    while len(_kills(outcomes)) < options.kills or _kills_of_run(outcomes):
        is_due = _kills_of_run(outcomes) < KILLS_PER_RUN and len(_kills(outcomes)) < options.kills
        run, ranks = _current(outcomes, options.out)
        if is_due and not has_ended(run, options.steps):
            _kill_once(Kill.of(len(_kills(outcomes))), recipe, run, ranks, outcomes)
        else:
            _compare(recipe, run, ranks, options.steps, outcomes)
    return _summarise(outcomes, time.monotonic() - began, before)


def _kills(outcomes: Outcomes) -> list[dict]:
    return [line for line in outcomes.lines if "number" in line]


def _comparisons(outcomes: Outcomes) -> list[dict]:
    return [line for line in outcomes.lines if "differences" in line]


def _kills_of_run(outcomes: Outcomes) -> int:
    """Of the run at hand, which is the one behind the last that was compared."""
    number = len(_comparisons(outcomes))
    return sum(line["run"] == f"run_{number:03d}" for line in _kills(outcomes))


def _current(outcomes: Outcomes, out: Path) -> tuple[Path, int]:
    number = len(_comparisons(outcomes))
    return out / f"run_{number:03d}", RANKS[number % len(RANKS)]


def _kill_once(kill: Kill, recipe: Path, run: Path, ranks: int, outcomes: Outcomes) -> None:
    """Damage, start, wait for the moment, kill, wait for the end of all processes; record it."""
    damaged = _damage(run, kill)
    training = Training(recipe, run, ranks)
    came = _await_moment(training, kill)
    had_started = training.has_started
    killed = _signal(training, kill.target) if came else 0
    code = training.await_end()
    if damaged and training.has_started:
        told = any(str(damaged) in line and "passed over" in line for line in training.messages.splitlines())
        assert told, f"{damaged} was damaged ({kill.damage}), and nobody said so: {training.messages}"
    if killed:
        _check_end(kill.target, training, code, had_started)
        values = asdict(kill) | {"damage": kill.damage if damaged else "none"}
        outcomes.add(run=run.name, ranks=ranks, code=code, had_started=had_started, **values)
    else:
        assert code == 0, f"{run} ended by itself with exit code {code}: {training.messages[-3000:]}"


def _check_end(target: str, training: Training, code: int, had_started: bool) -> None:
    """A stop, or the end of what started them, lets ranks save where they stand; what was killed is no success."""
    run = training.run
    if not had_started or has_ended(run, load_recipe(run / "recipe.yaml").training.max_steps):
        return
    is_stop = target.startswith("SIGTERM")
    if is_stop or target == "starter":
        saved = [path.name for path in checkpoint_directories(run)]  # a damaged one of a later step may be there, too
        assert checkpoint_name(max(records(run, "train"))) in saved, training.messages
    # ranks whose launcher is gone save, if what started it leaves them the time
    as_expected = code != 0 if target == "launcher" else (code == STOPPED_EXIT_CODE) == is_stop and code != 0
    assert as_expected, (code, training.messages[-3000:])


def _await_moment(training: Training, kill: Kill) -> bool:
    """Wait for the moment of a kill; False if the start ended before."""
    if kill.moment == "training" and not training.await_that(lambda: training.has_started):
        return False
    if kill.moment == "saving":
        before = set(_saves(training.run))
        if not training.await_that(lambda: bool(set(_saves(training.run)) - before)):
            return False
    time.sleep(kill.delay)
    return training.starter.poll() is None


def _saves(run: Path) -> list[str]:
    """Checkpoints that are being written."""
    return [path.name for path in (run / "checkpoints").glob(".step_*.tmp")]


def _signal(training: Training, target: str) -> int:
    """Kill; how many processes that were. Early in a start there may be nothing but what starts the ranks."""
    processes = training.processes()
    everything = [process for all_of_a_kind in processes.values() for process in all_of_a_kind]
    victims = {
        "ranks": processes["ranks"],
        "one rank": processes["ranks"][-1:],
        "launcher": processes["launcher"],
        "everything": everything,
        "SIGTERM everywhere": everything,  # as schedulers do
    }.get(target) or processes["starter"]
    for process in victims:
        try:
            process.send_signal(signal.SIGTERM if target.startswith("SIGTERM") else signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    return len(victims)


def _damage(run: Path, kill: Kill) -> Path | None:
    """Damage the newest checkpoint, where there is an older one to go on from; returns it."""
    checkpoints = checkpoint_directories(run)
    if kill.damage == "none" or len(checkpoints) < 2:
        return None
    rng, checkpoint = random.Random(kill.number), checkpoints[-1]
    files = [checkpoint / name for name in sorted(read_json(checkpoint / "state.json")["files"])]
    path = rng.choice([file for file in files if file.exists()])  # an earlier kill may have deleted one
    content = bytearray(path.read_bytes())
    if kill.damage == "deleted":
        path.unlink()
        return checkpoint
    if kill.damage == "truncated":
        content = content[: rng.randrange(len(content))]
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return checkpoint


def _compare(recipe: Path, run: Path, ranks: int, steps: int, outcomes: Outcomes) -> None:
    """Let a run end, and compare it with the one on as many ranks that nobody disturbed."""
    expected = run.with_name(f"undisturbed_on_{ranks}")
    for one in (expected, run):
        if not has_ended(one, steps):
            training = Training(recipe, one, ranks)
            code = training.await_end(600 + steps)
            assert code == 0, training.messages[-3000:]
    outcomes.add(
        run=run.name, ranks=ranks, kills=_kills_of_run(outcomes), differences=differences(run, expected, steps)[:5]
    )


def _summarise(outcomes: Outcomes, seconds: float, before: int) -> int:
    """Print counts and rate; 1 if a run differs."""
    kills, comparisons = _kills(outcomes), _comparisons(outcomes)
    for key in ("target", "moment", "ranks", "damage"):
        print(f"{key}: " + ", ".join(f"{count} {name}" for name, count in Counter(one[key] for one in kills).items()))
    differing = [one for one in comparisons if one["differences"]]
    made = len(kills) - before
    print(f"{len(kills)} kills in {len(comparisons)} runs ({made} now, {made / max(seconds, 1) * 60:.1f} a minute).")
    equal = len(comparisons) - len(differing)
    print(f"{equal} runs equal the undisturbed one to the last digit, {len(differing)} do not.")
    for one in differing:
        print(one)
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())

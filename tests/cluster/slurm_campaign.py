"""The batch scripts as they are, in a real SLURM, with everything that happens to jobs; and the same work under mpirun.

    python -m tests.cluster.slurm_campaign --out DIR [--only NAME ...]

needs root, and SLURM with munge installed. Each case (`slurm_cases.py`) is a run of its own on hosts of its own
(`hosts.py`), which must come again or end as docs/slurm.md says, and where it goes on, with the losses of a run that
nobody disturbed. The outcomes are in DIR/outcomes.jsonl; started again, the cases that have none are made.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tests.cluster import slurm_work
from tests.cluster.hosts import Hosts
from tests.cluster.slurm_cases import CASES, Case
from tests.cluster.slurm_cluster import Slurm
from tests.faults.tiny import Outcomes, Training, differences, has_ended, records

NUM_HOSTS, TOLERANCE = 4, 1e-6
UNDISTURBED = "undisturbed"


def main(arguments: list[str] | None = None) -> int:
    """Make the cases that have no outcome; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="outside /tmp, /run and /dev/shm")
    parser.add_argument("--only", nargs="*", choices=[*CASES, *slurm_work.WORK], help="default: all without an outcome")
    options = parser.parse_args(arguments)
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    outcomes = Outcomes(out / "outcomes.jsonl")
    done = {line["case"] for line in outcomes.lines if "failed" not in line}
    for name in options.only or [name for name in (*CASES, *slurm_work.WORK) if name not in done]:
        began = time.monotonic()
        try:
            found = _train(name, out) if name in CASES else slurm_work.WORK[name].make(out)
            outcomes.add(case=name, seconds=round(time.monotonic() - began), **found)
        except (AssertionError, RuntimeError, psutil.Error) as error:
            outcomes.add(case=name, failed=f"{type(error).__name__}: {error}")
    newest = {line["case"]: line for line in outcomes.lines}
    _print_table(newest)
    return any("failed" in newest[name] for name in options.only or newest)


def _train(name: str, out: Path) -> dict[str, Any]:
    """A run under SLURM to which something happens."""
    case, recipe = CASES[name], slurm_work.exact_experiment(out)
    if name != UNDISTURBED and not has_ended(out / "runs" / UNDISTURBED, slurm_work.STEPS):
        _train(UNDISTURBED, out)
    run = slurm_work.fresh(out / "runs" / name)
    os.environ["CASE_RECIPE"] = str(recipe)
    state = out / "slurm" / name
    with Hosts(out / "hosts", NUM_HOSTS) as hosts, Slurm(hosts, state, case.gpus, case.settings) as slurm:
        job = slurm.submit(case.script, *case.options, RECIPE=str(recipe), RUN=str(run), **case.environment)
        facts = case.act(job, run)
        assert case.said in job.messages, f"{case.said!r} is not in {job.messages[-3000:]}"
    found: dict[str, Any] = {"state": facts["JobState"], "restarts": int(facts["Restarts"])}
    found["starts"] = sum(json.loads(line)["kind"] == "start" for line in _lines(run / "events.jsonl"))
    return found | {"apart": compare(out, run, recipe, same_ranks=case.gpus == 1)} if case.is_whole else found


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def compare(out: Path, run: Path, recipe: Path, same_ranks: bool) -> float:
    """The largest relative difference of a loss from a run on this machine; on the same ranks, nothing may differ.

    Raises:
        AssertionError: it is too large, or something differs.
    """
    one_host, undisturbed = (out / "runs" / name for name in ("one_host", UNDISTURBED))
    if not has_ended(one_host, slurm_work.STEPS):
        training = Training(recipe, slurm_work.fresh(one_host), 1)
        assert training.await_end() == 0, training.messages[-3000:]
    if same_ranks:
        assert (found := differences(run, undisturbed, slurm_work.STEPS)) == [], found[:5]
    ours, theirs = (records(one, "train") for one in (run, one_host))
    assert ours.keys() == theirs.keys() and len(ours) == slurm_work.STEPS
    apart = max(abs(ours[step]["loss"] / theirs[step]["loss"] - 1) for step in ours)
    assert apart <= TOLERANCE, f"losses are {apart:.1e} apart from one host's"
    return float(f"{apart:.1e}")


def _print_table(newest: dict[str, dict[str, Any]]) -> None:
    """Of all cases, as Markdown."""
    print(
        "| what happened | the job | starts | largest difference of a loss from one host's | s |\n|---|---|---|---|---|"
    )
    whats: dict[str, Case | slurm_work.Work] = {**CASES, **slurm_work.WORK}
    for name, case in whats.items():
        if line := newest.get(name):
            values = [line.get(key, "") for key in ("state", "starts", "apart", "seconds")]
            print(f"| {case.what} | {' | '.join(map(str, ['FAILED'] if 'failed' in line else values))} |")


if __name__ == "__main__":
    sys.exit(main())

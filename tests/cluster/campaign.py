"""The demo's fine-tuning on the hosts of a cluster, and everything that happens to one.

    python -m tests.cluster.campaign --out DIR [--only NAME ...]

needs root. Each case is a run of its own under `deltalm launch`, on hosts of its own (`hosts.py`); something is done to
it once it has trained for a while (`cases.py`). It must end by itself, with the losses of a run that nobody disturbed
and the culprit's name in what was said, and leave no process on any host. The outcomes are in DIR/outcomes.jsonl;
started again, the campaign makes the cases that have none, and prints the table of all.
"""

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from deltalm_ds import demo
from deltalm_ds.recipe.loading import recipe_path
from tests.cluster.cases import CASES, VERDICTS, Act, Case
from tests.cluster.hosts import Hosts
from tests.cluster.launched import Launched
from tests.faults.small_disk import SmallDisk
from tests.faults.tiny import Outcomes, Training, differences, has_ended, records, write_experiment

NUM_HOSTS, STEPS, SAVE_EVERY, FAULT_STEP = 4, 80, 20, 30
LONGEST_TO_VERDICT_S, LONGEST_TO_STEP_S = 30.0, 60.0
TOLERANCE = 1e-6  # of a loss, relative, on other numbers of ranks
MANY, MANY_SLOTS, MANY_STEPS = "32_ranks", 8, 15
SLOW, SLOW_STEPS, PAUSE_S = "slow_rank", 400, 0.3


def main(arguments: list[str] | None = None) -> int:
    """Make the cases that have no outcome; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="outside /tmp, /run and /dev/shm")
    parser.add_argument("--only", nargs="*", choices=[*CASES, MANY, SLOW], help="default: all that have no outcome")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the hosts are taken down then, too
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    outcomes = Outcomes(out / "outcomes.jsonl")
    done = {line["case"] for line in outcomes.lines if "failed" not in line}
    others = {MANY: _many_ranks, SLOW: _slow_rank}
    for name in options.only or [name for name in (*CASES, *others) if name not in done]:
        try:
            outcomes.add(case=name, **(others[name](out) if name in others else _make(name, out)))
        except (AssertionError, RuntimeError, psutil.Error) as error:
            outcomes.add(case=name, failed=f"{type(error).__name__}: {error}")
    newest = {line["case"]: line for line in outcomes.lines}
    _print_table(newest)
    return any("failed" in newest[name] for name in options.only or newest)


def _make(name: str, out: Path) -> dict[str, Any]:
    """Make one case; what came of it."""
    case, recipe = CASES[name], _demo_recipe(out)
    undisturbed = f"undisturbed_4x{case.slots}"
    if name != undisturbed and not has_ended(out / "runs" / undisturbed, STEPS):
        _make(undisturbed, out)
    run, log = _fresh(out / "runs" / name), out / "runs" / f"{name}.log"
    with _disk_for(case, run) as disk, Hosts(out / "hosts", NUM_HOSTS + case.spares) as hosts:
        place = disk.path / "run" if disk else run
        job = Launched(hosts, _hostfile(out, hosts, case), recipe, place, *case.overrides, log=log)
        job.await_that(lambda: job.last_step() >= FAULT_STEP)
        act = Act(job, disk)
        case.act(act)
        code = job.await_end()
        assert code == 0, f"exit code {code}: {job.messages[-3000:]}"
        verdict = _verdict(job, case)
    apart = _compare(run, out, recipe, case)
    return {"what": case.what, "seconds": act.seconds, "verdict": verdict, "apart": apart}


@contextmanager
def _disk_for(case: Case, run: Path) -> Iterator[SmallDisk | None]:
    """A disk of its own for the run directory, where the case asks for one; `run` is what it holds at the end."""
    if not case.disk_megabytes:
        yield None
        return
    with SmallDisk(run.with_name("disk"), case.disk_megabytes) as disk:
        try:
            yield disk
        finally:
            disk.set_read_only(False)
            if (disk.path / "run").exists():
                shutil.copytree(disk.path / "run", run)


def _verdict(job: Launched, case: Case) -> str:
    """What the supervisor said; it must name the culprit on its terminal, too."""
    if not case.culprit:
        return ""
    verdicts = [event["what"] for event in job.events(*VERDICTS)]
    first = verdicts[0] if verdicts else "nothing"
    assert all(word in first for word in case.culprit), f"{case.culprit} is asked for, and said was {first}"
    assert first in job.messages, f"{first} is not in {job.messages[-3000:]}"
    return first


def _compare(run: Path, out: Path, recipe: Path, case: Case) -> float:
    """The largest relative difference of a loss from one host's; on the same ranks, nothing may differ.

    Raises:
        AssertionError: it is too large, or something differs.
    """
    undisturbed, one_host = run.with_name(f"undisturbed_4x{case.slots}"), run.with_name("one_host")
    if not has_ended(one_host, STEPS):
        training = Training(recipe, _fresh(one_host), 1)
        assert training.await_end() == 0, training.messages[-3000:]
    if case.is_as_before and run != undisturbed:
        assert (found := differences(run, undisturbed, STEPS)) == [], found[:5]
    ours, theirs = (records(one, "train") for one in (run, one_host))
    assert ours.keys() == theirs.keys() and len(ours) == STEPS
    apart = max(abs(ours[step]["loss"] / theirs[step]["loss"] - 1) for step in ours)
    assert apart <= TOLERANCE, f"losses are {apart:.1e} apart from one host's"
    return float(f"{apart:.1e}")


def _many_ranks(out: Path) -> dict[str, Any]:
    """4 × 8 ranks of a minimal model: seconds of each part of the start, on all hosts and to the first step."""
    training = {"max_steps": MANY_STEPS, "save_every": MANY_STEPS}
    recipe = write_experiment(out / "tiny", training=training, batch={"tokens_per_step": 800})
    run = _fresh(out / "runs" / MANY)
    with Hosts(out / "hosts", NUM_HOSTS) as hosts:
        began = time.monotonic()
        job = Launched(hosts, _hostfile(out, hosts, Case("", lambda act: None, slots=MANY_SLOTS)), recipe, run)
        job.await_that(lambda: any(job.processes(name, "rank") for name in hosts.names))
        to_ranks = time.monotonic() - began
        job.await_that(lambda: job.events("started"))
        to_first_step = time.monotonic() - began
        ranks = [rank for name in hosts.names for rank in job.processes(name, "rank")]
        assert len(ranks) == NUM_HOSTS * MANY_SLOTS, ranks
        memory = sum(rank.memory_full_info().uss for rank in ranks)
        assert job.await_end() == 0, job.messages[-3000:]
    (started,) = job.events("started")
    assert sorted(records(run, "train")) == list(range(1, MANY_STEPS + 1))
    parts = {
        "ranks begin": round(to_ranks, 1),
        **started["seconds"],
        "all, to the first step": round(to_first_step, 1),
    }
    return {"what": f"{len(ranks)} ranks on {NUM_HOSTS} hosts", "seconds": parts, "gigabytes": round(memory / 1e9, 1)}


def _slow_rank(out: Path) -> dict[str, Any]:
    """A rank that rests for half of its time is named, nobody else is, and training goes on."""
    recipe = write_experiment(out / "tiny", training={"max_steps": SLOW_STEPS, "save_every": SLOW_STEPS})
    run = _fresh(out / "runs" / SLOW)
    with Hosts(out / "hosts", NUM_HOSTS) as hosts:
        job = Launched(hosts, _hostfile(out, hosts, Case("", lambda act: None)), recipe, run)
        job.await_that(lambda: job.last_step() >= 1)
        (victim,) = job.processes("n3", "rank")
        began, from_step = time.monotonic(), job.last_step()

        def is_named() -> bool:
            for pulse in (victim.suspend, victim.resume):
                pulse()
                time.sleep(PAUSE_S)
            return bool(job.events("slow rank"))

        job.await_that(is_named)
        seconds, steps = round(time.monotonic() - began, 1), job.last_step() - from_step
        assert job.await_end() == 0, job.messages[-3000:]
    named = [event["host"] for event in job.events("slow rank")]
    assert named == ["n3"] and not job.events(*VERDICTS), job.messages[-3000:]
    return {"what": f"a slow rank, named after {steps} steps", "seconds": {"named": seconds}}


def _hostfile(out: Path, hosts: Hosts, case: Case) -> Path:
    spare = dict.fromkeys(hosts.names[NUM_HOSTS:], " spare")
    path = out / "hostfile"
    path.write_text("".join(f"{name} slots={case.slots}{spare.get(name, '')}\n" for name in hosts.names))
    return path


def _fresh(run: Path) -> Path:
    """Without what a case that failed has left: it is kept beside."""
    if run.exists():
        run.rename(run.with_name(f"{run.name}.{time.time_ns()}"))
    run.parent.mkdir(exist_ok=True)
    return run


def _demo_recipe(out: Path) -> Path:
    """The demo's fine-tuning, but shorter, without translating, and exact; with what `deltalm demo` does before it."""
    directory, before = out / "demo", Path.cwd()
    directory.mkdir(exist_ok=True)
    os.chdir(directory)
    try:
        for stage in demo._stages(1)[:4]:  # up to the pre-training
            if not stage.is_done():
                stage.run()
    finally:
        os.chdir(before)
    content = yaml.safe_load(recipe_path("demo_finetune").read_text())
    for section, key in ((content, "vocabulary"), (content, "initial_model"), (content["data"]["train"][0], "path")):
        section[key] = str(directory / section[key])
    content["validation"] = {"shards": str(directory / content["validation"]["shards"])}
    content["training"] |= {"max_steps": STEPS, "save_every": SAVE_EVERY, "keep_last": 2}
    content["training"] |= {"log_every": 1, "matmul_precision": "highest"}
    content["schedule"]["warmup_steps"] = STEPS // 4
    path = out / "finetuning.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _print_table(newest: dict[str, dict[str, Any]]) -> None:
    """Of all cases, as Markdown."""
    print("| what happened | s to the verdict | s to the next step | what was said | largest difference of a loss |")
    print("|---|---|---|---|---|")
    for name in CASES:
        if line := newest.get(name):
            what, end = CASES[name].what, line.get("apart", "FAILED")
            seconds = line.get("seconds", {})
            to_verdict = seconds.get("verdict", seconds.get("hosts empty", ""))
            print(f"| {what} | {to_verdict} | {seconds.get('next step', '')} | {line.get('verdict', '')} | {end} |")
    for name, asked in (("verdict", LONGEST_TO_VERDICT_S), ("next step", LONGEST_TO_STEP_S)):
        seconds = [line["seconds"][name] for line in newest.values() if name in line.get("seconds", {})]
        print(f"\nlongest to the {name}: {max(seconds, default=0)} s, {asked:.0f} s are asked for")
    if (line := newest.get(MANY)) and "failed" not in line:
        print(f"\n{line['what']}, {line['gigabytes']} GB: {line['seconds']}")
    if (line := newest.get(SLOW)) and "failed" not in line:
        print(f"\n{line['what']}: {line['seconds']}")


if __name__ == "__main__":
    sys.exit(main())

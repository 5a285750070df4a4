"""`deltalm launch --check`: what of the hosts would keep a run from starting, or spoil it, before anything starts.

Every host tells what it is like (`probe.py`); pure functions of that find what is wrong (`*_checks.py`), and name the
odd one out; one table, one verdict. Only the collective test (`collective_check.py`) runs ranks.
"""

import json
import math
import secrets
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deltalm_ds.errors import InputError
from deltalm_ds.files import read_json, write_json
from deltalm_ds.launch.attempt_run import AttemptRun
from deltalm_ds.launch.hostfile import Host
from deltalm_ds.launch.job import Job, JobHost, environment_of_ranks, python_environment, write_job
from deltalm_ds.launch.preflight import gpu_checks, host_checks, network_checks, probe
from deltalm_ds.launch.preflight.facts import Code, Facts
from deltalm_ds.launch.preflight.findings import FAIL, WARN, Check, Finding, Report, spared
from deltalm_ds.launch.preflight.survey import RECIPE, Survey
from deltalm_ds.launch.remote import Outcome, run_on_hosts, ssh_failure
from deltalm_ds.launch.telling import Teller
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.streams import say
from deltalm_ds.training.rendezvous import wanted_port

RunCommand = Callable[..., dict[str, Outcome]]  # over ssh (`launch/remote.py`), or by srun (`launch/slurm/nodes.py`)
WAIT_S = 60.0  # for hosts to find each other, should one hang: Python may come from a slow file system
TIMEOUT_S = 300.0
COLLECTIVES, COLLECTIVES_S = "collectives", 300.0
CHECKS = (*host_checks.CHECKS, *network_checks.CHECKS, *gpu_checks.CHECKS)
_NO_ANSWER = (
    "the probe did not come to its end (exit code {code}): {said}",
    "run `ssh {name} {command}` and mend what it says",
)
_NOT_UNDERSTOOD = "what its probe tells is not understood: {error}", "install the same code on every host"
_NO_PYTHON = (
    "{python} or deltalm_ds is not there: {said}",
    "install it at the same path on every host, or start from a folder that all hosts mount",
)
_NOT_RUN = "the collective test was not run", "mend first what fails above"
_NO_END = "the collective test did not come to its end within {seconds:.0f} s", "see that no firewall is between hosts"
_BROKEN = "the collective test failed: {what}", "mend what it says; training would fail in the same way"


def check_hosts(
    hosts: Sequence[Host],
    recipe: Recipe,
    run: Path,
    recipe_path: Path | None = None,
    thoroughly: bool = True,
    run_command: RunCommand = run_on_hosts,
) -> tuple[Report, Survey]:
    """Ask every host what it is like, and find what is wrong with it.

    Args:
        hosts: in order of ranks, spares included.
        recipe: what is to be trained, its paths absolute.
        run: the run directory, which need not be there yet.
        recipe_path: where the recipe stands, to compare it between hosts.
        thoroughly: import PyTorch on every host, which takes seconds, and work out what checkpoints need.
        run_command: runs the probes.

    Raises:
        InputError: there is no ssh here, MASTER_PORT is no port, the run directory's file system cannot be written to,
            or the recipe's DeepSpeed configuration is not there.
    """
    from deltalm_ds.training.deepspeed_config import deepspeed_config, precision

    names = [host.name for host in hosts]
    port = wanted_port()
    asked = _inputs_of(recipe)
    request = {
        "wait_s": WAIT_S,
        "num_hosts": len(hosts),
        "port": port,
        "files": _files_of(recipe, recipe_path),
        "inputs": asked,
        "devices": ["nvml", "torch"] if thoroughly else ["nvml"],
    }
    with _meeting_place(run, request) as folder:
        outcomes, clocks = _ask(names, folder, run_command)
    facts, reachable = _read(names, outcomes, folder)
    survey = Survey(
        tuple(hosts),
        facts,
        {name: clocks[name] for name in facts},
        Code(**probe.code()),
        probe.inputs(**asked),
        port,
        _checkpoint_bytes(recipe, sum(host.slots for host in hosts if not host.is_spare)) if thoroughly else None,
        precision(deepspeed_config(recipe)),
    )
    findings = list(reachable.findings())
    for one in CHECKS if facts else ():
        findings += one(survey).findings()
    return Report(tuple(spared(findings, {host.name for host in hosts if host.is_spare}))), survey


def check(hosts: Sequence[Host], recipe: Recipe, run: Path, recipe_path: Path | None = None) -> Report:
    """All checks of `check_hosts`, and, where nothing failed, the collective test over all ranks, spares' included.

    Args:
        hosts, recipe, run, recipe_path: as of `check_hosts`.

    Raises:
        InputError: as of `check_hosts`.
    """
    report, survey = check_hosts(hosts, recipe, run, recipe_path)
    if report.verdict == FAIL:
        of_collectives = survey.check(COLLECTIVES, "")
        of_collectives.say(WARN, survey.answering, _NOT_RUN)
    else:
        of_collectives = _collectives(survey, run)
    return Report((*report.findings, *of_collectives.findings()))


def _collectives(survey: Survey, run: Path) -> Check:
    """Run `collective_check.py` on the hosts that answered, started as a run is."""
    hosts = [host for host in survey.hosts if host.name in survey.facts]
    until = time.monotonic() + COLLECTIVES_S
    with _folder_beside(run) as folder:
        out = folder / "collectives.json"
        job_hosts = tuple(JobHost(host.name, host.devices) for host in hosts)
        program = "deltalm_ds.launch.preflight.collective_check", str(out)
        job = Job(str(folder), 1, job_hosts, program, environment_of_ranks(), survey.port)
        write_job(job)
        running = AttemptRun(job, Teller(folder, None), lambda: None, lambda: 0.0 if time.monotonic() > until else None)
        running.run()
        result = read_json(out) if out.exists() else None
    if result is not None:
        named = {host.name: values for host, values in zip(hosts, result["hosts"], strict=True)}
        return network_checks.collective(survey, result | {"hosts": named})
    check = survey.check(COLLECTIVES, "")
    verdict = running.verdict
    if verdict is None:
        check.say(FAIL, survey.answering, _NO_END, seconds=COLLECTIVES_S)
    else:
        check.say(FAIL, verdict.host or survey.answering, _BROKEN, what=verdict.what)
    return check


def require_fit(
    hosts: Sequence[Host], recipe: Recipe, run: Path, recipe_path: Path, run_command: RunCommand = run_on_hosts
) -> None:
    """The quick part of the checks, before every start; warnings are printed.

    Args:
        hosts, recipe, run, recipe_path, run_command: as of `check_hosts`.

    Raises:
        InputError: what keeps the run from starting, all of it.
    """
    report, _ = check_hosts(hosts, recipe, run, recipe_path, thoroughly=False, run_command=run_command)
    lines: dict[str, list[str]] = {FAIL: [], WARN: []}
    for check, names, level, what, next_step in report.rows():
        lines.get(level, []).append(f"{names}: {check}: {what}" + (f": {next_step}" if next_step else ""))
    for line in lines[WARN]:
        say(f"warning: {line}.")
    if lines[FAIL]:
        raise InputError("Nothing was started:\n" + "\n".join(f"  {line}." for line in lines[FAIL]))


@contextmanager
def _folder_beside(run: Path) -> Iterator[Path]:
    """A new folder in the run directory's file system, removed at the end; SIGTERM and SIGHUP end it as Ctrl-C does."""
    parent = next(path for path in (run.absolute(), *run.absolute().parents) if path.is_dir())
    folder = parent / f".check-{secrets.token_hex(8)}"
    previous = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        try:
            folder.mkdir()
        except OSError as error:
            raise InputError(f"{parent} cannot be written to ({error.strerror}): name another run directory.") from None
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _meeting_place(run: Path, request: dict[str, Any]) -> Iterator[Path]:
    """A folder with the request for the probes, and a lock that is held."""
    with _folder_beside(run) as folder:
        write_json(folder / probe.REQUEST, request)
        with open(folder / probe.LOCKED, "wb") as lock:
            with suppress(OSError):  # no locks there: hosts will say so
                flock(lock, LOCK_EX | LOCK_NB)
            yield folder


def _ask(
    names: Sequence[str], folder: Path, run_command: RunCommand
) -> tuple[dict[str, Outcome], dict[str, tuple[float, float]]]:
    """Run the probe on every host; also the least and the most seconds by which each one's clock can be ahead of this.

    A line with a host's time is written before it comes, and its probe begins after it was asked for: what takes long
    on the way, or on a busy host, leaves the clock uncertain, and is not taken for its fault.
    """
    ahead: dict[str, tuple[float, float]] = {}
    began = time.time()

    def on_line(name: str, line: str) -> None:
        arrived = time.time()
        match _told(line, probe.CLOCK):
            case [now, ran]:
                least, most = ahead.get(name, (-math.inf, math.inf))
                ahead[name] = max(least, now - arrived), min(most, now - ran - began)

    def on_end(name: str) -> None:
        probe.gone(folder, names.index(name)).touch()

    outcomes = run_command(names, lambda index: probe_command(folder, index), TIMEOUT_S, on_line, on_end, len(names))
    return outcomes, ahead


def probe_command(folder: Path, index: int) -> str:
    """The command line for the shell of a host: paths and a number."""
    environment = " ".join(f"{name}={shlex.quote(value)}" for name, value in python_environment().items())
    python = f"{shlex.quote(sys.executable)} -m deltalm_ds.launch.preflight.probe"
    return f"exec env {environment} {python} {shlex.quote(str(folder))} {index}"


def _told(line: str, key: str) -> Any:
    """What a line of the probe tells; None for what else a login prints."""
    if not line.startswith(f'{{"{key}":'):
        return None
    try:
        return json.loads(line)[key]
    except (ValueError, RecursionError):
        return None


def _read(names: Sequence[str], outcomes: dict[str, Outcome], folder: Path) -> tuple[dict[str, Facts], Check]:
    """The facts of the hosts that told them, and the others as a finding."""
    check = Check("reachable", names, "by ssh, without a password")
    facts: dict[str, Facts] = {}
    for index, (name, outcome) in enumerate(outcomes.items()):
        told = next((told for line in outcome.lines if (told := _told(line, probe.TOLD)) is not None), None)
        if told is not None:
            try:
                facts[name] = Facts.model_validate(told)
            except ValidationError as error:
                fault = error.errors()[0]
                where = ".".join(map(str, fault["loc"]))
                check.say(FAIL, name, _NOT_UNDERSTOOD, error=f"{where}: {fault['msg']}")
        elif (why := ssh_failure(name, outcome)) is not None:
            check.found.append(Finding(check.name, FAIL, (name,), *why))
        else:
            _say_no_answer(check, name, outcome, probe_command(folder, index))
    return facts, check


def _say_no_answer(check: Check, name: str, outcome: Outcome, command: str) -> None:
    said = next((line.strip() for line in reversed(outcome.error_lines) if line.strip()), "no message")
    if outcome.code in (126, 127) or "No module named" in said:
        check.say(FAIL, name, _NO_PYTHON, python=sys.executable, said=said)
    else:
        check.say(FAIL, name, _NO_ANSWER, code=outcome.code, said=said, name=name, command=shlex.quote(command))


def _files_of(recipe: Recipe, recipe_path: Path | None) -> dict[str, str]:
    """Files that ranks read by their path, and the recipe."""
    files = {RECIPE: str(recipe_path.absolute())} if recipe_path is not None else {}
    if recipe.deepspeed.endswith(".json"):
        files[recipe.deepspeed] = str(Path(recipe.deepspeed).absolute())
    return files


def _inputs_of(recipe: Recipe) -> dict[str, Any]:
    """What `probe.inputs` is asked for."""
    from deltalm_ds.training.inputs import VALIDATION, training_groups

    data = {
        f"{key}.{number}.path": str(group.path.absolute())
        for key, groups in training_groups(recipe).items()
        for number, group in enumerate(groups)
    }
    validation = recipe.validation
    if validation is not None:
        data[VALIDATION] = str(validation.shards.absolute())
    text = None
    if validation is not None and validation.text is not None:
        text = str(validation.text.absolute()), validation.split
    return {
        "vocabulary": str(recipe.vocabulary.absolute()),
        "data": data,
        "initial_model": str(recipe.initial_model.absolute()) if recipe.initial_model is not None else None,
        "text": text,
    }


def _checkpoint_bytes(recipe: Recipe, num_ranks: int) -> int | None:
    """Bytes that the run needs for checkpoints; None where the recipe's own faults keep it from being planned."""
    from deltalm_ds.training.plan import make_plan

    try:
        return int(make_plan(recipe, num_ranks, trains_here=False)["checkpoints_bytes"])
    except InputError:
        return None

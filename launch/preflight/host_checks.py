"""Checks of hosts before a start, from what they tell: clocks, code, packages, run directory, data, limits."""

from deltalm_ds.launch.host_names import folded
from deltalm_ds.launch.preflight.facts import Code, Folder, Limits, Unknown
from deltalm_ds.launch.preflight.findings import FAIL, WARN, Check
from deltalm_ds.launch.preflight.survey import HERE, RECIPE, Survey

SKEW_WARN_S, SKEW_FAIL_S = 2.0, 60.0
NECESSARY = ("torch", "deepspeed", "numpy", "pyarrow", "sentencepiece", "triton")  # other packages may differ a little
LEAST_FREE_BYTES = 1 << 30
LEAST_FREE_FILES = 10_000
FILES_OF_A_PROCESS, FILES_OF_A_RANK = 512, 8  # open files: connections to other ranks among them

_CLOCK = (
    "its clock is {seconds:.1f} s {side} that of the others",
    "set it by NTP: `timedatectl set-ntp true`, or `chronyc makestep`",
)
_NO_SHARED = (
    "it does not find what this machine wrote to the run directory's file system ({error})",
    "put the run directory on a file system that all hosts mount at the same path",
)
_UNSEEN = (
    "it does not see what {others} wrote beside the run directory",
    "put the run directory on a file system that all hosts mount at the same path; if it is NFS, see that its server "
    "answers and that no host mounts a copy",
)
_NO_LOCKS = (
    "locks do not reach it: it took one that this machine held ({said})",
    "mount the run directory with locks for the whole network (NFS: without nolock and local_lock); until then, see to "
    "it yourself that one `deltalm` at a time works in a run",
)
_FULL = (
    "{free:.1f} GiB are free for the run directory, and the run needs {needed:.1f} GiB for checkpoints",
    "free some, or lower training.keep_last",
)
_NO_INODES = "{files} files more can be made in the run directory's file system", "remove files there"
_NO_FILE = "{path} is not there", "copy it to the same path on every host, or put it on the shared file system"
_INPUT = "{key}: {error}", "mount or copy what the recipe names to the same path on every host"
_OTHER_INPUT = (
    "{key} is another one than on {reference}",
    "mount the same data on every host, or copy it anew; `deltalm data verify` tells a damaged copy",
)
_SAME_CODE = "install the same code on every host, or start from a folder that all hosts mount at the same path"
_SAME_PYTHON = "use one Python on all hosts: build the environment from constraints.txt, or share it"
_SAME_PACKAGES = "pip install -c constraints.txt on the odd ones out, or share one environment"
_SAME_FILE = "give every host the same file, or keep it on the shared file system"
_OPEN_FILES = (
    "a process may open {limit} files, and a rank may need {needed}",
    "raise it in /etc/security/limits.conf (nofile) or in sshd's service (LimitNOFILE)",
)
_BUSY = "other programs keep its {cores} cores busy", "see `top` there: end them, or leave the host out"
_UNLIKE_CORES = "results of runs that move between unlike hosts differ in rounding, and the slowest sets the pace"


def clock(survey: Survey) -> Check:
    """Clocks agree: events and file times of all hosts are compared."""
    check = survey.check("clock", f"within {SKEW_WARN_S:.0f} s of the others")
    clocks = [(0.0, 0.0), *survey.clocks.values()]

    def agreeing(time: float) -> tuple[int, float]:
        return sum(abs(_skew(bounds, time)) <= SKEW_WARN_S for bounds in clocks), -abs(time)

    usual = max((time for bounds in clocks for time in bounds), key=agreeing)
    for name, bounds in survey.clocks.items():
        skew = _skew(bounds, usual)
        if name in survey.facts and abs(skew) > SKEW_WARN_S:
            level = FAIL if abs(skew) > SKEW_FAIL_S else WARN
            check.say(level, name, _CLOCK, seconds=abs(skew), side="ahead of" if skew > 0 else "behind")
    return check


def _skew(bounds: tuple[float, float], time: float) -> float:
    """By how much a clock is ahead of a time at least, below 0 if it is behind; 0 if it may agree."""
    least, most = bounds
    return max(least - time, 0.0) or min(most - time, 0.0)


def code(survey: Survey) -> Check:
    """The same code, here and there."""
    check = survey.check("code", _code_text(survey.code))
    codes: dict[str, Code] = {**check.parts(survey.facts, "code"), HERE: survey.code}
    text_of = {one.checksum: _code_text(one) for one in codes.values()}
    checksums = {name: one.checksum for name, one in codes.items()}
    check.alike(FAIL, "deltalm_ds", checksums, _SAME_CODE, text_of.__getitem__)
    return check


def _code_text(one: Code) -> str:
    commit = f" at {one.commit[:9]}" if one.commit else ""
    return f"{one.version}{commit}, checksum {one.checksum[:9]}"


def packages(survey: Survey) -> Check:
    """The same Python and packages."""
    facts = survey.facts
    named = [f"Python {one.python}, torch {one.packages.get('torch')}" for one in facts.values()]
    check = survey.check("packages", named[0] if named else "")
    versions = {name: one.python.rpartition(".") for name, one in facts.items()}
    minor = {name: version for name, (version, _, _) in versions.items()}
    if len(set(minor.values())) > 1:
        check.alike(FAIL, "Python", minor, _SAME_PYTHON)
    else:
        check.alike(WARN, "Python", {name: one.python for name, one in facts.items()}, _SAME_PYTHON)
    for package in sorted({package for one in facts.values() for package in one.packages}):
        installed = {name: one.packages.get(package) or "missing" for name, one in facts.items()}
        check.alike(FAIL if package in NECESSARY else WARN, package, installed, _SAME_PACKAGES)
    return check


def folder(survey: Survey) -> Check:
    """The run directory is on one file system, which every host can write to and which is not full."""
    check = survey.check("run directory", "shared, writable, locks hold")
    index_of = {host.name: index for index, host in enumerate(survey.hosts)}
    seen_by_all = {index_of[name] for name in survey.answering if not isinstance(survey.facts[name].folder, Unknown)}
    for name in survey.answering:
        part = survey.facts[name].folder
        if isinstance(part, Unknown):
            check.say(FAIL, name, _NO_SHARED, error=part.error)
            continue
        if unseen := seen_by_all - set(part.sees):
            check.say(FAIL, name, _UNSEEN, others=folded(survey.hosts[index].name for index in unseen))
        elif part.lock != "held":
            check.say(WARN, name, _NO_LOCKS, said=part.lock)
        _space(check, name, part, survey.checkpoint_bytes)
    return check


def _space(check: Check, name: str, part: Folder, checkpoint_bytes: int | None) -> None:
    needed = max(checkpoint_bytes or 0, LEAST_FREE_BYTES)
    if part.free_bytes < needed:
        check.say(FAIL, name, _FULL, free=part.free_bytes / 2**30, needed=needed / 2**30)
    if part.free_files is not None and part.free_files < LEAST_FREE_FILES:
        check.say(FAIL, name, _NO_INODES, files=part.free_files)


def files(survey: Survey) -> Check:
    """The files that a recipe names and ranks read, and the recipe itself where it is there, are the same."""
    check = survey.check("recipe", "the same wherever it is seen")
    parts = check.parts(survey.facts, "files")
    for path in sorted({path for part in parts.values() for path in part}):
        there = {name: part[path] for name, part in parts.items() if part.get(path) is not None}
        if path != RECIPE:
            missing = [name for name in parts if name not in there]
            if missing:
                check.say(FAIL, missing, _NO_FILE, path=path)
        check.alike(FAIL, path, there, _SAME_FILE, lambda checksum: f"(checksum {checksum[:9]})")
    return check


def inputs(survey: Survey) -> Check:
    """Vocabulary, data sets and the initial model are on every host, and the ones that are here."""
    check = survey.check("data", "the same as on this machine")
    for name, part in {**check.parts(survey.facts, "inputs"), HERE: survey.inputs}.items():
        for key, value in part.items():
            usual = survey.inputs.get(key)
            if isinstance(value, dict):
                check.say(FAIL, name, _INPUT, key=key, error=str(value.get("error")).rstrip("."))
            elif isinstance(usual, str) and value != usual:
                check.say(FAIL, name, _OTHER_INPUT, key=key, reference=HERE)
    return check


def limits(survey: Survey) -> Check:
    """What a process may have is enough, and nobody else uses the processors."""
    check = survey.check("limits", "enough open files, cores free")
    parts: dict[str, Limits] = check.parts(survey.facts, "limits", WARN)
    needed = FILES_OF_A_PROCESS + FILES_OF_A_RANK * survey.num_ranks
    for name, part in parts.items():
        if part.open_files is not None and part.open_files < needed:
            check.say(WARN, name, _OPEN_FILES, limit=part.open_files, needed=needed)
        if part.load > part.cores:
            check.say(WARN, name, _BUSY, cores=part.cores)
    check.alike(WARN, "number of cores", {name: part.cores for name, part in parts.items()}, _UNLIKE_CORES)
    return check


CHECKS = (clock, code, packages, folder, files, inputs, limits)

"""Batch jobs without a SLURM: programs of its names on PATH print what SLURM 22.05 printed, and note their calls.

What a real one makes of the scripts is in `tests/cluster/slurm_campaign.py`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deltalm_ds.cli import app
from deltalm_ds.errors import InputError
from deltalm_ds.launch.slurm import allocation, controller, job
from deltalm_ds.launch.slurm.allocation import read_allocation
from deltalm_ds.launch.slurm.batch_file import batch_script, submit, write_batch_file
from deltalm_ds.launch.slurm.controller import facts, safe_exit_code, should_come_again
from deltalm_ds.launch.slurm.nodes import run_on_nodes, unfit_nodes

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "launch" / "slurm").glob("*.sbatch"))
# Of a batch job on 2 nodes with 2 tasks and 2 GPUs each.
JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_CPUS_PER_NODE": "8(x2)",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_CPUS_PER_TASK": "4",
    "SLURM_CPUS_ON_NODE": "8",
    "SLURM_GPUS_ON_NODE": "2",
    "SLURM_GPUS_PER_NODE": "2",
}
SHOWN_JOB = (
    "JobId=7 JobName=my job UserId=root(0) Account=(null) QOS=normal JobState=RUNNING Requeue={requeue} Restarts=0 "
    "RunTime=00:00:58 TimeLimit=08:00:00 SuspendTime=None {preempt} Partition=gpu NumNodes=2 NumTasks=4 "
    "ReqB:S:C:T=0:0:*:* Command=/home/me/my job.sh WorkDir=/home/me Power= TresPerNode=gres:gpu:2\n"
)
CONFIG = (
    "Configuration data\nJobRequeue              = 1\nKillWait                = 30 sec\nRequeueExit             = {}\n"
)
FAKE = """#!/bin/sh
echo "{name} $*" >> "{directory}/calls"
if [ -e "{directory}/refused" ] && echo "$*" | grep -Eqf "{directory}/refused"; then
  echo "{name}: error: refused" >&2; exit 1
fi
case "{name} $*" in
  "scontrol show config") cat "{directory}/config" ;;
  "scontrol show job"*) cat "{directory}/job" ;;
  "scontrol write"*) echo "#!/bin/bash" ;;
  sinfo*) cat "{directory}/nodes" ;;
  sbatch*) cat > "{directory}/script"; env > "{directory}/environment"; echo "8;cluster" ;;
  srun*) env > "{directory}/of_tasks"; exec sh "{directory}/work" ;;
esac
"""


class FakeSlurm:
    """Programs on PATH; what they print is in files of `directory`, how they were called in `calls`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("scontrol", "sbatch", "sinfo", "srun"):
            (directory / name).write_text(FAKE.format(name=name, directory=directory))
            (directory / name).chmod(0o755)
        self.says(config=CONFIG.format("(null)"), nodes="n1 mixed\nn2 allocated\n", work="exit 0\n")
        self.shows_job()

    def says(self, **files: str) -> None:
        for name, text in files.items():
            (self.directory / name).write_text(text)

    def shows_job(self, requeue: int = 1, preempt: str = "") -> None:
        self.says(job=SHOWN_JOB.format(requeue=requeue, preempt=preempt))

    @property
    def calls(self) -> list[str]:
        """All but those that only ask."""
        lines = (self.directory / "calls").read_text().splitlines()
        return [line for line in lines if not line.startswith(("scontrol show", "scontrol write", "sinfo"))]

    def start(self, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        environment = {"PATH": f"{self.directory}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "deltalm_ds.launch.slurm.job", "--max-restarts=2", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=environment | JOB | variables, **pipes)

    def run(self, *arguments: str, **variables: str) -> tuple[int, str]:
        job = self.start(*arguments, **variables)
        output, _ = job.communicate(timeout=60)
        return job.returncode, output


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path)


REQUEUED = "scontrol requeue 7"
COMMAND = ("command", "program", "an argument")


@pytest.mark.parametrize(
    ("code", "comes_again"), [(0, False), (75, True), (2, False), (3, False), (4, False), (1, True), (137, True)]
)
def test_the_exit_code_says_whether_the_job_comes_again(slurm: FakeSlurm, code: int, comes_again: bool) -> None:
    slurm.says(work=f"exit {code}\n")
    found, output = slurm.run(*COMMAND)
    assert found == code and (REQUEUED in slurm.calls) == comes_again
    assert slurm.calls[0] == "srun program an argument"
    assert "job 7 (0 of 2 restarts) is requeued when it is stopped" in output


@pytest.mark.parametrize(
    ("counts", "restarts"),
    [
        ({"SLURM_RESTART_COUNT": "1"}, 1),
        ({"SLURM_RESTART_COUNT": "2"}, 2),
        ({"SLURM_RESTART_COUNT": "1", "DELTALM_RESTARTS": "1"}, 2),
    ],
)
def test_restarts_have_a_cap(slurm: FakeSlurm, counts: dict[str, str], restarts: int) -> None:
    slurm.says(work="exit 75\n")
    code, output = slurm.run(*COMMAND, **counts)
    assert code == 75 and (REQUEUED in slurm.calls) == (restarts < 2)
    assert ("started again 2 times, which is the most" in output) == (restarts == 2)


def test_a_job_that_slurm_has_requeued_beyond_the_cap_starts_nothing(slurm: FakeSlurm) -> None:
    """As it does without asking, for nodes that are lost again and again."""
    code, output = slurm.run(*COMMAND, SLURM_RESTART_COUNT="3")
    assert code == 75 and slurm.calls == [] and "restart 3 is more than the 2 allowed" in output


def test_an_exit_code_that_slurm_requeues_for_is_replaced_where_the_job_must_not_come_again(slurm: FakeSlurm) -> None:
    slurm.says(work="exit 75\n", config=CONFIG.format("1-3,75"))
    assert slurm.run(*COMMAND, SLURM_RESTART_COUNT="2")[0] == 4
    assert [safe_exit_code(code, {"RequeueExit": "(null)"}) for code in (0, 1, 2, 75)] == [0, 1, 2, 75]
    assert safe_exit_code(2, {"RequeueExit": "1", "RequeueExitHold": "2-254"}) == 255


@pytest.mark.parametrize(("requeue", "refused"), [(0, "nothing"), (1, "requeue 7")])
def test_where_jobs_are_not_requeued_a_successor_is_submitted(slurm: FakeSlurm, requeue: int, refused: str) -> None:
    slurm.shows_job(requeue)
    slurm.says(work="exit 75\n", refused=refused)
    code, output = slurm.run(*COMMAND, SLURM_CONF="/etc/slurm.conf", SBATCH_NO_REQUEUE="1")
    assert code == 75 and "job 8 goes on where this one ends" in output
    (call,) = [call for call in slurm.calls if call.startswith("sbatch")]
    expected = "--parsable --export=ALL --dependency=afterany:7 --job-name=my --partition=gpu --qos=normal "
    expected += "--time=08:00:00 --nodes=2 --chdir=/home/me --ntasks-per-node=2 --gpus-per-node=2 --cpus-per-task=4"
    assert call == f"sbatch {expected}"
    environment = (slurm.directory / "environment").read_text().splitlines()
    assert "DELTALM_RESTARTS=1" in environment and "SLURM_CONF=/etc/slurm.conf" in environment
    assert [line for line in environment if line.startswith(("SLURM_JOB", "SLURM_RESTART", "SBATCH_"))] == []
    assert (slurm.directory / "script").read_text() == "#!/bin/bash\n"


def test_a_job_that_cannot_come_again_says_so(slurm: FakeSlurm) -> None:
    slurm.says(work="exit 1\n", refused="requeue|afterany")
    code, output = slurm.run(*COMMAND)
    assert code == 1 and "the job cannot come again: sbatch failed: sbatch: error: refused. Submit it by hand" in output


def test_a_controller_that_does_not_answer_is_asked_again(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(command: list[str]) -> str:
        asked.append(command)
        if len(asked) < 3:
            raise OSError("scontrol failed: Unable to contact slurm controller (connect failure)")
        return "Name=value"

    monkeypatch.setattr(controller, "checked", answer)
    monkeypatch.setattr(controller, "PAUSE_S", 0)
    assert controller._scontrol("show", "config") == "Name=value" and len(asked) == 3


def _while_srun_waits(
    slurm: FakeSlurm, number: signal.Signals, before: Callable[[], None] = lambda: None
) -> tuple[int, str]:
    """Send a signal to a job whose task saves on SIGUSR1 and ends with 75."""
    slurm.says(work=f"trap 'exit 75' USR1; touch {slurm.directory}/works; while :; do sleep 0.05; done\n")
    job = slurm.start(*COMMAND)
    while not (slurm.directory / "works").exists():
        time.sleep(0.02)
    before()
    job.send_signal(number)
    output, _ = job.communicate(timeout=60)
    return job.returncode, output


def test_the_signal_before_the_limit_reaches_the_tasks_and_the_job_comes_again(slurm: FakeSlurm) -> None:
    code, output = _while_srun_waits(slurm, signal.SIGUSR1)
    assert code == 75 and slurm.calls[1:] == [REQUEUED] and "stopping: the ranks save and end" in output


def test_a_cancelled_job_does_not_come_again(slurm: FakeSlurm) -> None:
    code, output = _while_srun_waits(slurm, signal.SIGTERM)
    assert code == 75 and len(slurm.calls) == 1 and "stopping: the ranks save and end" in output


def test_a_preempted_job_comes_again(slurm: FakeSlurm) -> None:
    code, _ = _while_srun_waits(slurm, signal.SIGTERM, lambda: slurm.shows_job(0, "PreemptTime=2026-11-26T20:00:00"))
    assert code == 75 and [call.split()[0] for call in slurm.calls] == ["srun", "sbatch"]


def test_tasks_that_a_signal_ended_before_they_listened_have_been_stopped(slurm: FakeSlurm) -> None:
    """As `scancel --signal=USR1` to the tasks while they import; srun gives signal 10 as 138."""
    slurm.says(work="exit 138\n")
    assert slurm.run(*COMMAND)[0] == 75


def test_tasks_share_the_processors(slurm: FakeSlurm) -> None:
    slurm.run("--srun=--mpi=pmix", "--container=apptainer", "--container=exec a b.sif", *COMMAND)
    assert slurm.calls == ["srun --mpi=pmix apptainer exec a b.sif program an argument"]
    of_tasks = (slurm.directory / "of_tasks").read_text().splitlines()
    assert {"OMP_NUM_THREADS=4", "SRUN_CPUS_PER_TASK=4", "OMP_WAIT_POLICY=passive"} <= set(of_tasks)


def test_each_node_is_asked_by_a_task_of_srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake srun that starts them one after the other, and labels what they print as the real one does."""
    (tmp_path / "srun").write_text(
        '#!/bin/sh\necho "$*" > called\nwhile [ "$1" != sh ]; do shift; done\necho starting >&2\nstatus=0\n'
        'for n in 0 1; do SLURM_PROCID=$n "$@" > out 2>&1 || status=$?; fold -b -w 1024 out | sed "s/^/ $n: /"; done\n'
        "exit $status\n"
    )
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    lines, ended = [], []
    long = "0123456789é" * 300
    commands = ["echo 'it is $0'; exit 3", f"echo 1: two >&2; echo; echo {long}"]
    outcomes = run_on_nodes(
        ["n7", "n9"], commands.__getitem__, 20, lambda name, line: lines.append((name, line)), ended.append
    )
    assert lines == [
        ("n7", "starting"),
        ("n9", "starting"),
        ("n7", "it is $0"),
        *(("n9", line) for line in ("1: two", "", long)),
    ]
    assert [(one.code, one.timed_out, one.lines[1:]) for one in outcomes.values()] == [
        (3, False, ["it is $0"]),
        (0, False, ["1: two", "", long]),
    ]
    assert ended == ["n7", "n9"] and "--nodes=2 --ntasks=2 --ntasks-per-node=1" in (tmp_path / "called").read_text()
    slow = run_on_nodes(["n7"], lambda index: "exec sleep 60", 1)
    assert slow["n7"].timed_out and slow["n7"].code is None


@pytest.mark.parametrize(
    ("nodes", "unfit"),
    [
        ("n1 mixed\nn2 allocated\n", []),
        ("n1 allocated*\nn2 draining\n", ["n1 (allocated*)", "n2 (draining)"]),
        ("n1 down~\nn2 completing\n", ["n1 (down~)"]),
    ],
)
def test_nodes_that_are_leaving_are_an_error(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, nodes: str, unfit: list[str]
) -> None:
    slurm.says(nodes=nodes)
    monkeypatch.setenv("PATH", f"{slurm.directory}{os.pathsep}{os.environ['PATH']}")
    assert unfit_nodes("n[1-2]") == unfit
    if unfit:
        code, output = slurm.run(*COMMAND)
        assert code == 1 and slurm.calls == [REQUEUED] and f"cannot be used: {', '.join(unfit)}" in output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SLURM_JOB_ID": ""}, "no job of SLURM's: submit the batch script with sbatch"),
        ({"SLURM_JOB_NUM_NODES": ""}, "no job of SLURM's"),
        ({"SLURM_HET_SIZE": "2"}, "A heterogeneous job was allocated"),
        ({"SLURM_JOB_NODELIST": ""}, "2 nodes, and its node list names others: none"),
        ({"SLURM_JOB_NODELIST": "n1"}, "2 nodes, and its node list names others: n1"),
        ({"SLURM_JOB_CPUS_PER_NODE": "8,4"}, r"The nodes differ in processors \(8, 4\)"),
        ({"SLURM_TASKS_PER_NODE": "2,1"}, r"The nodes differ in tasks \(2, 1\)"),
        ({"SLURM_TASKS_PER_NODE": "2"}, "2 nodes, and tasks on 1: give --ntasks-per-node"),
        ({"SLURM_TASKS_PER_NODE": "4(x2)"}, "4 ranks on a node with 2 GPUs"),
        ({"SLURM_GPUS_ON_NODE": "4"}, "4 GPUs a node were allocated to 2 tasks: give --ntasks-per-node=4"),
    ],
)
def test_an_allocation_that_is_not_whole_is_refused(slurm: FakeSlurm, changes: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_allocation(JOB | changes)


def test_a_refused_allocation_does_not_come_again(slurm: FakeSlurm) -> None:
    code, output = slurm.run(*COMMAND, SLURM_HET_SIZE="2")
    assert code == 2 and not (slurm.directory / "calls").exists() and "heterogeneous" in output


def test_an_allocation() -> None:
    found = read_allocation(JOB | {"SLURM_RESTART_COUNT": "3", allocation.RESTARTS: "4"})
    assert (found.num_nodes, found.tasks_per_node, found.num_ranks, found.restarts) == (2, 2, 4, 7)
    alone = read_allocation(JOB | {"SLURM_TASKS_PER_NODE": "1(x2)"})
    assert (alone.tasks_per_node, alone.ranks_per_task, alone.ranks_per_node, alone.num_ranks) == (1, 2, 2, 4)


def test_what_slurm_shows_is_read() -> None:
    job = facts(SHOWN_JOB.format(requeue=1, preempt=""))
    assert (job["JobId"], job["Requeue"], job["Power"], job["TresPerNode"]) == ("7", "1", "", "gres:gpu:2")
    assert facts(CONFIG.format("75,80"))["RequeueExit"] == "75,80"
    assert [code for code in range(256) if not should_come_again(code, False)] == [0, 2, 3, 4]
    assert not any(should_come_again(code, True) for code in range(256))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_the_batch_scripts_are_sound(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    if shellcheck := shutil.which("shellcheck"):
        assert subprocess.run([shellcheck, script], check=False).returncode == 0


def test_all_batch_scripts_are_there() -> None:
    assert [script.stem for script in SCRIPTS] == ["build_data", "evaluate", "export", "finetune", "pretrain"]


def test_a_filled_script_is_submitted_with_what_was_given(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run by bash up to its last line, it calls the job with the arguments it was filled with, however odd they are."""
    overrides = ["training.max_steps=10", 'about.hardware=it\'s $HOME, `x` & "y"']
    recipe, run = tmp_path / "a recipe's.yaml", tmp_path / "run $1"
    options = ["--nodes=2", "--time=01:00:00", "--partition=gpu", "--no-requeue"]
    text = batch_script(recipe, run, overrides, options)
    heads = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    given = [line for line in heads if any(name in line for name in ("--nodes", "--time", "--partition", "requeue"))]
    assert sorted(given) == sorted(f"#SBATCH {option}" for option in options)
    script = tmp_path / "job.sbatch"
    write_batch_file(script, text)
    write_batch_file(script, text)
    with pytest.raises(InputError, match="is there already, and another one"):
        write_batch_file(script, text + " ")
    shown = text.replace("exec python", "exec python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))'")
    result = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, check=True)
    expected = ["-m", "deltalm_ds.launch.slurm.job", "--max-restarts=50", "--python=python", "train"]
    assert json.loads(result.stdout) == [*expected, f"--out={run}", str(recipe), *overrides]
    monkeypatch.setenv("PATH", f"{slurm.directory}{os.pathsep}{os.environ['PATH']}")
    parsed = job._options([*expected[2:], f"--out={run}", str(recipe), *overrides])
    assert (parsed.recipe, parsed.out, parsed.overrides) == (recipe, run, overrides)
    assert submit(script) == "8" and slurm.calls == [f"sbatch --parsable {script}"]
    slurm.says(refused="parsable")
    with pytest.raises(InputError, match=f"sbatch refused {script}: sbatch: error: refused"):
        submit(script)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="There is no sbatch on this host"):
        submit(script)


def test_what_cannot_be_filled_in_is_refused() -> None:
    for option in ("-N2", "--nodes 2", "nodes=2", "--nodes=2\n#SBATCH --x"):
        with pytest.raises(InputError, match="is no option of sbatch in its long form"):
            batch_script(Path("r.yaml"), Path("run"), options=[option])


def test_the_verb_writes_a_script(tmp_path: Path) -> None:
    recipe, script = ROOT / "recipes" / "multi30k_en_de.yaml", tmp_path / "my.sbatch"
    arguments = ["launch", "--slurm", str(script), str(recipe), "--out", str(tmp_path / "run"), "--sbatch=--nodes=2"]
    result = CliRunner().invoke(app, [*arguments, "training.max_steps=7"])
    assert result.exit_code == 0 and result.stdout == f"{script}\n"
    assert script.read_text() == batch_script(recipe, tmp_path / "run", ["training.max_steps=7"], ["--nodes=2"])
    wrong = CliRunner().invoke(app, [*arguments, "training.max_stps=7"])
    assert isinstance(wrong.exception, InputError) and "max_steps" in str(wrong.exception)
    without = CliRunner().invoke(app, arguments[:3])
    assert "--slurm SCRIPT needs a recipe, and --out RUN" in str(without.exception)

"""The other batch scripts, and training and building under mpirun: work that is done once, without faults."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece

from deltalm_ds.checkpoints.directory import save_model
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.vocabulary import Vocabulary
from tests.cluster.hosts import Hosts
from tests.cluster.slurm_cluster import Slurm, SlurmJob
from tests.faults.tiny import write_experiment

ROOT = Path(__file__).resolve().parents[2]
DELTALM = Path(sys.executable).with_name("deltalm")
LINES = [f"{number} dogs and {number * 7 % 31} cats see the sea" for number in range(400)]
STEPS, SAVE_EVERY = 80, 20
# Which of a host's networks MPI talks over, and that it asks no other than ssh; by the variables of OpenMPI 4 and 5.
MPI_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_ALLOW_RUN_AS_ROOT": "1",
    "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_btl_tcp_if_include": "eth0",
    "OMPI_MCA_oob_tcp_if_include": "eth0",
    "PRTE_MCA_prte_if_include": "eth0",
}


@dataclass(frozen=True)
class Work:
    """What is done, in words, and what does it."""

    what: str
    make: Callable[[Path], dict[str, Any]]


def fresh(path: Path) -> Path:
    """Without what a case that failed has left: it is kept beside."""
    if path.exists():
        path.rename(path.with_name(f"{path.name}.{time.time_ns()}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def exact_experiment(out: Path) -> Path:
    """The tiny experiment, with losses that do not depend on the number of ranks: without dropout. The recipe."""
    return write_experiment(
        out / "tiny", training={"max_steps": STEPS, "save_every": SAVE_EVERY}, model={"dropout": 0.0}
    )


def deltalm(*arguments: str | Path) -> None:
    """A verb, on this machine."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([DELTALM, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def texts(out: Path) -> Path:
    """Texts, a vocabulary of theirs, a test set, and two untrained models."""
    directory = out / "texts"
    if not (directory / "models").exists():
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        for name, lines in (("a", LINES), ("b", LINES[:100] + LINES[50:150])):
            (directory / f"{name}.txt").write_text("\n".join(lines))
        for language in ("en", "de"):
            (directory / f"test.en-de.{language}").write_text("\n".join(LINES[:4]) + "\n")
        spm = {"model_prefix": str(directory / "spm"), "vocab_size": 60, "minloglevel": 2, "num_threads": 1}
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LINES), **spm)
        vocabulary = Vocabulary.from_spm(directory / "spm.model", num_sentinels=4, languages=("de", "en"))
        vocabulary.save(directory / "vocabulary")
        config = DeltaLMConfig.preset("tiny", vocabulary_size=vocabulary.num_tokens)
        for number in "01":
            weights = DeltaLM(config).state_dict()
            save_model(directory / "models" / number, config, weights, vocabulary, {"made_by": "a test"})
    return directory


def _completed(*jobs: SlurmJob) -> dict[str, Any]:
    for job in jobs:
        facts = job.await_end()
        assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), job.messages[-3000:]
    return {"state": "COMPLETED"}


def _sweep(out: Path) -> dict[str, Any]:
    recipe, run = exact_experiment(out), fresh(out / "runs" / "sweep")
    with Hosts(out / "hosts", 2) as hosts, Slurm(hosts, out / "slurm") as slurm:
        head = {"RECIPE": str(recipe), "RUN": str(run), "OVERRIDES": "training.max_steps=10"}
        slurm.submit("finetune", "--ntasks-per-node=1", "--gpus-per-node=1", "--array=0-1", **head)
        slurm.await_that(lambda: len(slurm.jobs()) == 2, what="both tasks")
        found = _completed(*(SlurmJob(slurm, number) for number in slurm.jobs()))
    rates = [(run / str(number) / "recipe.yaml").read_text() for number in range(2)]
    assert "peak_lr: 0.0001" in rates[0] and "peak_lr: 0.0003" in rates[1]
    return found


def _evaluate(out: Path) -> dict[str, Any]:
    directory, results = texts(out), fresh(out / "evaluations")
    models = " ".join(str(directory / "models" / number) for number in "01")
    head = {"MODELS": models, "DATA": str(directory), "OUT": str(results), "OPTIONS": "--beam 1 --max-length 8"}
    with Hosts(out / "hosts", 2) as hosts, Slurm(hosts, out / "slurm") as slurm:
        slurm.submit("evaluate", "--array=0-1", **head)
        slurm.await_that(lambda: len(slurm.jobs()) == 2, what="both tasks")
        found = _completed(*(SlurmJob(slurm, number) for number in slurm.jobs()))
    assert all((results / number / "scores.json").exists() for number in "01")
    return found


def _export(out: Path) -> dict[str, Any]:
    directory, result = texts(out), fresh(out / "exported")
    with Hosts(out / "hosts", 2) as hosts, Slurm(hosts, out / "slurm") as slurm:
        head = {"MODEL": str(directory / "models" / "0"), "OUT": str(result)}
        found = _completed(slurm.submit("export", "--mem=1G", **head))
    assert (result / "model.bin").exists()
    return found


def _same_as_by_one_process(out: Path, built: Path) -> None:
    one = out / "built_by_one"
    if not one.exists():
        deltalm("data", "build", *_build_arguments(out), "--out", one)
    contents = [{path.name: path.read_bytes() for path in directory.iterdir()} for directory in (one, built)]
    assert contents[0] == contents[1] and len(contents[0]) > 15


def _build_arguments(out: Path) -> list[str | Path]:
    directory = texts(out)
    options = ["--deduplicate", "--rows-per-shard", "30"]
    return ["--vocab", directory / "vocabulary", *options, *_texts(directory).split()]


def _texts(directory: Path) -> str:
    return f"--mono en={directory}/a.txt --mono de={directory}/b.txt"


def _build(out: Path) -> dict[str, Any]:
    directory, built = texts(out), fresh(out / "built_by_srun")
    head = {"VOCABULARY": str(directory / "vocabulary"), "OUT": str(built)}
    head["TEXTS"] = f"--deduplicate --rows-per-shard 30 {_texts(directory)}"
    with Hosts(out / "hosts", 2) as hosts, Slurm(hosts, out / "slurm") as slurm:
        found = _completed(slurm.submit("build_data", "--nodes=2", "--ntasks-per-node=2", **head))
    _same_as_by_one_process(out, built)
    return found


def _mpirun(hosts: Hosts, ranks: int, *command: str | Path, **environment: str) -> None:
    """Run ranks on two hosts.

    Raises:
        AssertionError: they failed.
    """
    values = MPI_ENVIRONMENT | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"} | environment
    exported = [word for name in values for word in ("-x", name)]
    where = ["-n", str(ranks), "--host", ",".join(f"{name}:{ranks // 2}" for name in hosts.names[:2])]
    mpirun = shutil.which("mpirun", path=f"{DELTALM.parent}{os.pathsep}{os.environ['PATH']}")
    assert mpirun, "there is no mpirun"
    log = hosts.state / "mpirun.log"
    with open(log, "wb") as file:
        code = hosts.start("n1", [mpirun, *where, *exported, *command], file, **values).wait(600)
    assert code == 0, log.read_text(errors="replace")[-3000:]


def _mpi_build(ranks: int) -> Callable[[Path], dict[str, Any]]:
    def make(out: Path) -> dict[str, Any]:
        built = fresh(out / f"built_by_mpirun_{ranks}")
        with Hosts(out / "hosts", 2) as hosts:
            _mpirun(hosts, ranks, DELTALM, "data", "build", *_build_arguments(out), "--out", built)
        _same_as_by_one_process(out, built)
        return {"state": "same bytes"}

    return make


def _mpi_train(ranks: int) -> Callable[[Path], dict[str, Any]]:
    def make(out: Path) -> dict[str, Any]:
        from tests.cluster.slurm_campaign import compare

        recipe = exact_experiment(out)
        run = fresh(out / "runs" / f"mpirun_{ranks}")
        deltalm("train", recipe, "--out", run, "--prepare")
        with Hosts(out / "hosts", 2) as hosts:
            _mpirun(hosts, ranks, sys.executable, "-m", "mpi4py", "-m", "deltalm_ds.training.train", run)
        return {"state": "exit code 0", "apart": compare(out, run, recipe, same_ranks=ranks == 2)}

    return make


WORK = {
    "sweep": Work("`finetune.sbatch` as an array of two", _sweep),
    "evaluate": Work("`evaluate.sbatch` as an array of two", _evaluate),
    "export": Work("`export.sbatch`", _export),
    "build_data": Work("`build_data.sbatch`, 2 nodes × 2 tasks: the bytes of one process", _build),
    "mpi_build_2": Work("`mpirun -n 2 deltalm data build`, two hosts: the bytes of one process", _mpi_build(2)),
    "mpi_build_4": Work("`mpirun -n 4 deltalm data build`, two hosts: the bytes of one process", _mpi_build(4)),
    "mpi_train_2": Work("`mpirun -n 2` trains, two hosts", _mpi_train(2)),
    "mpi_train_4": Work("`mpirun -n 4` trains, two hosts", _mpi_train(4)),
}

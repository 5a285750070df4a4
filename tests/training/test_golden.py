"""Golden loss curves: fifty steps to the last bit. Whatever changes one changes the computation.

An upgrade of PyTorch or DeepSpeed must pass, and so must every change that is not meant to change a number. Recorded
anew by `make golden`, which is a change to be explained.

Processors sum in different orders. The runs use the simplest instructions that every x86-64 processor has, and each
curve stands beside a fingerprint of the arithmetic it was recorded with (arithmetic.py): where that is the machine's,
the curve must be equal; elsewhere it must be close, and a warning says so.
"""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from jobs import Job
from plain import records

GOLDEN = Path(__file__).parents[1] / "golden"
RECORD = "DELTALM_RECORD_GOLDEN"
# every library by the instructions that all x86-64 processors have, in one order
PORTABLE = {
    "OMP_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "DELTALM_LINEAR": "torch",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX_Usable,-AVX2_Usable,-FMA_Usable,-FMA4_Usable,-AVX,-AVX2,-FMA,-FMA4",
}
DROPOUT = {"dropout": 0.2, "attention_dropout": 0.1, "activation_dropout": 0.1}
CURVES = {  # name: ranks, changes of the recipe, how close it is by other arithmetic
    "seq2seq": (1, {"model": DROPOUT}, 1e-5),
    "span_corruption": (1, {"objective": {"kind": "span_corruption", "noise_density": 0.3}}, 1e-5),
    "zero2_accumulated": (2, {"deepspeed": "fp32_zero2", "batch": {"min_micro_batches": 3}}, 1e-5),
    "bf16": (1, {"deepspeed": "bf16_zero1"}, 2e-3),
}
NUM_STEPS = 50
CHANGES = {"schedule": {"peak_lr": 1e-3}, "validation": None}


@pytest.fixture(scope="module")
def arithmetic():
    """The fingerprints of this machine's arithmetic."""
    command = [sys.executable, Path(__file__).with_name("arithmetic.py")]
    return json.loads(subprocess.run(command, env=os.environ | PORTABLE, capture_output=True, check=True).stdout)


@pytest.fixture(scope="module")
def curves(tmp_path_factory, training_data, make_run, run_on_ranks):
    """Losses and norms of every curve, each number as hexadecimal text."""
    directory = tmp_path_factory.mktemp("golden")
    jobs = {}
    for name, (num_ranks, changes, _) in CURVES.items():
        changes = CHANGES | changes
        training = {"max_steps": NUM_STEPS, "save_every": NUM_STEPS}
        data = {"train": [{"path": str(training_data / "train"), "objective": changes.pop("objective", "seq2seq")}]}
        run = make_run(directory / name, data=data, training=training, **changes)
        jobs.setdefault(num_ranks, []).append(Job(run))
    for num_ranks, of_ranks in jobs.items():
        assert set(run_on_ranks(directory, of_ranks, num_ranks, PORTABLE)) == {0}
    return {name: curve(directory / name) for name in CURVES}


def curve(run):
    keys = ("loss", "gradient_norm")
    return {key: [float(record[key]).hex() for record in records(run)] for key in keys}


@pytest.mark.parametrize("name", CURVES)
def test_a_curve_is_golden(name, curves, arithmetic):
    path = GOLDEN / f"{name}.json"
    fingerprint = arithmetic["bfloat16" if name == "bf16" else "float32"]
    if os.environ.get(RECORD):
        path.write_text(json.dumps({"arithmetic": fingerprint, **curves[name]}, indent=1) + "\n")
    golden = json.loads(path.read_text())
    losses, expected = ([float.fromhex(value) for value in one["loss"]] for one in (curves[name], golden))
    assert len(losses) == len(expected) == NUM_STEPS
    assert expected[-1] < 0.9 * expected[0]  # something is learned
    if golden.pop("arithmetic") == fingerprint:
        assert curves[name] == golden
        return
    tolerance = CURVES[name][2]
    warnings.warn(
        f"{path.name} was recorded by other arithmetic: compared to {tolerance:g} relative only", stacklevel=1
    )
    assert losses == pytest.approx(expected, rel=tolerance, abs=0)

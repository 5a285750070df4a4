"""Which backend serves an op, and what forces another."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_cases import Case, small_cases

from deltalm_ds.errors import InputError
from deltalm_ds.kernels import dispatch
from deltalm_ds.kernels.dispatch import BACKENDS, VARIABLE, choose, implementation
from deltalm_ds.kernels.dropout import dropout
from deltalm_ds.kernels.table import OPS

ROOT = Path(__file__).parents[2]
V100, A100, H200 = (7, 0), (8, 0), (9, 0)


@pytest.fixture(autouse=True)
def nothing_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(dispatch, "triton_is_installed", lambda: True)


@pytest.mark.parametrize("op", OPS)
def test_every_row_has_its_files(op: str) -> None:
    """One stem: the op, its fused kernel, its benchmark and its cases."""
    for name in (f"kernels/{op}.py", f"kernels/fused/{op}.py", f"benchmarks/kernels/{op}.py"):
        assert (ROOT / name).is_file(), name
    assert (Path(__file__).parent / f"cases_{op}.py").is_file()


def rows_of_docs(heading: str) -> list[list[str]]:
    """The cells of the table of docs/kernels.md whose first column has this heading."""
    lines = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading} |")) + 2
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[start:])
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_docs_name_every_op_and_backend() -> None:
    assert {row[0] for row in rows_of_docs("backend")} == {f"`{backend}`" for backend in BACKENDS}
    described = [
        [
            f"[`{name}`](../kernels/{name}.py)",
            "sm_80" if op.needs_tensor_cores else "sm_70",
            "yes" if op.apex else "",
            "yes" if op.flash else "",
        ]
        for name, op in OPS.items()
    ]
    assert rows_of_docs("op") == described
    sections = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8").casefold()
    assert [name for name in OPS if f"\n## {name}\n" not in sections] == []


@pytest.mark.parametrize(
    ("op", "capability", "dtype", "backend"),
    [
        ("attention", A100, torch.bfloat16, "triton"),
        ("attention", H200, torch.float32, "triton"),
        ("attention", V100, torch.float16, "torch"),
        ("layer_norm", V100, torch.float16, "triton"),
        ("layer_norm", V100, torch.bfloat16, "torch"),
        ("feed_forward", H200, torch.float64, "torch"),
        ("dropout", None, torch.float32, "torch"),
    ],
)
def test_rules(op: str, capability: tuple[int, int] | None, dtype: torch.dtype, backend: str) -> None:
    choice = choose(OPS[op], capability, dtype)
    assert choice.backend == backend
    assert choice.why


def test_without_triton_torch_serves_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "triton_is_installed", lambda: False)
    assert {choose(op, H200, torch.bfloat16) for op in OPS.values()} == {("torch", "Triton is not installed")}


@pytest.mark.parametrize("op", OPS)
def test_this_machines_processor_is_served_by_torch(op: str) -> None:
    assert implementation(OPS[op], torch.ones(2)) is OPS[op].torch


@pytest.mark.parametrize("backend", ["reference", "triton", "torch"])
def test_the_variable_forces_a_backend(backend: str) -> None:
    code = (
        "import torch\n"
        "from deltalm_ds.kernels import dropout, dispatch\n"
        "chosen = dispatch.implementation(dropout.OP, torch.ones(2))\n"
        "print([name for name in dispatch.BACKENDS if getattr(dropout.OP, name) is chosen])"
    )
    if backend == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    environment = {**os.environ, VARIABLE: backend}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert process.stdout == f"{[backend]}\n"


def test_a_running_process_follows_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is kept from an import or an earlier call: the definition's masks are not those of torch's path."""
    x = torch.ones(64, 16)
    results = {}
    for backend in ("torch", "reference", "", "torch"):
        monkeypatch.setenv(VARIABLE, backend)
        torch.manual_seed(0)
        results.setdefault(backend, []).append(dropout(x, 0.5))
    assert torch.equal(*results["torch"])
    assert torch.equal(results[""][0], results["torch"][0])
    assert not torch.equal(results["reference"][0], results["torch"][0])


def test_compiled_code_keeps_what_was_chosen_when_it_was_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a break in its graph, though the choice asks for what tracing cannot follow."""
    compiled = torch.compile(lambda x: dropout(x, 0.5) + 1, fullgraph=True, backend="eager")
    monkeypatch.setenv(VARIABLE, "reference")
    results = []
    for later in ("reference", "torch"):
        torch.manual_seed(0)
        results.append(compiled(torch.ones(64, 16)))
        monkeypatch.setenv(VARIABLE, later)
    torch.manual_seed(0)
    results.append(compiled(torch.ones(64, 16)))
    assert torch.equal(results[1], results[0])
    assert torch.equal(results[2], results[0])


def test_a_wrong_name_is_one_sentence_of_the_command_line() -> None:
    command = [sys.executable, "-c", "from deltalm_ds.cli import main; main()", "env"]
    environment = {**os.environ, VARIABLE: "cuda"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    sentence = f"{VARIABLE}=cuda names no backend: choose one of torch, triton, reference, apex, flash, or unset it."
    assert process.stderr == f"deltalm: {sentence}\n"


@pytest.mark.parametrize("package", ["triton", "apex"])
def test_a_package_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setenv(VARIABLE, package)
    monkeypatch.setattr(dispatch, f"{package}_is_installed", lambda: False)
    with pytest.raises(InputError, match=rf"{VARIABLE}={package} needs .*not installed"):
        dropout(torch.ones(2), 0.5)


def test_apex_serves_what_has_it_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "apex")
    monkeypatch.setattr(dispatch, "apex_is_installed", lambda: True)
    assert choose(OPS["layer_norm"], H200, torch.bfloat16) == ("apex", f"{VARIABLE} is set")
    for op in OPS.values():
        assert choose(op, H200, torch.bfloat16).backend == ("triton" if op.apex is None else "apex")
        assert choose(op, None, torch.float32).backend == "torch"


def test_flash_serves_attention_in_16_bits_from_sm_80_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """All else is as without it."""
    unforced = {
        (name, capability, dtype): choose(op, capability, dtype)
        for name, op in OPS.items()
        for capability in (None, V100, A100, H200)
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    }
    monkeypatch.setenv(VARIABLE, "flash")
    for (name, capability, dtype), choice in unforced.items():
        served = name == "attention" and capability in (A100, H200) and dtype in (torch.float16, torch.bfloat16)
        expected = ("flash", f"{VARIABLE} is set") if served else choice
        assert choose(OPS[name], capability, dtype) == expected, (name, capability, dtype)


def test_the_first_preference_that_fits_is_taken() -> None:
    def row(capability: tuple[int, int], dtype: torch.dtype, has_dropout: bool, backend: str) -> dispatch.Preference:
        return dispatch.Preference(capability, (dtype,), has_dropout, dispatch.Choice(backend, "a reason"))

    op = OPS["attention"]._replace(
        preferences=(
            row(H200, torch.float16, False, "triton"),
            row(A100, torch.float16, False, "flash"),
            row(A100, torch.float16, True, "torch"),
        )
    )
    assert choose(op, H200, torch.float16).backend == "triton"
    assert choose(op, A100, torch.float16) == ("flash", "a reason")
    assert choose(op, H200, torch.float16, has_dropout=True).backend == "torch"
    assert choose(op, A100, torch.bfloat16) == ("triton", "fused kernel")
    assert choose(op, V100, torch.float16).backend == "torch"


@pytest.mark.parametrize("has_dropout", [False, True])
@pytest.mark.parametrize("capability", [A100, H200])
def test_what_is_preferred_is_there(capability: tuple[int, int], has_dropout: bool) -> None:
    for op in OPS.values():
        choice = choose(op, capability, torch.bfloat16, has_dropout)
        assert getattr(op, choice.backend) is not None
        assert choice.why


@pytest.mark.parametrize("case", small_cases().values(), ids=small_cases().keys())
def test_every_op_obeys_it(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `reference`, none of torch's fused functions is called, forward or backward."""
    monkeypatch.setenv(VARIABLE, "reference")
    used = []
    for name in ("layer_norm", "gelu", "scaled_dot_product_attention", "dropout", "cross_entropy"):
        monkeypatch.setattr(torch.nn.functional, name, lambda *x, name=name, **y: used.append(name))
    out = case.function(*(x.clone().requires_grad_() for x in case.inputs))
    assert out.requires_grad
    assert used == []

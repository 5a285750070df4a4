"""The choice of a library for linear layers: measured once on a machine, the same in all its processes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from deltalm_ds import linear_choice
from deltalm_ds.kernels import linear
from deltalm_ds.kernels.linear import PRODUCTS, VARIABLE, contenders, in_use, use
from deltalm_ds.linear_choice import find_rates, rates_of_record, record, use_fastest
from deltalm_ds.machine import machine

pytestmark = pytest.mark.skipif(len(contenders(torch.float32)) == 1, reason="PyTorch is built without oneDNN")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that remembers, which is not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    yield tmp_path / "deltalm_ds" / "linear.json"
    use({})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes that were measured, in order; the rates are made up."""
    names: list[str] = []

    def measure(cases):
        names.extend(cases)
        return {name: {"torch": 100.0, "onednn": 100.0 + len(names)} for name in cases}

    monkeypatch.setattr(linear_choice, "measure", measure)
    return names


class Model(nn.Module):
    """Layers of two shapes worth a choice, one of them twice, a token table, and a layer too small for one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20_000, 64)
        self.layers = nn.ModuleList([nn.Linear(256, 512), nn.Linear(512, 256), nn.Linear(256, 512), nn.Linear(8, 8)])


def test_the_shapes_of_a_model_are_measured_once_and_remembered(measured: list[str], cache: Path) -> None:
    use_fastest(Model())
    amounts = ("few", "many")
    shapes = {product: ["512x256", "256x512", "16384+x64"] for product in PRODUCTS}
    shapes["weight_gradient"].pop()  # which the loss adds up in place
    assert set(measured) == {
        f"{product} {amount} {shape} float32" for product in PRODUCTS for amount in amounts for shape in shapes[product]
    }
    chosen = in_use()
    assert json.loads(cache.read_text()) == {machine(): chosen}
    measured.clear()
    use({})
    use_fastest(Model())
    assert measured == []
    assert in_use() == chosen


def test_a_search_needs_the_forward_alone_and_training_then_the_rest(measured: list[str]) -> None:
    first = find_rates(Model(), ["forward"])
    assert {name.split()[0] for name in measured} == {"forward"}
    measured.clear()
    rates = find_rates(Model(), PRODUCTS)
    assert {name.split()[0] for name in measured} == set(PRODUCTS) - {"forward"}
    assert first.items() <= rates.items()


def test_another_number_of_threads_or_precision_is_measured_by_itself(measured: list[str], cache: Path) -> None:
    find_rates(Model(), ["forward"])
    number = len(measured)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        find_rates(Model(), ["forward"])
    finally:
        torch.set_num_threads(threads)
    assert len(measured) == 2 * number
    assert len(json.loads(cache.read_text())) == 2


def test_what_a_run_recorded_is_not_measured_again(measured: list[str], cache: Path) -> None:
    use_fastest(Model())
    recorded = json.loads(json.dumps(record()))
    cache.unlink()
    measured.clear()
    assert find_rates(Model(), PRODUCTS, rates_of_record(recorded)) == in_use()
    assert measured == []
    assert rates_of_record({**recorded, "machine": "another one"}) == {}


@pytest.mark.parametrize("name", ["torch", "onednn"])
def test_a_forced_library_needs_no_measurement(
    measured: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(VARIABLE, name)
    assert find_rates(Model(), PRODUCTS) == {}
    assert measured == []
    assert not cache.exists()
    assert record()["setting"] == name


CLASS = "forward few 512x256 float32"


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[1]",
        '{"MACHINE": "x"}',
        f'{{"MACHINE": {{"{CLASS}": 7}}}}',
        f'{{"MACHINE": {{"{CLASS}": {{"onednn": 3}}}}}}',
        f'{{"MACHINE": {{"{CLASS}": {{"torch": "fast", "onednn": 3}}}}}}',
        f'{{"MACHINE": {{"{CLASS}": {{"torch": 2, "of a later version": 3}}}}}}',
    ],
)
def test_a_damaged_memory_is_made_anew(measured: list[str], cache: Path, content: str) -> None:
    """Or one of another version; what it holds is used by nobody."""
    cache.parent.mkdir()
    cache.write_text(content.replace("MACHINE", machine()))
    assert record()["products"] == []
    rates = find_rates(Model(), ["forward"])
    assert json.loads(cache.read_text()) == {machine(): rates}


def test_what_cannot_be_remembered_is_not_chosen(
    measured: list[str], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else two processes could compute other last bits."""
    cache.parent.write_text("a file where the directory should be")
    assert find_rates(Model(), PRODUCTS) == {}
    assert "cannot be written" in capsys.readouterr().err


def test_without_a_home_directory_nothing_is_chosen(
    measured: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a container's user is in no list of users."""

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    assert find_rates(Model(), PRODUCTS) == {}
    assert record()["products"] == []
    assert "(this user has no home directory)" in capsys.readouterr().err


def test_processes_that_start_together_choose_the_same() -> None:
    """The file is empty, and each would measure other rates."""
    code = (
        "import json, sys, torch\n"
        "from torch import nn\n"
        "from deltalm_ds.linear_choice import find_rates\n"
        "sys.stdin.read()\n"
        "print(json.dumps(find_rates(nn.Linear(256, 512), ['forward', 'weight_gradient'])))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdin=-1, stdout=-1, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    rates = [json.loads(process.communicate()[0]) for process in processes]
    assert rates[0]
    assert rates[1] == rates[2] == rates[0]


def test_record_shows_what_is_in_use_before_what_is_remembered(measured: list[str]) -> None:
    find_rates(Model(), ["forward"])
    assert {row["by"] for row in record()["products"]} == {"onednn"}
    use({"forward few 8x8 float32": {"torch": 2.0, "onednn": 1.0}})
    assert record()["products"] == [{"product": "forward few 8x8 float32", "by": "torch", "torch": 2.0, "onednn": 1.0}]


def test_a_choice_changes_nothing_but_rounding(measured: list[str]) -> None:
    """The measured choice is what layers take: all by oneDNN here."""
    torch.manual_seed(0)
    layer, x = nn.Linear(256, 512), torch.randn(5, 256)
    plain = linear.linear(x, layer.weight, layer.bias)
    use_fastest(layer)
    chosen = linear.linear(x, layer.weight, layer.bias)
    assert chosen.grad_fn is not None
    assert "_Linear" in type(chosen.grad_fn).__name__
    torch.testing.assert_close(chosen, plain, rtol=0, atol=3e-6)

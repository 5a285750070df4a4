"""All ranks of a run, and all its starts, compute linear layers by the same libraries."""

import json
from pathlib import Path

import pytest
import torch

from deltalm_ds.kernels.linear import contenders
from deltalm_ds.runs.events import read_events
from tests.ranks_here import exit_codes, places, start_rank

pytestmark = pytest.mark.skipif(len(contenders(torch.float32)) == 1, reason="PyTorch is built without oneDNN")

# Each rank would measure other rates: rank 0 finds oneDNN faster, the others PyTorch's own.
RANK = """
import json, sys
from pathlib import Path
import torch
from torch import distributed, nn
from deltalm_ds import linear_choice
from deltalm_ds.files import write_json
from deltalm_ds.kernels.linear import in_use
from deltalm_ds.training.linear_choice import choose_for_all_ranks

distributed.init_process_group("gloo")
rank, run = distributed.get_rank(), Path(sys.argv[1])
linear_choice.measure = lambda cases: {name: {"torch": 2.0, "onednn": 1.0 + 2 * (rank == 0)} for name in cases}
try:
    choose_for_all_ranks(nn.Linear(256, 512), torch.device("cpu"), run)
    found = in_use()
except Exception as error:
    found = str(error)
if rank == 0:
    write_json(run / "environment.json", {"linear": linear_choice.record()})
(run / f"{rank}.json").write_text(json.dumps(found))
distributed.barrier()  # a rank that ends first takes the connections of the other away
distributed.destroy_process_group()
"""


@pytest.fixture(autouse=True)
def without_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DELTALM_LINEAR", raising=False)


def start(run: Path, **variables: str) -> list[object]:
    """What two ranks use, each with an empty memory of its own."""
    ranks = []
    for rank, place in enumerate(places(2)):
        memory = run / f"memory_{len(list(run.glob('memory_*')))}"
        memory.mkdir(parents=True)
        place["XDG_CACHE_HOME"] = str(memory)
        place |= {name: value for name, value in variables.items() if name != "RANK_1"}
        if rank == 1 and "RANK_1" in variables:
            place["DELTALM_LINEAR"] = variables["RANK_1"]
        ranks.append(start_rank(["-c", RANK, run], place))
    assert exit_codes(ranks, 120) == [0, 0]
    return [json.loads((run / f"{rank}.json").read_text()) for rank in range(2)]


def test_all_ranks_and_all_starts_use_what_rank_0_chose(tmp_path: Path) -> None:
    first = start(tmp_path)
    assert first[0] == first[1]
    assert {tuple(rates.values()) for rates in first[0].values()} == {(2.0, 3.0)}
    recorded = json.loads((tmp_path / "environment.json").read_text())["linear"]
    assert {row["by"] for row in recorded["products"]} == {"onednn"}

    for row in recorded["products"]:  # the run's own record decides, not what would be measured now
        row["onednn"], row["by"] = 1.0, "torch"
    (tmp_path / "environment.json").write_text(json.dumps({"linear": recorded}))
    again = start(tmp_path)
    assert again[0] == again[1]
    assert {tuple(rates.values()) for rates in again[0].values()} == {(2.0, 1.0)}
    assert read_events(tmp_path) == []


@pytest.mark.parametrize("changed", ["variable", "machine"])
def test_a_start_that_differs_is_told(tmp_path: Path, changed: str, capfd: pytest.CaptureFixture[str]) -> None:
    products = [{"product": "forward few 512x256 float32", "by": "onednn", "torch": 1.0, "onednn": 2.0}]
    recorded = {"setting": "auto", "machine": "another", "products": products}
    (tmp_path / "environment.json").write_text(json.dumps({"linear": recorded}))
    if changed == "variable":
        found = start(tmp_path, DELTALM_LINEAR="torch")
        assert found == [{}, {}]
    else:
        found = start(tmp_path)
        assert found[0] == found[1] != {}
    (event,) = read_events(tmp_path)
    was, now = event["changes"]["linear layers"]
    assert was == "the fastest on another (1 of onednn)"
    assert now == "torch" if changed == "variable" else now.endswith("(6 of onednn)")
    assert f"were computed by {was}, are computed by {now}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("of_rank_1", "sentence"),
    [
        ("onednn", "DELTALM_LINEAR differs between ranks: auto, onednn. Set it alike on every host."),
        ("mkl", "DELTALM_LINEAR=mkl names no library: choose one of torch, onednn, auto, or unset it."),
    ],
)
def test_ranks_that_are_told_different_things_all_end(tmp_path: Path, of_rank_1: str, sentence: str) -> None:
    assert start(tmp_path, RANK_1=of_rank_1) == [sentence, sentence]

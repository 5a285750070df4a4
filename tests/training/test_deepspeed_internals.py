"""What training uses of DeepSpeed that is not public does what it relies on, in an engine of every ZeRO stage."""

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import deepspeed
import deepspeed.ops
import pytest
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.comm.torch import TorchBackend, build_shm_op
from deepspeed.ops.op_builder.cpu.comm import ShareMemCommBuilder
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state, safe_set_full_optimizer_state

from deltalm_ds.training.deepspeed_config import config_path
from deltalm_ds.training.deepspeed_internals import _COLLECTIVES, leave_out_shared_memory_op, time_communication
from deltalm_ds.training.sections import Sections
from tests.ranks_here import places, start_rank

SHAPES = [(5, 7), (5,), (3, 5), (3,)]


def look_at_engines() -> None:
    """In a process of its own, which is the only rank: print a JSON object for each stage."""
    from deltalm_ds.training.deepspeed_engine import create_moments, start_distributed
    from deltalm_ds.training.deepspeed_internals import full_size, master_weights
    from deltalm_ds.training.parameter_states import MOMENTS

    start_distributed()
    for name in ("fp32_zero1", "bf16_zero1", "bf16_zero2", "fp32_zero3"):
        model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 3))
        config = json.loads(config_path(name).read_text()) | {"gradient_clipping": 1.0}
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        ds_engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        create_moments(ds_engine, 7)
        parameters = list(ds_engine.module.parameters())
        found: dict[str, Any] = {"stage": ds_engine.zero_optimization_stage()}
        found["sizes"] = [full_size(parameter) for parameter in parameters]
        found["held"] = sum(parameter.numel() for parameter in parameters)
        found["masters"] = sum(flat.numel() for flat in master_weights(ds_engine))
        zeros = [safe_get_full_optimizer_state(parameter, MOMENTS[0]) for parameter in parameters]
        found["moments"] = [None if moment is None else [moment.numel(), moment.abs().sum().item()] for moment in zeros]
        for number, parameter in enumerate(parameters):  # what is set must be what a step then uses
            value = torch.full(SHAPES[number], float(number + 1))
            for moment in MOMENTS:
                safe_set_full_optimizer_state(parameter, value, moment)
        out = ds_engine(torch.zeros(1, 7, dtype=torch.bfloat16 if "bf16" in name else torch.float32))
        ds_engine.backward(0.0 * out.float().sum(), scale_wrt_gas=False)
        ds_engine.step()
        after = [safe_get_full_optimizer_state(parameter, MOMENTS[0]).unique().tolist() for parameter in parameters]
        found["after a step without gradient"] = after
        found["counts"] = [optimizer.state[flat]["step"].item() for flat in master_weights(ds_engine)]
        print(json.dumps(found), flush=True)
    torch.distributed.destroy_process_group()


def compare_engines() -> None:
    """In a process of its own, which is the only rank: train with and without `hold_numbers_once`, and print both."""
    from deltalm_ds.training import deepspeed_internals
    from deltalm_ds.training.deepspeed_engine import start_distributed

    start_distributed()
    deepspeed_internals.CPU_NORM_BLOCK = 8  # of the 35 elements of the largest parameter
    for name in ("fp32_zero1", "fp32_zero2", "bf16_zero1", "bf16_zero2"):
        print(json.dumps({"name": name, "plain": trained(name, False), "held": trained(name, True)}), flush=True)
    torch.distributed.destroy_process_group()


def trained(name: str, is_held: bool) -> dict[str, Any]:
    """Weights, moments and norms of three steps of two micro-batches, in hexadecimal, and where things lie."""
    from deltalm_ds.training.deepspeed_internals import hold_numbers_once, master_weights
    from deltalm_ds.training.parameter_states import MOMENTS

    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 3))
    config = json.loads(config_path(name).read_text()) | {"gradient_clipping": 0.5}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    ds_engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if is_held:
        hold_numbers_once(ds_engine)
    norms, places = [], set()
    for _ in range(3):
        for _ in range(2):
            x = torch.randn(4, 7).to(torch.bfloat16 if "bf16" in name else torch.float32)
            ds_engine.backward(ds_engine(x).float().square().sum(), scale_wrt_gas=False)
            flat = getattr(ds_engine.optimizer, "averaged_gradients", {}).get(0)
            places.add(flat.flat_partition.data_ptr() if hasattr(flat, "flat_partition") else 0)
        ds_engine.step()
        norms.append(float(ds_engine.get_global_grad_norm()).hex())
    parameters = list(ds_engine.module.parameters())
    numbers = [p.detach().float() for p in parameters] + [safe_get_full_fp32_param(p) for p in parameters]
    numbers += [safe_get_full_optimizer_state(p, moment) for p in parameters for moment in MOMENTS]
    return {
        "numbers": [value.hex() for tensor in numbers for value in tensor.flatten().tolist()],
        "norms": norms,
        "shares": master_weights(ds_engine)[0].data_ptr() == parameters[0].data_ptr(),
        "flat gradients": 0 not in places and len(places),
    }


def printed_by(what: str) -> list[dict[str, Any]]:
    """The JSON lines of this file run as the only rank."""
    (place,) = places()
    place["DS_ACCELERATOR"] = "cpu"  # as `deltalm train` says, else it prints that it guessed so
    rank = start_rank([__file__, what], place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    told, errors = rank.communicate()
    assert rank.returncode == 0, errors[-5000:]
    return [json.loads(line) for line in told.splitlines()]  # and DeepSpeed prints nothing


@pytest.fixture(scope="module")
def engines() -> list[dict[str, Any]]:
    """What DeepSpeed engines of stages 1, 1, 2 and 3 show."""
    return printed_by("look")


def test_numbers_held_once_are_those_of_deepspeed() -> None:
    """Bit for bit; what makes the difference is looked at, so that none of it can be lost unnoticed."""
    for found in printed_by("compare"):
        plain, held = found["plain"], found["held"]
        assert held["numbers"] == plain["numbers"] and held["norms"] == plain["norms"], found["name"]
        assert all(float.fromhex(norm) > 0.5 for norm in held["norms"])  # or clipping would change nothing
        assert not plain["shares"] and held["shares"] == found["name"].startswith("fp32"), found["name"]
        if found["name"].endswith("zero2"):
            assert held["flat gradients"] == 1, found["name"]  # at one place in all steps


def test_the_shared_memory_op_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What DeepSpeed asks for when ranks join is built without this, and not with it."""
    built: list[str] = []
    builder = SimpleNamespace(NAME=ShareMemCommBuilder.NAME, absolute_name=str, load=lambda: built.append("shm"))
    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, builder.NAME, True)
    monkeypatch.setattr(get_accelerator(), "create_op_builder", lambda name: builder)
    build_shm_op()
    assert built == ["shm"]
    leave_out_shared_memory_op()
    build_shm_op()
    assert built == ["shm"]


@pytest.mark.parametrize("is_left", [False, True])
def test_muon_imports_a_compiler_unless_it_is_left_uncompiled(is_left: bool) -> None:
    """DeepSpeed's optimizers import it at every start."""
    leave = "internals.leave_muon_uncompiled()" if is_left else ""
    code = f"""
import sys
import deltalm_ds.training.deepspeed_internals as internals
{leave}
import deepspeed.runtime.zero.muon.muon_optimizer
print("torch._inductor.compile_fx" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == str(not is_left)


def test_collectives_of_deepspeed_are_a_section(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that its optimizers call reach the one object that is timed; a later training has its own clock."""
    assert all(callable(getattr(TorchBackend, name)) for name in _COLLECTIVES)
    clock: list[Sections] = []
    called: list[tuple[str, str]] = []

    def collective(name: str) -> Any:
        return lambda self, *_, **__: called.append((name, clock[-1].current[0]))

    backend = type("Backend", (), {name: collective(name) for name in _COLLECTIVES})()
    backend.is_initialized = lambda: True
    monkeypatch.setattr(deepspeed.comm.comm, "cdb", backend)
    for _ in range(2):
        clock.append(Sections())
        time_communication(clock[-1])
        called.clear()
        x = torch.ones(2)
        deepspeed.comm.all_reduce(x)
        deepspeed.comm.reduce(x, 0)
        deepspeed.comm.broadcast(x, 0)
        deepspeed.comm.all_gather([x], x)
        deepspeed.comm.all_gather_into_tensor(x, x)
        deepspeed.comm.reduce_scatter(x, [x])
        deepspeed.comm.reduce_scatter_tensor(x, x)
        names = "all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor"
        wanted = [*names, "reduce_scatter", "reduce_scatter_tensor"]
        assert called == [(name, "communication") for name in wanted]
        assert clock[-1].current[0] == "start" and clock[-1].seconds["communication"] > 0


def test_waiting_for_a_collective_under_way_is_a_section(monkeypatch: pytest.MonkeyPatch) -> None:
    sections, waits = Sections(), []
    work = SimpleNamespace(wait=lambda *_: waits.append(sections.current[0]), is_completed=lambda: True)
    backend = type("Backend", (), {name: lambda self, *_, **__: work for name in _COLLECTIVES})()
    backend.is_initialized = lambda: True
    monkeypatch.setattr(deepspeed.comm.comm, "cdb", backend)
    time_communication(sections)
    handle = deepspeed.comm.all_gather_into_tensor(torch.ones(2), torch.ones(2), async_op=True)
    with sections.section("forward"):
        handle.wait()
        assert handle.is_completed() and sections.current[0] == "forward"
    assert waits == ["communication"]


def test_sizes_are_those_of_the_model(engines: list[dict[str, Any]]) -> None:
    sizes = [35, 5, 15, 3]
    assert [found["stage"] for found in engines] == [1, 1, 2, 3]
    for found in engines:
        assert found["sizes"] == sizes
        assert found["masters"] >= sum(sizes)  # with what makes the partitions even
    assert engines[-1]["held"] < sum(sizes)  # or `full_size` would not be needed


def test_moments_are_found_before_the_first_step(engines: list[dict[str, Any]]) -> None:
    for found in engines:
        assert found["moments"] == [[35, 0.0], [5, 0.0], [15, 0.0], [3, 0.0]], found["stage"]


def test_a_step_goes_on_from_the_moments_and_the_count(engines: list[dict[str, Any]]) -> None:
    """Without a gradient it multiplies the first moment by beta, 0.9."""
    for found in engines:
        assert found["after a step without gradient"] == [[pytest.approx(0.9 * number)] for number in range(1, 5)]
        assert set(found["counts"]) == {8.0}


if __name__ == "__main__":
    compare_engines() if sys.argv[1] == "compare" else look_at_engines()

"""Every check on hosts of which some are not as they should be: who is named, how bad it is, and what is said."""

import re
from typing import Any

import pytest

from deltalm_ds.launch.hostfile import Host
from deltalm_ds.launch.preflight import gpu_checks, host_checks, network_checks
from deltalm_ds.launch.preflight.check import CHECKS
from deltalm_ds.launch.preflight.facts import Code
from deltalm_ds.launch.preflight.findings import FAIL, PASS, WARN, Check, Finding, Report, majority, spared, verdict
from tests.launch.preflight.told import CODE, GIB, gpu, survey

ERROR = {"error": "it broke"}


def findings(check: Any, *arguments: Any, **fields: Any) -> list[Finding]:
    return list(check(survey(*arguments, **fields)).findings())


def faults(check: Any, *arguments: Any, **fields: Any) -> list[Finding]:
    return [one for one in findings(check, *arguments, **fields) if one.level != PASS]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_sound_hosts_pass_in_one_row(check: Any) -> None:
    (row,) = findings(check)
    assert (row.level, row.hosts) == (PASS, ("n1", "n2", "n3", "n4"))
    assert row.what


@pytest.mark.parametrize(
    ("check", "path", "value", "level", "what"),
    [
        (host_checks.code, "code/checksum", "d" * 64, FAIL, "0.1.0 at aaaaaaaaa, checksum ddd.*, the others"),
        (host_checks.code, "code", ERROR, FAIL, "it broke"),
        (host_checks.packages, "packages/deepspeed", "0.19.7", FAIL, "deepspeed 0.19.7, the others 0.19.8"),
        (host_checks.packages, "packages/torch", None, FAIL, "torch missing, the others 2.11.0"),
        (host_checks.packages, "packages/pydantic", "2.13.0", WARN, "pydantic 2.13.0"),
        (host_checks.packages, "python", "3.10.9", FAIL, "Python 3.10, the others 3.11"),
        (host_checks.packages, "python", "3.11.9", WARN, "Python 3.11.9, the others 3.11.7"),
        (host_checks.folder, "folder", ERROR, FAIL, r"does not find what this machine wrote.*it broke"),
        (host_checks.folder, "folder/sees", [2], FAIL, r"does not see what n\[1-2,4\] wrote"),
        (host_checks.folder, "folder/lock", "free", WARN, "locks do not reach it"),
        (host_checks.folder, "folder/lock", "No locks available", WARN, "No locks available"),
        (host_checks.folder, "folder/free_bytes", GIB // 2, FAIL, "0.5 GiB are free"),
        (host_checks.folder, "folder/free_files", 7, FAIL, "7 files more"),
        (host_checks.files, "files/ds.json", "d2", FAIL, "ds.json .*d2.*the others"),
        (host_checks.files, "files/ds.json", None, FAIL, "ds.json is not there"),
        (host_checks.files, "files/the recipe", "r2", FAIL, "the recipe"),
        (host_checks.files, "files", ERROR, FAIL, "it broke"),
        (host_checks.inputs, "inputs/data.train.0.path", "m2", FAIL, "data.train.0.path is another one than on this"),
        (host_checks.inputs, "inputs/vocabulary", {"error": "x does not exist."}, FAIL, "vocabulary: x does not"),
        (host_checks.limits, "limits/open_files", 256, WARN, "may open 256 files, and a rank may need 576"),
        (host_checks.limits, "limits/load", 41.0, WARN, "busy"),
        (host_checks.limits, "limits/cores", 20, WARN, "number of cores 20, the others 40"),
        (host_checks.limits, "limits", ERROR, WARN, "it broke"),
        (network_checks.meeting, "network/reached", {}, FAIL, "reaches none of n1's addresses"),
        (network_checks.meeting, "network", ERROR, FAIL, "it broke"),
        (network_checks.interfaces, "network/interfaces/10.0.0.3/2", 1500, FAIL, "MTU 1500, the others 4092"),
        (network_checks.interfaces, "network/interfaces/10.0.0.3/1", 1000, WARN, "1,000 Mbit/s, the others 100,000"),
        (network_checks.interfaces, "network/links/mlx5_0~1/state", "DOWN", WARN, "port mlx5_0/1 is DOWN"),
        (network_checks.interfaces, "network/links/mlx5_0~1/rate", "40 Gb/sec (4X QDR)", WARN, "40 Gb/sec"),
        (network_checks.interfaces, "limits/locked_bytes", 65_536, WARN, "lock 64 KiB"),
        (gpu_checks.devices, "nvml/gpus", [gpu(0)], FAIL, "it has 1 GPU.*2 slots"),
        (gpu_checks.devices, "nvml/gpus", [gpu(index) for index in range(4)], WARN, "4 GPUs, of which .* uses 2"),
        (gpu_checks.devices, "nvml/gpus", [gpu(0), gpu(2)], FAIL, "no GPU 1"),
        (gpu_checks.devices, "nvml/gpus", [], FAIL, "no GPU is found"),
        (gpu_checks.devices, "nvml", {"error": "no library"}, FAIL, "no library"),
        (gpu_checks.devices, "nvml/gpus/1/memory_bytes", 16 * GIB, WARN, "32 GiB and .* 16 GiB"),
        (gpu_checks.devices, "nvml/driver", "470.1", WARN, "driver 470.1, the others 580.95"),
        (gpu_checks.health, "nvml/xids", ["Xid (PCI:0000:3b:00): 79, GPU has fallen"], WARN, "79, GPU has"),
        (gpu_checks.health, "nvml/xids", None, WARN, "not to be read"),
        (gpu_checks.health, "nvml/gpus/1/uncorrected_errors", 3, FAIL, "GPU 1: 3 uncorrected"),
        (gpu_checks.health, "nvml/gpus/1/is_repair_pending", True, WARN, "GPU 1: faulty memory is to be"),
        (gpu_checks.health, "nvml/gpus/1/has_repair_failed", True, FAIL, "no longer"),
        (gpu_checks.health, "nvml/gpus/1/retired_pages", 45, WARN, "45 pages"),
        (gpu_checks.health, "nvml/gpus/1/slowed", ["power brake"], WARN, "GPU 1 at 40 °C is slowed down: power brake"),
        (gpu_checks.health, "nvml/gpus/0/clock_mhz", 900, WARN, "clock is set to 900 MHz, that of most to 1290"),
        (gpu_checks.health, "nvml/gpus/0/power_limit_w", 250, WARN, "GPU 0 may take 250 W, by default 300 W"),
        (gpu_checks.health, "nvml/gpus/0/processes", ["7 python of anna"], FAIL, "in use: 7 python of anna"),
        (gpu_checks.health, "nvml/gpus/0/used_bytes", 5 * GIB, WARN, "in use: 5.0 GiB"),
        (gpu_checks.health, "nvml/gpus/0/mig", True, FAIL, "divided"),
        (gpu_checks.health, "nvml/gpus/0/compute_mode", "prohibited", FAIL, "lets nobody compute"),
        (gpu_checks.health, "nvml/gpus/0/nvlinks", 5, WARN, "NVLinks of a GPU: 5, that of most is 6"),
        (gpu_checks.health, "nvml/gpus/0/pcie_width", 8, WARN, "PCIe lanes of a GPU: 8"),
        (gpu_checks.health, "nvml/gpus/0/ecc", False, WARN, "ECC: False"),
        (gpu_checks.pytorch, "torch", {"error": "No module named 'torch'"}, FAIL, "cannot be imported: No module"),
        (gpu_checks.pytorch, "torch/gpus", [], FAIL, "sees 0 of 2 GPUs"),
        (gpu_checks.pytorch, "torch/fault", "GPU 0: no kernel image", FAIL, "no kernel image"),
        (gpu_checks.pytorch, "torch/nccl", "2.26.2", FAIL, "NCCL 2.26.2, the others"),
        (gpu_checks.shared_memory, "limits/shared_memory_bytes", 64 << 20, WARN, "64 MiB free, .* 256 MiB for 2 ranks"),
    ],
)  # fmt: skip
def test_the_odd_one_out_is_named(check: Any, path: str, value: Any, level: str, what: str) -> None:
    rows = findings(check, {"n3": {path: value}})
    (fault,) = [one for one in rows if one.level != PASS]
    assert (fault.level, fault.hosts) == (level, ("n3",))
    assert re.search(what, fault.what), fault.what
    assert fault.next_step and "{" not in fault.what + fault.next_step
    assert [one.hosts for one in rows if one.level == PASS] == [("n1", "n2", "n4")]


def test_of_two_hosts_that_differ_none_is_the_odd_one() -> None:
    (fault,) = faults(host_checks.packages, {"n1": {"packages/deepspeed": "0.19.7"}}, num_hosts=2)
    assert fault.hosts == ("n1", "n2")
    assert fault.what == "deepspeed differs: n1 0.19.7; n2 0.19.8"


def test_of_two_hosts_that_differ_in_code_this_machine_says_which() -> None:
    (fault,) = faults(host_checks.code, {"n1": {"code/checksum": "d" * 64}}, num_hosts=2)
    assert fault.hosts == ("n1",)


def test_code_here_that_is_not_the_hosts() -> None:
    (fault,) = faults(host_checks.code, code=Code(**CODE | {"checksum": "e" * 64}))
    assert fault.hosts == ("this machine",) and fault.level == FAIL


def test_hosts_with_the_same_fault_share_a_row() -> None:
    (fault,) = faults(gpu_checks.devices, {name: {"nvml/gpus": [gpu(0)]} for name in ("n2", "n4")})
    assert fault.hosts == ("n2", "n4")


@pytest.mark.parametrize(
    ("clocks", "expected"),
    [
        ({"n1": (0.0, 0.0), "n2": (0.0, 0.0), "n3": (1.5, 1.5)}, []),
        ({"n1": (0.0, 0.0), "n2": (-3.0, -3.0), "n3": (-0.1, 0.1)}, [(WARN, "n2", "3.0 s behind")]),
        ({"n1": (89.8, 90.0), "n2": (0.0, 0.0), "n3": (0.0, 0.0)}, [(FAIL, "n1", "89.8 s ahead")]),
        ({"n1": (4.9, 5.0), "n2": (5.0, 5.1), "n3": (5.2, 5.3)}, []),  # this machine's is wrong
        ({"n1": (-9.0, 0.3), "n2": (-4.0, 0.1), "n3": (-0.1, 0.1)}, []),  # lines that took long to come
        ({"n1": (-9.0, -2.5), "n2": (0.0, 20.0), "n3": (-90.0, 0.1)}, [(WARN, "n1", "2.5 s behind")]),
    ],
)
def test_clocks(clocks: dict[str, tuple[float, float]], expected: list[tuple[str, str, str]]) -> None:
    found = faults(host_checks.clock, num_hosts=3, clocks=clocks)
    assert [(one.level, *one.hosts) for one in found] == [(level, name) for level, name, _ in expected]
    assert all(text in one.what for one, (_, _, text) in zip(found, expected, strict=True))


def test_room_for_the_checkpoints_of_the_run() -> None:
    (fault,) = faults(host_checks.folder, checkpoint_bytes=1000 * GIB)
    assert fault.hosts == ("n1", "n2", "n3", "n4") and "needs 1000.0 GiB" in fault.what


def test_a_host_without_a_probe_is_not_waited_for_in_the_shared_folder() -> None:
    changes = {name: {"folder/sees": [0, 2, 3]} for name in ("n1", "n3", "n4")}
    found = survey({**changes, "n2": {"folder": ERROR}})
    (fault,) = [one for one in host_checks.folder(found).findings() if one.level != PASS]
    assert fault.hosts == ("n2",)


def test_a_recipe_that_is_on_one_host_alone_is_compared_with_none() -> None:
    assert faults(host_checks.files, {name: {"files/the recipe": None} for name in ("n2", "n3", "n4")}) == []


def test_the_port_of_the_first_host() -> None:
    (fault,) = faults(network_checks.meeting, {"n1": {"network/port_error": "Address already in use"}})
    assert fault.hosts == ("n1",) and "port 29500 cannot be had: Address already in use" in fault.what


def test_hosts_that_reach_the_first_one_at_different_addresses() -> None:
    found = faults(network_checks.meeting, {"n3": {"network/reached": {"10.1.0.1": "10.1.0.3"}}})
    assert [(one.level, one.hosts) for one in found] == [(FAIL, ("n1",))]
    assert "no address of n1 at which all hosts reach it" in found[0].what


def test_the_first_host_is_told_once_where_it_answers_nobody() -> None:
    changes = {name: {"network/reached": {}} for name in ("n2", "n3", "n4")}
    (fault,) = faults(network_checks.meeting, {"n1": {"network": ERROR}, **changes})
    assert fault.hosts == ("n1",)


def test_no_gpu_anywhere_is_a_warning_and_the_checks_of_gpus_say_nothing() -> None:
    changes = {f"n{number}": {"nvml": {"error": "no library"}} for number in range(1, 5)}
    (fault,) = faults(gpu_checks.devices, changes)
    assert (fault.level, fault.hosts) == (WARN, ("n1", "n2", "n3", "n4"))
    assert findings(gpu_checks.health, changes) == findings(gpu_checks.shared_memory, changes) == []


def test_a_precision_that_gpus_do_not_have() -> None:
    (fault,) = faults(gpu_checks.devices, {"n3": {"nvml/gpus": [gpu(0, capability=(8, 0)), gpu(1, capability=(8, 0))]}},
                      precision="bf16")  # fmt: skip
    assert (fault.level, fault.hosts) == (
        FAIL,
        ("n1", "n2", "n4"),
    ) and "V100-SXM2-32GB computes no bfloat16" in fault.what
    assert faults(gpu_checks.devices, precision="fp16") == []
    changes = {f"n{number}": {"nvml/gpus": []} for number in range(1, 5)}
    (fault,) = faults(gpu_checks.devices, changes, precision="fp16")
    assert fault.level == FAIL and "fp16 needs one" in fault.what


def test_data_that_this_machine_has_not() -> None:
    (fault,) = faults(host_checks.inputs, inputs={"vocabulary": {"error": "v does not exist."}})
    assert (fault.level, fault.hosts, fault.what) == (FAIL, ("this machine",), "vocabulary: v does not exist")


def test_only_the_gpus_that_are_used_are_looked_at() -> None:
    found = survey({"n3": {"nvml/gpus": [gpu(0), gpu(1, uncorrected_errors=9), gpu(2)]}})
    hosts = tuple(Host(host.name, 2, devices=(0, 2) if host.name == "n3" else (0, 1)) for host in found.hosts)
    object.__setattr__(found, "hosts", hosts)
    assert [one for one in gpu_checks.health(found).findings() if one.level != PASS] == []


def test_processors_of_different_kinds_matter_where_they_compute() -> None:
    changes = {f"n{number}": {"nvml/gpus": [], "torch/gpus": []} for number in range(1, 5)}
    changes["n3"]["torch/processor"] = "EPYC"
    (fault,) = faults(gpu_checks.pytorch, changes)
    assert fault.hosts == ("n3",) and "processor EPYC, the others Xeon" in fault.what


def result(**hosts: tuple[float, float]) -> dict[str, Any]:
    """Of the collective test: gigabytes a second and microseconds of each host."""
    return {
        "is_right": True,
        "latency_s": 50e-6,
        "all_reduce": [{"bytes": 1 << 20, "seconds": 1e-3, "bandwidth": 1e9}],
        "hosts": {name: {"bandwidth": rate * 1e9, "latency_s": late * 1e-6} for name, (rate, late) in hosts.items()},
    }


@pytest.mark.parametrize(
    ("slow", "level", "what"),
    [
        ((6.0, 20.0), WARN, "6 GB/s to other hosts, the median is 10 GB/s"),
        ((0.1, 20.0), FAIL, "0.1 GB/s"),
        ((10.0, 150.0), WARN, "150 µs to other hosts, the median is 20 µs"),
        ((10.0, 5000.0), FAIL, "5000 µs"),
    ],
)
def test_a_slow_host_is_named(slow: tuple[float, float], level: str, what: str) -> None:
    check = network_checks.collective(survey(), result(n1=(10, 20), n2=(10, 20), n3=slow, n4=(11, 19)))
    (fault,) = [one for one in check.findings() if one.level != PASS]
    assert (fault.level, fault.hosts) == (level, ("n3",)) and what in fault.what


def test_collectives_of_one_and_two_hosts_name_nobody() -> None:
    for hosts in ({"n1": (10.0, 20.0)}, {"n1": (10.0, 20.0), "n2": (1.0, 20.0)}):
        check = network_checks.collective(survey(num_hosts=len(hosts)), result(**hosts))
        assert [one.level for one in check.findings()] == [PASS]


def test_a_wrong_sum_fails() -> None:
    check = network_checks.collective(survey(), result(n1=(1, 1)) | {"is_right": False})
    assert verdict(check.findings()) == FAIL


def test_majority() -> None:
    assert majority([1, 2, 1]) == 1
    assert majority([1, 1, 2, 2, 3]) is None
    assert majority([]) is None


def test_verdict_is_the_worst() -> None:
    check = Check("x", ("n1", "n2"))
    assert verdict(check.findings()) == PASS
    check.say(WARN, "n1", ("a", "b"))
    assert verdict(check.findings()) == WARN
    check.say(FAIL, "n2", ("a", "b"))
    assert verdict(check.findings()) == FAIL


def test_a_spare_that_fails_keeps_nothing_from_starting() -> None:
    both, other = Finding("x", FAIL, ("n1", "n2"), "a", "b"), Finding("y", FAIL, ("n2",), "c")
    fine = Finding("z", PASS, ("n1", "n2"), "d")
    found = list(spared([both, other, fine], {"n2"}))
    assert found == [
        Finding("x", FAIL, ("n1",), "a", "b"),
        Finding("x", WARN, ("n2",), "a", "b"),
        Finding("y", WARN, ("n2",), "c"),
        fine,
    ]
    assert Report(tuple(found[2:])).exit_code == 0
    assert Report(tuple(found)).exit_code == 2
    assert Report(tuple(found)).summary() == "FAIL: 1 PASS, 2 WARN, 1 FAIL"


def test_this_machine_stands_beside_the_ranges() -> None:
    report = Report((Finding("x", FAIL, ("n1", "n2", "this machine"), "a"),))
    assert report.rows() == [("x", "n[1-2],this machine", FAIL, "a", "")]

"""What sound hosts tell of themselves, and surveys of hosts of which some tell something else."""

import copy
from collections.abc import Mapping
from typing import Any

from deltalm_ds.launch.hostfile import Host
from deltalm_ds.launch.preflight.facts import Code, Facts
from deltalm_ds.launch.preflight.survey import Survey

CODE = {"version": "0.1.0", "commit": "a" * 40, "checksum": "c" * 64, "path": "/opt/deltalm_ds"}
INPUTS = {"vocabulary": "v1", "data.train.0.path": "m1"}
GIB = 1 << 30


def gpu(index: int = 0, **changes: Any) -> dict[str, Any]:
    """A sound V100."""
    sound = {
        "index": index,
        "name": "Tesla V100-SXM2-32GB",
        "memory_bytes": 32 * GIB,
        "capability": (7, 0),
        "used_bytes": 300 << 20,
        "ecc": True,
        "uncorrected_errors": 0,
        "retired_pages": 0,
        "clock_mhz": 1290,
        "max_clock_mhz": 1530,
        "power_limit_w": 300,
        "default_power_limit_w": 300,
        "temperature_c": 40,
        "pcie_width": 16,
        "nvlinks": 6,
        "processes": [],
    }
    return sound | changes


def told(index: int, num_hosts: int, gpus: int = 2) -> dict[str, Any]:
    """All that a sound host tells."""
    address = f"10.0.0.{index + 1}"
    return copy.deepcopy(
        {
            "host": f"n{index + 1}",
            "python": "3.11.7",
            "packages": {"torch": "2.11.0", "deepspeed": "0.19.8", "pydantic": "2.14.3"},
            "code": CODE,
            "folder": {
                "device": "nfs4 server:/home",
                "free_bytes": 900 * GIB,
                "free_files": None,
                "sees": list(range(num_hosts)),
                "lock": "held",
            },
            "network": {
                "port_error": None,
                "reached": {"10.0.0.1": address},
                "interfaces": {address: ["ib0", 100_000, 4092]},
                "links": {"mlx5_0/1": {"state": "ACTIVE", "rate": "100 Gb/sec (4X EDR)"}},
            },
            "limits": {
                "open_files": 65_536,
                "locked_bytes": None,
                "shared_memory_bytes": 8 * GIB,
                "memory_bytes": 300 * GIB,
                "cores": 40,
                "load": 0.5,
            },
            "files": {"the recipe": "r1", "ds.json": "d1"},
            "inputs": INPUTS,
            "nvml": {"driver": "580.95", "gpus": [gpu(number) for number in range(gpus)], "xids": []},
            "torch": {
                "version": "2.11.0+cu126",
                "cuda": "12.6",
                "nccl": "2.27.5",
                "processor": "Xeon",
                "gpus": ["Tesla V100-SXM2-32GB"] * gpus,
                "fault": None,
            },
        }
    )


def survey(changes: Mapping[str, Mapping[str, Any]] | None = None, num_hosts: int = 4, **fields: Any) -> Survey:
    """Sound hosts n1, n2, … with two slots each, of which some tell something else.

    Args:
        changes: by host, what it tells in place of what stands at a path as in `nvml/gpus/1/ecc`.
        num_hosts: how many.
        fields: of the survey.
    """
    facts = {}
    for index in range(num_hosts):
        name = f"n{index + 1}"
        facts[name] = told(index, num_hosts)
        for path, value in (changes or {}).get(name, {}).items():
            _put(facts[name], [part.replace("~", "/") for part in path.split("/")], value)
    fields = {
        "clocks": dict.fromkeys(facts, (0.0, 0.0)),
        "code": Code(**CODE),
        "inputs": INPUTS,
        "port": 29500,
    } | fields
    hosts = tuple(Host(name, 2) for name in facts)
    return Survey(hosts, {name: Facts.model_validate(one) for name, one in facts.items()}, **fields)


def _put(values: Any, path: list[str], value: Any) -> None:
    for name in path[:-1]:
        values = values[int(name) if isinstance(values, list) else name]
    values[int(path[-1]) if isinstance(values, list) else path[-1]] = value

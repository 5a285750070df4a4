"""The GPUs that training is planned for: what their maker says of them. Nothing in this table was measured here.

Operations a second are dense, figures "with sparsity" halved; the link is NVLink (or PCIe) one way, the network that of
a host with eight of them as the maker sells it (DGX-1 with V100, DGX A100, DGX H100 and H200), one way. Sources, all of
NVIDIA: data sheets "V100 Tensor Core GPU" (January 2020), "A100 Tensor Core GPU" (June 2021), "H100 Tensor Core GPU"
(2023), "H200 Tensor Core GPU" (2024); number of multiprocessors: the white papers of GV100, GA100 and H100; networks:
data sheets "DGX-1" (2019: four ports of 100 Gb/s), "DGX A100" (eight of 200), "DGX H100" (eight of 400).
"""

from dataclasses import dataclass

from deltalm_ds.errors import InputError, nearest

GIB, GB = 2**30, 10**9
GBIT = GB / 8


@dataclass(frozen=True)
class Device:
    """A GPU as it is sold.

    Attributes:
        card: what the driver's name for it contains; of several rows the longest one counts.
        capability: compute capability; (7, 0) is sm_70.
        memory_bytes: of the card.
        operations: a second, by dtype of the operands.
        memory_rate: bytes a second of its memory.
        link_rate: bytes a second, one way, to the other GPUs of its host.
        network_rate: bytes a second, one way, of a whole host.
        watts: at most.
        num_sms: multiprocessors.
    """

    card: str
    capability: tuple[int, int]
    memory_bytes: float
    operations: dict[str, float]
    memory_rate: float
    link_rate: float
    network_rate: float
    watts: int
    num_sms: int


def _operations(sixteen: float, tf32: float | None, float32: float, has_bfloat16: bool = True) -> dict[str, float]:
    found = {"float16": sixteen * 1e12, "float32": float32 * 1e12}
    if has_bfloat16:
        found["bfloat16"] = sixteen * 1e12
    return found | ({"tf32": tf32 * 1e12} if tf32 else {})


_V100 = _operations(125, None, 15.7, has_bfloat16=False)
_A100, _H100 = _operations(312, 156, 19.5), _operations(989, 494, 67)
DEVICES: dict[str, Device] = {
    "h200": Device("H200", (9, 0), 141 * GB, _H100, 4800 * GB, 450 * GB, 3200 * GBIT, 700, 132),
    "h100-pcie": Device(
        "H100 PCIe", (9, 0), 80 * GIB, _operations(756, 378, 51), 2000 * GB, 64 * GB, 400 * GBIT, 350, 114
    ),
    "h100-nvl": Device(
        "H100 NVL", (9, 0), 94 * GB, _operations(835, 417, 60), 3900 * GB, 300 * GB, 400 * GBIT, 400, 132
    ),
    "h100": Device("H100", (9, 0), 80 * GIB, _H100, 3350 * GB, 450 * GB, 3200 * GBIT, 700, 132),
    "a100-80g": Device("A100", (8, 0), 80 * GIB, _A100, 2039 * GB, 300 * GB, 1600 * GBIT, 400, 108),
    "a100-40g": Device("A100", (8, 0), 40 * GIB, _A100, 1555 * GB, 300 * GB, 1600 * GBIT, 400, 108),
    "v100-32g": Device("V100", (7, 0), 32 * GIB, _V100, 900 * GB, 150 * GB, 400 * GBIT, 300, 80),
    "v100-16g": Device("V100", (7, 0), 16 * GIB, _V100, 900 * GB, 150 * GB, 400 * GBIT, 300, 80),
    "v100-pcie-32g": Device(
        "V100-PCIE",
        (7, 0),
        32 * GIB,
        _operations(112, None, 14, has_bfloat16=False),
        900 * GB,
        16 * GB,
        100 * GBIT,
        250,
        80,
    ),
}


def find_device(name: str) -> tuple[str, Device]:
    """The GPU of this name, or the first of this family (`v100` is `v100-32g`), with its name in the table.

    Raises:
        InputError: there is none.
    """
    key = name.lower()
    found = key if key in DEVICES else next((known for known in DEVICES if known.startswith(f"{key}-")), None)
    if found is None:
        raise InputError(
            f"There is no GPU {name!r} in the table; the nearest is {nearest(key, DEVICES)!r} (of "
            f"{', '.join(sorted(DEVICES))})."
        )
    return found, DEVICES[found]


def device_of_card(card: str) -> Device | None:
    """The GPU that a driver calls so; None if it is not in the table. What it has of memory is not asked."""
    fitting = [device for device in DEVICES.values() if device.card.lower() in card.lower()]
    return max(fitting, key=lambda device: len(device.card), default=None)

"""What a host tells of itself before a job starts, as `probe.py` prints it and the checks read it."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Part(BaseModel):
    """A part of the facts; a newer probe may tell more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Unknown(Part):
    """In place of a part that could not be found out: why."""

    error: str


class Code(Part):
    """Attributes:
    version: of the package. commit: of its repository, where it is one. checksum: of its files. path: where it is.
    """

    version: str
    commit: str | None
    checksum: str
    path: str


class Folder(Part):
    """The run directory as this host sees it.

    Attributes:
        device: the file system, as the mount table has it: what is mounted, and its type.
        free_bytes, free_files: for this user; files: None where the file system has no limit.
        sees: the hosts whose files it reads there, by index.
        lock: `held` where it sees that the supervisor holds a lock, `free` where it does not, else the system's error.
    """

    device: str
    free_bytes: int
    free_files: int | None
    sees: tuple[int, ...]
    lock: str


class Link(Part):
    """One port of InfiniBand or RoCE: `ACTIVE` and `100 Gb/sec (4X EDR)`, as the kernel gives them."""

    state: str
    rate: str


class Network(Part):
    """The way to the first host.

    Attributes:
        port_error: on the first host, why the port cannot be had.
        reached: of the first host's addresses those at which it answers, each with this host's own address there.
        interfaces: name, speed in Mbit/s (0: unknown) and MTU of the interface of each of its own addresses there.
        links: of InfiniBand and RoCE, by device and port.
    """

    port_error: str | None
    reached: dict[str, str]
    interfaces: dict[str, tuple[str, int, int]]
    links: dict[str, Link]


class Limits(Part):
    """What a process may have: None is no limit.

    Attributes:
        open_files, locked_bytes: the soft limits.
        shared_memory_bytes: free in /dev/shm; None where there is none.
        memory_bytes: available of the host's. cores: that this process may use. load: of one minute.
    """

    open_files: int | None
    locked_bytes: int | None
    shared_memory_bytes: int | None
    memory_bytes: int
    cores: int
    load: float


class Gpu(Part):
    """One GPU by NVML: None is what it does not tell.

    Attributes:
        capability: (7, 0) of a V100, (8, 0) of an A100.
        uncorrected_errors: of its memory, since the last reboot. retired_pages, remapped_rows: in all its life.
        is_repair_pending: pages or rows are to be taken out of use at the next reset. has_repair_failed: no spare rows.
        slowed: why its clocks are below what they could be, without what load and settings explain.
        clock_mhz, max_clock_mhz: of its processors; the first as set for applications.
        processes: others that compute on it.
    """

    index: int
    name: str
    memory_bytes: int
    capability: tuple[int, int] | None = None
    used_bytes: int = 0
    ecc: bool | None = None
    uncorrected_errors: int | None = None
    retired_pages: int | None = None
    remapped_rows: int | None = None
    is_repair_pending: bool = False
    has_repair_failed: bool = False
    slowed: tuple[str, ...] = ()
    clock_mhz: int | None = None
    max_clock_mhz: int | None = None
    power_limit_w: int | None = None
    default_power_limit_w: int | None = None
    temperature_c: int | None = None
    pcie_width: int | None = None
    nvlinks: int | None = None
    mig: bool | None = None
    compute_mode: str | None = None
    processes: tuple[str, ...] = ()


class Nvml(Part):
    """Attributes:
    driver: its version. gpus: all of the host. xids: the kernel's messages of their errors; None: not to be read.
    """

    driver: str
    gpus: tuple[Gpu, ...]
    xids: tuple[str, ...] | None


class Torch(Part):
    """What PyTorch finds when it is imported.

    Attributes:
        version, cuda, nccl: of PyTorch and what it was built with. processor: its name.
        gpus: names of those that it sees. fault: the first error of a small product on each of them.
    """

    version: str
    cuda: str | None
    nccl: str | None
    processor: str
    gpus: tuple[str, ...]
    fault: str | None


class Facts(Part):
    """All that a host tells; None is what it was not asked for, or could not be asked for: it sees no request."""

    host: str
    python: str
    packages: dict[str, str | None]
    code: Code | Unknown
    folder: Folder | Unknown
    limits: Limits | Unknown
    nvml: Nvml | Unknown
    network: Network | Unknown | None = None
    files: Unknown | dict[str, str | None] | None = Field(None, union_mode="left_to_right")
    inputs: Unknown | dict[str, Any] | None = Field(None, union_mode="left_to_right")
    torch: Torch | Unknown | None = None

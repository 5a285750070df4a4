"""Checks of GPUs before a start, from what the driver and PyTorch tell: number and kind, health, pace, other users."""

from collections.abc import Callable
from typing import Any

from deltalm_ds.launch.preflight.facts import Gpu, Limits, Nvml, Torch, Unknown
from deltalm_ds.launch.preflight.findings import FAIL, WARN, Check, majority
from deltalm_ds.launch.preflight.survey import Survey

BFLOAT16_SINCE = (8, 0)  # DeepSpeed refuses it on GPUs of before
FREE_BYTES = 1 << 30  # of memory in use: more is another program's, the driver keeps some itself
LEAST_SHARED_BYTES = 128 << 20  # of /dev/shm for a rank, through which NCCL sends within a host
MOST_RETIRED = 40  # pages: from 60 on a GPU is replaced
SLOW_CLOCK = 0.9  # of the clock of most

_TOO_FEW = (
    "it has {gpus} GPU(s), and the hostfile gives it {slots} slots",
    "correct slots= in the hostfile, or see with `nvidia-smi` why a GPU is missing",
)
_NO_DEVICE = "it has no GPU {device}", "correct --include, --exclude or the hostfile"
_SPARE_GPUS = "{gpus} GPUs, of which the hostfile uses {slots}", "raise slots= in the hostfile, if they are yours"
_NO_GPU = "no GPU: ranks compute on the processors", "nothing, if this is meant; else see `nvidia-smi` there"
_NO_FP16 = "no GPU, and fp16 needs one", "take a fp32_* or bf16_* configuration (deepspeed), or see `nvidia-smi` there"
_NO_BF16 = "its {gpu} computes no bfloat16", "take a fp16_* configuration (deepspeed)"
_NO_DRIVER = (
    "no GPU is found ({error}), and other hosts have some",
    "install the driver as on the others, or see `nvidia-smi` and `dmesg` there",
)
_NO_TORCH = "PyTorch cannot be imported: {error}", "build the environment anew from constraints.txt"
_NOT_SEEN = (
    "PyTorch {version} sees {seen} of {gpus} GPUs",
    "install a PyTorch built for CUDA that this driver serves (`python -m torch.utils.collect_env`)",
)
_NO_PRODUCT = (
    "PyTorch's product fails: {fault}",
    "install a PyTorch that is built for this GPU (V100: constraints-v100.txt)",
)
_XID = (
    "the kernel tells of GPU errors since it was booted: {last}",
    "look the number up in NVIDIA's list of Xids; reset or replace",
)
_XID_UNREAD = (
    "the kernel's messages of GPU errors (Xid) are not to be read",
    "allow it: `sysctl kernel.dmesg_restrict=0`",
)
_UNCORRECTED = (
    "GPU {index}: {count} uncorrected memory errors",
    "reset it (`nvidia-smi --gpu-reset`), and have it tested",
)
_REPAIR_PENDING = (
    "GPU {index}: faulty memory is to be taken out of use",
    "reset it (`nvidia-smi --gpu-reset`) or reboot",
)
_REPAIR_FAILED = (
    "GPU {index}: faulty memory can no longer be taken out of use",
    "have it replaced; leave it out until then",
)
_RETIRED = "GPU {index}: {count} pages or rows of memory taken out of use", "have it replaced before it fails"
_SLOWED = "GPU {index} at {temperature} °C is slowed down: {reasons}", "see to its cooling and power supply"
_LOW_CLOCK = (
    "GPU {index}'s clock is set to {clock} MHz, that of most to {usual} MHz",
    "reset it: `nvidia-smi --reset-applications-clocks`",
)
_LOW_POWER = (
    "GPU {index} may take {limit} W, by default {usual} W",
    "raise it: `nvidia-smi --power-limit={usual}`, unless the room or the supply needs it",
)
_IN_USE = "GPU {index} is in use: {who}", "end that program, or leave the host out"
_MIG = "GPU {index} is divided (MIG)", "undo it: `nvidia-smi --multi-instance-gpu=0`"
_PROHIBITED = "GPU {index} lets nobody compute", "allow it: `nvidia-smi --compute-mode=0`"
_SHARED_MEMORY = (
    "/dev/shm has {free} MiB free, and NCCL wants {needed} MiB for {slots} ranks",
    "enlarge it: `mount -o remount,size=8G /dev/shm`; containers: `--shm-size=8g` or `--ipc=host`",
)
_SAME_GPUS = "leave out the odd ones: the slowest sets the pace, and the smallest the size of a micro-batch"
_SAME_DRIVER = "install the same driver on all hosts"
_SAME_LINKS = "see `nvidia-smi nvlink --status` and `nvidia-smi topo -m` there: a dead link makes all ranks wait"
_SAME_SLOT = "see `nvidia-smi -q -d PCIE` there: reseat the card"
_SAME_ECC = "set it alike (`nvidia-smi --ecc-config`) and reboot"
_SAME_TORCH = "install one PyTorch on all hosts: pip install -c constraints.txt torch"


def devices(survey: Survey) -> Check:
    """As many GPUs as slots, all of one kind and under one driver; or none anywhere."""
    parts = _nvml(survey)
    with_gpus = {name: part for name, part in parts.items() if part.gpus}
    kinds = {name: " and ".join(dict.fromkeys(_kind(gpu) for gpu in part.gpus)) for name, part in with_gpus.items()}
    check = survey.check("GPUs", f"{next(iter(kinds.values()), '')}, as many as slots")
    if not with_gpus:
        level, text = (FAIL, _NO_FP16) if survey.precision == "fp16" else (WARN, _NO_GPU)
        check.say(level, survey.answering, text)
        return check
    for host in survey.hosts:
        if host.name not in with_gpus:
            if host.name in survey.facts:
                told = survey.facts[host.name].nvml
                check.say(FAIL, host.name, _NO_DRIVER, error=told.error if isinstance(told, Unknown) else "none")
            continue
        gpus = with_gpus[host.name].gpus
        if len(gpus) < host.slots:
            check.say(FAIL, host.name, _TOO_FEW, gpus=len(gpus), slots=host.slots)
        elif absent := set(host.devices) - {gpu.index for gpu in gpus}:
            check.say(FAIL, host.name, _NO_DEVICE, device=min(absent))
        elif len(gpus) > host.slots:
            check.say(WARN, host.name, _SPARE_GPUS, gpus=len(gpus), slots=host.slots)
    for name, part in with_gpus.items() if survey.precision == "bf16" else ():
        old = [gpu for gpu in part.gpus if gpu.capability is not None and gpu.capability < BFLOAT16_SINCE]
        if old:
            check.say(FAIL, name, _NO_BF16, gpu=old[0].name)
    check.alike(WARN, "its kind of GPU is", kinds, _SAME_GPUS)
    check.alike(WARN, "driver", {name: part.driver for name, part in with_gpus.items()}, _SAME_DRIVER)
    return check


def health(survey: Survey) -> Check:
    """Nothing is broken, slowed down or in use."""
    parts = {name: part for name, part in _nvml(survey).items() if part.gpus}
    check = Check("GPU health", tuple(parts), "no errors, clocks and links alike, idle")
    for name, part in parts.items():
        if part.xids is None:
            check.say(WARN, name, _XID_UNREAD)
        elif part.xids:
            check.say(WARN, name, _XID, last=part.xids[-1])
    used = [
        (host.name, gpu)
        for host in survey.hosts
        if host.name in parts
        for gpu in parts[host.name].gpus
        if gpu.index in host.devices
    ]
    usual_clock = majority(gpu.clock_mhz for _, gpu in used if gpu.clock_mhz is not None)
    for name, gpu in used:
        _memory(check, name, gpu)
        _pace(check, name, gpu, usual_clock)
        _users(check, name, gpu)
    _alike(check, used, "NVLinks of a GPU", lambda gpu: gpu.nvlinks, _SAME_LINKS)
    _alike(check, used, "PCIe lanes of a GPU", lambda gpu: gpu.pcie_width, _SAME_SLOT)
    _alike(check, used, "ECC", lambda gpu: gpu.ecc, _SAME_ECC)
    return check


def _memory(check: Check, name: str, gpu: Gpu) -> None:
    if gpu.uncorrected_errors:
        check.say(FAIL, name, _UNCORRECTED, index=gpu.index, count=gpu.uncorrected_errors)
    if gpu.has_repair_failed:
        check.say(FAIL, name, _REPAIR_FAILED, index=gpu.index)
    elif gpu.is_repair_pending:
        check.say(WARN, name, _REPAIR_PENDING, index=gpu.index)
    elif (count := (gpu.retired_pages or 0) + (gpu.remapped_rows or 0)) >= MOST_RETIRED:
        check.say(WARN, name, _RETIRED, index=gpu.index, count=count)


def _pace(check: Check, name: str, gpu: Gpu, usual_clock: int | None) -> None:
    if gpu.slowed:
        reasons = ", ".join(gpu.slowed)
        check.say(WARN, name, _SLOWED, index=gpu.index, temperature=gpu.temperature_c, reasons=reasons)
    if usual_clock is not None and gpu.clock_mhz is not None and gpu.clock_mhz < SLOW_CLOCK * usual_clock:
        check.say(WARN, name, _LOW_CLOCK, index=gpu.index, clock=gpu.clock_mhz, usual=usual_clock)
    limit, usual = gpu.power_limit_w, gpu.default_power_limit_w
    if limit is not None and usual is not None and limit < usual:
        check.say(WARN, name, _LOW_POWER, index=gpu.index, limit=limit, usual=usual)


def _users(check: Check, name: str, gpu: Gpu) -> None:
    if gpu.processes:
        check.say(FAIL, name, _IN_USE, index=gpu.index, who=", ".join(gpu.processes))
    elif gpu.used_bytes > FREE_BYTES:
        check.say(WARN, name, _IN_USE, index=gpu.index, who=f"{gpu.used_bytes / 2**30:.1f} GiB of its memory")
    if gpu.mig:
        check.say(FAIL, name, _MIG, index=gpu.index)
    if gpu.compute_mode == "prohibited":
        check.say(FAIL, name, _PROHIBITED, index=gpu.index)


def _alike(
    check: Check, used: list[tuple[str, Gpu]], thing: str, value_of: Callable[[Gpu], Any], next_step: str
) -> None:
    """Compare a value of all GPUs of all hosts."""
    values = {(name, gpu.index): value for name, gpu in used if (value := value_of(gpu)) is not None}
    usual = majority(values.values())
    for (name, index), value in values.items():
        if usual is not None and value != usual:
            text = "GPU {index}: {thing}: {value}, that of most is {usual}", next_step
            check.say(WARN, name, text, index=index, thing=thing, value=value, usual=usual)


def pytorch(survey: Survey) -> Check:
    """PyTorch is the same everywhere, sees the GPUs that the driver has, and computes on them."""
    parts: dict[str, Torch] = {}
    asked = [name for name in survey.answering if survey.facts[name].torch is not None]
    check = Check("PyTorch", asked)
    for name in asked:
        told = survey.facts[name].torch
        if isinstance(told, Unknown):
            check.say(FAIL, name, _NO_TORCH, error=told.error)
        elif told is not None:
            parts[name] = told
    gpus = {name: len(part.gpus) for name, part in _nvml(survey).items()}
    for name, part in parts.items():
        if part.fault is not None:
            check.say(FAIL, name, _NO_PRODUCT, fault=part.fault)
        elif len(part.gpus) < gpus.get(name, 0):
            check.say(FAIL, name, _NOT_SEEN, version=part.version, seen=len(part.gpus), gpus=gpus[name])
    builds = {name: f"{part.version}, CUDA {part.cuda}, NCCL {part.nccl}" for name, part in parts.items()}
    check.fine = next(iter(builds.values()), "")
    check.alike(FAIL, "PyTorch", builds, _SAME_TORCH)
    if not any(gpus.values()):
        check.alike(WARN, "processor", {name: part.processor for name, part in parts.items()}, _SAME_GPUS)
    return check


def shared_memory(survey: Survey) -> Check:
    """/dev/shm is large enough for what NCCL sends between the GPUs of a host."""
    with_gpus = tuple(name for name, part in _nvml(survey).items() if part.gpus)
    check = Check("/dev/shm", with_gpus, "large enough")
    for host in survey.hosts:
        limits = survey.facts[host.name].limits if host.name in with_gpus else None
        if host.slots > 1 and isinstance(limits, Limits):
            free, needed = limits.shared_memory_bytes or 0, LEAST_SHARED_BYTES * host.slots
            if free < needed:
                values = {"free": free >> 20, "needed": needed >> 20, "slots": host.slots}
                check.say(WARN, host.name, _SHARED_MEMORY, **values)
    return check


def _nvml(survey: Survey) -> dict[str, Nvml]:
    """Of the hosts whose driver answers."""
    told = {name: survey.facts[name].nvml for name in survey.answering}
    return {name: part for name, part in told.items() if isinstance(part, Nvml)}


def _kind(gpu: Gpu) -> str:
    return f"{gpu.name} with {gpu.memory_bytes / 2**30:.0f} GiB"


CHECKS = (devices, health, pytorch, shared_memory)

"""The machine and the versions that a result was made with."""

import importlib.metadata
import os
import platform
from typing import Any

import torch

import deltalm_ds
from deltalm_ds import linear_choice
from deltalm_ds.allocator import ALLOCATOR_VARIABLES
from deltalm_ds.kernels.dispatch import apex_is_installed, choose, compute_capability
from deltalm_ds.kernels.table import OPS
from deltalm_ds.processor import processor_name
from deltalm_ds.threads import waiting_threads

PACKAGES = (
    "torch",
    "deepspeed",
    "triton",
    "apex",
    "sentencepiece",
    "pyarrow",
    "sacrebleu",
    "mpi4py",
    "ctranslate2",
    "onnxruntime",
    "transformers",
)


def environment() -> dict[str, Any]:
    """Versions of what matters (null where not installed), processor or GPUs and their allocator's settings, threads,
    and what serves each op."""
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "deltalm_ds": deltalm_ds.__version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": processor_name(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "waiting_threads": waiting_threads(),
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory, "sm": [gpu.major, gpu.minor]} for gpu in gpus],
        "gpu_allocator": {name: os.environ[name] for name in ALLOCATOR_VARIABLES if name in os.environ},
        "kernels": _kernels(),
        "linear": linear_choice.record(),
    }


def _kernels() -> dict[str, str]:
    """The backend of each op and why, for the precision that training has on the first GPU, or on the processor."""
    has_gpu = torch.cuda.is_available()
    capability = compute_capability(torch.device("cuda" if has_gpu else "cpu"))
    choices = {name: choose(op, capability, torch.float16 if has_gpu else torch.float32) for name, op in OPS.items()}
    return {name: f"{choice.backend} ({choice.why})" for name, choice in choices.items()}


def _version(package: str) -> str | None:
    if package == "apex":  # NVIDIA's, which has no metadata that tells it from another package of this name
        return "installed" if apex_is_installed() else None
    if package == "torch":  # its metadata does not always tell the build for CPUs from one for CUDA
        return str(torch.__version__)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

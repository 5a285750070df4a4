"""What the processor is and can compute in, where no GPU does the work, and what a GPU computes slowly."""

import platform
import sys

import torch

from deltalm_ds.errors import InputError


def processor_name() -> str:
    """Its name, as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def native_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself: by AVX512-BF16 or AMX, or on ARM by its BF16 extension."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def check_precision(precision: str, matmul_precision: str) -> None:
    """Refuse or warn on stderr of what cannot be done here, or is slow.

    Args:
        precision: of the DeepSpeed configuration: fp32, bf16 or fp16.
        matmul_precision: of float32 products, as torch names it.

    Raises:
        InputError: fp16 without a GPU.
    """
    if torch.cuda.is_available():
        _warn_of_slow_products(precision, matmul_precision)
        return
    if precision == "fp16":
        raise InputError(
            "fp16 needs a GPU, and there is none here: DeepSpeed refuses it on a processor. "
            "Take a configuration in float32, such as deepspeed: fp32_zero1."
        )
    if native_bfloat16():
        return
    if precision == "bf16":
        print(
            "This processor has no bfloat16 of its own: bf16 trains 5 to 8 times slower here than float32. "
            "Take a configuration in float32, such as deepspeed: fp32_zero1.",
            file=sys.stderr,
        )
    elif matmul_precision == "medium":
        print(
            "This processor has no bfloat16 of its own: training.matmul_precision: medium makes nothing faster here.",
            file=sys.stderr,
        )


def _warn_of_slow_products(precision: str, matmul_precision: str) -> None:
    """Where a GPU has TF32 and float32 products are exact."""
    if precision == "fp32" and matmul_precision == "highest" and torch.cuda.get_device_capability() >= (8, 0):
        print(
            "This GPU multiplies float32 exactly: by data sheets 8 (A100) or 7 (H100) times slower than in TF32. "
            "Take training.matmul_precision: high, or a configuration in bf16, such as deepspeed: bf16_zero1.",
            file=sys.stderr,
        )

"""How much arithmetic training is, counted from the model's shape, and how much of it a device can do in a second.

Counted are the products that the mathematics asks for: linear layers, attention (of the decoder's own the half that is
not masked) and the output layer, once forward and twice backward. Padding, what is computed a second time, and
everything that is no product count nothing, so a number can be compared with any other program's [Chowdhery+22 App. B].

Legend: M model dim, F FFN dim, V embedding rows; S source and T target tokens of all sequences together.
"""

import sys
import time

import numpy as np
import torch

from deltalm_ds.devices import device_of_card
from deltalm_ds.errors import os_error_sentence
from deltalm_ds.files import write_json
from deltalm_ds.kernels.linear import CONTENDERS, contenders
from deltalm_ds.machine import locked_memory, machine, read_memory
from deltalm_ds.model.config import DeltaLMConfig

BACKWARD = 2  # products of the backward for each one of the forward
MEMORY = "peak"
ROUNDS, TOKENS, WIDTH = 4, 512, 2048  # of the product that is measured, 4.3 billion operations; the first warms up
SECONDS = 0.5  # no round starts later


def work_of(source_lengths: np.ndarray, target_lengths: np.ndarray) -> np.ndarray:
    """What the arithmetic of sequences [N] depends on, [5] float64: S, T, and the pairs that attention relates.

    The pairs are those of source with source, of target with itself and what is before, and of target with source.
    """
    source, target = source_lengths.astype(np.float64), target_lengths.astype(np.float64)
    return np.array([source.sum(), target.sum(), source @ source, target @ (target + 1) / 2, source @ target])


def operations_of(config: DeltaLMConfig) -> np.ndarray:
    """[5] float64: floating-point operations of training for one of each that `work_of` counts."""
    width, layers, blocks = config.hidden_size, config.num_encoder_layers, config.num_decoder_blocks
    projection, ffn = 2 * width**2, 4 * width * config.ffn_size
    num_ffns = 2 if config.decoder == "interleaved" else 1
    pair = 4 * width  # a score, and a share of a value
    forward = [
        layers * (4 * projection + ffn) + blocks * 2 * projection,  # the decoder's keys and values of the source too
        blocks * (6 * projection + num_ffns * ffn) + 2 * width * config.num_embedding_rows,
        layers * pair,
        blocks * pair,
        blocks * pair,
    ]
    return (1 + BACKWARD) * np.array(forward, dtype=np.float64)


def peak_operations(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations a second of a device's fastest products of this dtype; None for a GPU that is not in the table.

    A processor is measured once, in the number of threads that torch has now, and remembered.
    """
    if device.type == "cpu":
        return _remembered_peak(dtype)
    known = device_of_card(torch.cuda.get_device_name(device))
    peaks = known.operations if known is not None else {}
    kind = str(dtype).removeprefix("torch.")
    if kind == "float32" and torch.get_float32_matmul_precision() != "highest" and "tf32" in peaks:
        kind = "tf32"
    return peaks.get(kind)


def _remembered_peak(dtype: torch.dtype) -> float:
    key = f"{machine()}, {dtype}"
    try:
        with locked_memory(MEMORY) as path:
            memory = read_memory(path)
            if not isinstance(memory.get(key), int | float):
                memory[key] = measured_peak(dtype)
                write_json(path, memory)
            return float(memory[key])
    except OSError as error:
        print(f"The processor's peak is measured at every start: {os_error_sentence(error)}", file=sys.stderr)
        return measured_peak(dtype)


@torch.no_grad()
def measured_peak(dtype: torch.dtype) -> float:
    """Operations a second of a large product on this processor, by the library that is fastest; about a second.

    The clock is the processor time of all threads, as in `kernels/linear_rates.py`.
    """
    x, weight = (torch.ones(rows, WIDTH, dtype=dtype) for rows in (TOKENS, WIDTH))
    least, began = float("inf"), time.monotonic()
    for number in range(ROUNDS):
        if number and time.monotonic() - began > SECONDS:
            break
        for name in contenders(dtype):
            start = time.process_time()
            CONTENDERS[name](x, weight, None)
            least = min(least, max(time.process_time() - start, 1e-9))
    return 2 * TOKENS * WIDTH**2 * torch.get_num_threads() / least

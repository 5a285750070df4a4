"""Operations are those that a counter sees in the plain model, and peaks those of data sheets or of a product timed."""

import time

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from deltalm_ds.kernels.dispatch import VARIABLE
from deltalm_ds.machine import memory_path
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.packing import PackedSequences
from deltalm_ds.training import throughput
from deltalm_ds.training.throughput import measured_peak, operations_of, peak_operations, work_of

SOURCE, TARGET = np.array([5, 9, 17]), np.array([4, 1, 12])


@pytest.mark.parametrize("decoder", ["interleaved", "vanilla"])
def test_operations_are_those_that_are_counted(decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch counts every product of the plain definition, which computes the masked half of the scores too."""
    monkeypatch.setenv(VARIABLE, "reference")
    config = DeltaLMConfig.preset("tiny", vocabulary_size=128, decoder=decoder, dropout=0.0, num_decoder_blocks=3)
    model, draw = DeltaLM(config), np.random.default_rng(0)
    source, target = (
        PackedSequences.from_sequences([draw.integers(4, 100, length).tolist() for length in lengths])
        for lengths in (SOURCE, TARGET)
    )
    with FlopCounterMode(display=False) as counter:
        model(source, target, target.tokens, 0.1).loss.backward()
    masked = sum(length * (length - 1) // 2 for length in TARGET.tolist())
    # a score and a share of a value, two operations a multiplication, forward and twice that backward, in three blocks
    not_needed = masked * 2 * 2 * config.hidden_size * 3 * 3
    assert work_of(SOURCE, TARGET) @ operations_of(config) == counter.get_total_flops() - not_needed


def test_a_sample_of_pre_training_is_what_was_counted_by_hand() -> None:
    """512 to 110 tokens at base size: 164 billion forward, of them 42 in the output layer."""
    config = DeltaLMConfig.preset("base", vocabulary_size=250_001)
    assert work_of(np.array([512]), np.array([110])) @ operations_of(config) / 3 == pytest.approx(164e9, rel=0.01)


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA H200", torch.bfloat16, 989e12),
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989e12),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756e12),
        ("NVIDIA A100-SXM4-40GB", torch.float16, 312e12),
        ("NVIDIA A100-SXM4-40GB", torch.float32, 19.5e12),
        ("Tesla V100-SXM2-32GB", torch.float16, 125e12),
        ("Tesla V100-PCIE-16GB", torch.float16, 112e12),
        ("Tesla V100-SXM2-32GB", torch.bfloat16, None),
        ("NVIDIA GeForce RTX 4090", torch.bfloat16, None),
    ],
)
def test_a_gpu_has_the_peak_of_its_data_sheet(
    name: str, dtype: torch.dtype, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_operations(torch.device("cuda", 0), dtype) == peak


def test_a_gpu_that_may_use_tf32_has_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert peak_operations(torch.device("cuda"), torch.float32) == 156e12


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """The dtypes that were measured, in order; the peaks are made up."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dtypes: list[torch.dtype] = []

    def measure(dtype):
        dtypes.append(dtype)
        return 1e9 * len(dtypes)

    monkeypatch.setattr(throughput, "measured_peak", measure)
    return dtypes


def test_a_processor_is_measured_once_for_each_dtype(measured) -> None:
    peaks = [peak_operations(torch.device("cpu"), dtype) for dtype in (torch.float32, torch.bfloat16) * 2]
    assert peaks == [1e9, 2e9, 1e9, 2e9]
    assert measured == [torch.float32, torch.bfloat16]


def test_a_damaged_memory_is_replaced_and_one_that_cannot_be_written_is_told(measured, monkeypatch, capsys) -> None:
    peak_operations(torch.device("cpu"), torch.float32)
    memory_path("peak").write_text('{"x')
    assert peak_operations(torch.device("cpu"), torch.float32) == 2e9
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    assert peak_operations(torch.device("cpu"), torch.float32) == 3e9
    assert "The processor's peak is measured at every start: /proc/none" in capsys.readouterr().err


def test_the_peak_is_that_of_a_large_product() -> None:
    x, weight = torch.ones(512, 2048), torch.ones(2048, 2048)
    x @ weight
    start = time.process_time()
    x @ weight
    seconds = (time.process_time() - start) / torch.get_num_threads()
    # the best of several and of two libraries, beside whatever else the machine does
    assert 0.5 < measured_peak(torch.float32) / (2 * 512 * 2048 * 2048 / seconds) < 5

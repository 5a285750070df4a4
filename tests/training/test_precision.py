"""What trains and what generates sums products of 16 bits in float32."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from deltalm_ds.generation.engines import pytorch
from deltalm_ds.generation.interface import EngineOptions
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.training import trainer

FLAGS = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")


class Started(Exception):
    """Training has begun."""


@pytest.fixture(autouse=True)
def torchs_default() -> Iterator[None]:
    before = {flag: getattr(torch.backends.cuda.matmul, flag) for flag in FLAGS}
    precision = torch.get_float32_matmul_precision()
    for flag in FLAGS:
        setattr(torch.backends.cuda.matmul, flag, True)
    yield
    for flag, value in before.items():
        setattr(torch.backends.cuda.matmul, flag, value)
    torch.set_float32_matmul_precision(precision)


def assert_sums_are_float32() -> None:
    assert [getattr(torch.backends.cuda.matmul, flag) for flag in FLAGS] == [False, False]


def test_training(monkeypatch: pytest.MonkeyPatch, make_recipe, tmp_path: Path) -> None:
    def started(*_: object) -> None:
        raise Started

    monkeypatch.setattr(trainer.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(trainer.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(trainer, "load_recipe", lambda path: make_recipe(training={"matmul_precision": "high"}))
    monkeypatch.setattr(trainer, "StopSignal", started)  # which needs other processes
    with pytest.raises(Started):
        trainer.Trainer(tmp_path)
    assert_sums_are_float32()
    assert torch.get_float32_matmul_precision() == "high"


def test_generation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = DeltaLM(DeltaLMConfig.preset("tiny", vocabulary_size=20))
    monkeypatch.setattr(pytorch, "load_model", lambda directory: model)
    pytorch.open_engine(tmp_path, EngineOptions())
    assert_sums_are_float32()

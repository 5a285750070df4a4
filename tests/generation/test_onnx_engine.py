"""The ONNX engine against the PyTorch engine, sentence by sentence, and its faults."""

import shutil
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalm_ds.errors import DataError, InputError
from deltalm_ds.export.formats.onnx import write_onnx
from deltalm_ds.files import write_json
from deltalm_ds.generation.engines.pytorch import PyTorchEngine
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.generation.loading import load_engine
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM

VOCABULARY_SIZE, MAX_POSITIONS = 70, 24


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    config = DeltaLMConfig.preset("tiny", vocabulary_size=VOCABULARY_SIZE, max_positions=MAX_POSITIONS)
    model = DeltaLM(config).eval()
    model.token_embedding.weight.data *= 3  # sharper than fresh weights: candidates do not nearly tie
    return model


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("onnx")
    write_onnx(model, None, directory, "float32")
    sizes = {"vocabulary_size": VOCABULARY_SIZE, "max_positions": MAX_POSITIONS}
    write_json(directory / "deltalm.json", {"format": "onnx", **sizes})
    return directory


@pytest.fixture(scope="module")
def engine(directory):
    return load_engine(directory, "onnx", threads=1)


sentence = st.lists(st.integers(3, VOCABULARY_SIZE - 1), max_size=MAX_POSITIONS - 1)


@settings(max_examples=25)
@given(pairs=st.lists(st.tuples(sentence, sentence), min_size=1, max_size=6))
def test_score_is_that_of_the_model(model, engine, pairs):
    """Ragged batches, empty sides, and both sides as long as the positions allow."""
    sources, targets = zip(*pairs, strict=True)
    expected = PyTorchEngine(model).score(sources, targets)
    for scores, ours in zip(engine.score(sources, targets), expected, strict=True):
        assert scores == pytest.approx(ours, abs=5e-5)


@settings(max_examples=15)
@given(sources=st.lists(sentence, min_size=1, max_size=5), beam=st.integers(1, 4))
def test_hypotheses_score_what_the_model_gives_them(model, engine, sources, beam):
    """Sentences that finish early leave the batch: the caches must follow."""
    options = SearchOptions(beam=beam, n_best=beam, max_length=MAX_POSITIONS)
    for source, hypotheses in zip(sources, engine.generate(sources, options), strict=True):
        expected = PyTorchEngine(model).score([source] * len(hypotheses), [h.ids for h in hypotheses])
        for hypothesis, token_scores in zip(hypotheses, expected, strict=True):
            assert hypothesis.token_scores == pytest.approx(token_scores, abs=5e-5)


def test_nothing_gives_nothing(engine):
    assert engine.score([], []) == [] and engine.generate([], SearchOptions()) == []


def test_faulty_directories_are_named(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "copy")
    (tmp_path / "copy/decoder.onnx").unlink()
    with pytest.raises(InputError, match=r"decoder.onnx does not exist"):
        load_engine(tmp_path / "copy")
    (tmp_path / "copy/decoder.onnx").write_bytes(b"\x08\x0anonsense")
    with pytest.raises(DataError, match=r"decoder.onnx cannot be opened"):
        load_engine(tmp_path / "copy")
    shutil.copy(directory / "decoder.onnx", tmp_path / "copy")
    content = (directory / "weights.bin").read_bytes()
    (tmp_path / "copy/weights.bin").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"coder.onnx cannot be opened"):
        load_engine(tmp_path / "copy")


def test_a_missing_onnxruntime_is_named(directory, monkeypatch):
    monkeypatch.delitem(sys.modules, "deltalm_ds.generation.engines.onnx", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"onnxruntime: pip install 'deltalm-ds\[export\]'"):
        load_engine(directory)

"""The PyTorch engine against plain full decoding, and how engines are chosen."""

import re
from pathlib import Path

import pytest
import torch

from deltalm_ds.errors import DataError, InputError
from deltalm_ds.generation.engines import ENGINES, EngineEntry
from deltalm_ds.generation.engines.pytorch import PyTorchEngine
from deltalm_ds.generation.interface import EngineOptions, SearchOptions
from deltalm_ds.generation.loading import load_engine
from deltalm_ds.kernels.linear import FrozenWeights
from deltalm_ds.kernels.torch_internals import has_onednn_packing
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.packing import PackedSequences
from deltalm_ds.token_ids import EOS_ID


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DeltaLM(DeltaLMConfig.preset("tiny", vocabulary_size=50, max_positions=20, dropout=0.5)).train()


def test_score_is_the_log_probability_of_each_token(model):
    sources, targets = [[4, 5, 6], [7], [8, 9]], [[10], [], [11, 12, 13]]
    found = PyTorchEngine(model).score(sources, targets)
    for source, target, scores in zip(sources, targets, found, strict=True):
        packed = PackedSequences.from_sequences([[*source, EOS_ID]])
        decoder_input = PackedSequences.from_sequences([[EOS_ID, *target]])
        with torch.inference_mode():
            logits = model.logits(model.decode(decoder_input, model.encode(packed), packed))
        expected = logits.log_softmax(-1)[range(len(target) + 1), [*target, EOS_ID]]
        assert scores == pytest.approx(expected.tolist(), abs=1e-5)


def test_generate_appends_the_end_and_scores_what_it_gives(model):
    engine = PyTorchEngine(model)
    options = SearchOptions(beam=3, n_best=3, max_length=6)
    (found,) = engine.generate([[4, 5]], options)
    scores = engine.score([[4, 5]] * 3, [hypothesis.ids for hypothesis in found])
    for hypothesis, expected in zip(found, scores, strict=True):
        assert hypothesis.token_scores == pytest.approx(expected, abs=1e-5)
        assert hypothesis.score == pytest.approx(sum(expected) / len(expected), abs=1e-5)


def test_a_wrong_engine_or_directory_is_named(tmp_path):
    with pytest.raises(InputError, match=f"engines are {', '.join(ENGINES)}"):
        load_engine(tmp_path, "something else")
    with pytest.raises(InputError, match="the nearest is 'ctranslate2'"):
        load_engine(tmp_path, "CTranslate")
    with pytest.raises(InputError, match=r"for pytorch, not for ctranslate2: .*deltalm export --to"):
        load_engine(tmp_path, "ctranslate2")
    with pytest.raises(InputError, match=r"config.json does not exist"):
        load_engine(tmp_path)
    (tmp_path / "deltalm.json").write_text('{"format": "ctranslate2"}')
    for other in ("pytorch", "onnx"):
        with pytest.raises(InputError, match=f"for ctranslate2, not for {other}"):
            load_engine(tmp_path, other)
    (tmp_path / "deltalm.json").write_text('{"format": "fairseq"}')
    with pytest.raises(InputError, match="an export to fairseq, which no engine here runs"):
        load_engine(tmp_path)
    for content in ("{}", "[]", '{"format": 1}'):
        (tmp_path / "deltalm.json").write_text(content)
        with pytest.raises(DataError, match=r"deltalm.json does not say the format"):
            load_engine(tmp_path)


def test_an_engine_is_a_row_and_a_module(tmp_path, monkeypatch):
    """One that shares a format with another is opened by name only."""
    (tmp_path / "echo.py").write_text("def open_engine(directory, options):\n    return directory, options\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ENGINES, "echo", EngineEntry("Echo", "echo", ("echo", "onnx")))
    (tmp_path / "deltalm.json").write_text('{"format": "echo"}')
    assert load_engine(str(tmp_path), threads=3, device="cpu") == (tmp_path, EngineOptions("cpu", threads=3))
    (tmp_path / "deltalm.json").write_text('{"format": "onnx"}')
    assert load_engine(tmp_path, "echo") == (tmp_path, EngineOptions())
    with pytest.raises(DataError, match=r"deltalm.json does not say the vocabulary_size"):
        load_engine(tmp_path)


def test_the_guide_names_engines_of_the_table():
    guide = (Path(__file__).parents[2] / "docs/serving.md").read_text(encoding="utf-8")
    table = guide[guide.index("| `--engine` |") :].split("\n\n")[0]
    named = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert len(named) >= 3
    assert named <= ENGINES.keys()


@pytest.mark.skipif(not has_onednn_packing(torch.float32), reason="PyTorch is built without oneDNN")
def test_frozen_weights_change_no_hypothesis(model, monkeypatch):
    monkeypatch.setenv("DELTALM_LINEAR", "auto")
    options = SearchOptions(beam=3, n_best=3, max_length=8)
    (plain,) = PyTorchEngine(model).generate([[4, 5, 6]], options)
    frozen = FrozenWeights(model.step_weights())
    (found,) = PyTorchEngine(model, frozen).generate([[4, 5, 6]], options)
    assert len(frozen) == len(model.step_weights())
    assert [hypothesis.ids for hypothesis in found] == [hypothesis.ids for hypothesis in plain]
    for one, other in zip(found, plain, strict=True):
        assert one.token_scores == pytest.approx(other.token_scores, abs=1e-5)

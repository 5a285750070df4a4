"""The ONNX export gives what the model gives, stores every weight once, and int8 treats every row by itself."""

import gzip
import json
import sys
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import save_file

from deltalm_ds.checkpoints.initialise import unchanged_initialisation
from deltalm_ds.checkpoints.sources import recognise
from deltalm_ds.errors import CheckError, InputError
from deltalm_ds.export.formats import onnx as export
from deltalm_ds.export.package import export as package_export
from deltalm_ds.export.parity import check_parity, random_sources
from deltalm_ds.files import write_json
from deltalm_ds.generation.engines.onnx import OnnxEngine
from deltalm_ds.generation.engines.pytorch import PyTorchEngine
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.generation.translate import generate
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM

FIXTURES = Path(__file__).parents[1] / "fixtures"


def random_model(decoder="interleaved", embedding_norm=True):
    torch.manual_seed(0)
    config = DeltaLMConfig(
        vocabulary_size=101,  # 27 padding rows
        hidden_size=48,
        ffn_size=96,
        num_heads=3,
        num_encoder_layers=2,
        num_decoder_blocks=2,
        decoder=decoder,
        embedding_norm=embedding_norm,
        max_positions=40,
    )
    model = DeltaLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def trained():
    """The official toy model that was trained, and the sources of the beam search reference."""
    model = unchanged_initialisation(recognise(FIXTURES / "official_base_trained.pt"), num_heads=4).model()
    reference = json.loads(gzip.decompress((FIXTURES / "beam.json.gz").read_bytes()))
    return model.eval(), [source[:-1] for source in reference["sources"]]


def exported(model, directory, precision="float32"):
    directory.mkdir(exist_ok=True)
    export.write_onnx(model, None, directory, precision)
    sizes = {"vocabulary_size": model.config.vocabulary_size, "max_positions": model.config.max_positions}
    write_json(directory / "deltalm.json", {"format": "onnx", **sizes})
    return OnnxEngine(directory, threads=1)


@pytest.mark.parametrize("decoder", ["interleaved", "vanilla"])
@pytest.mark.parametrize("embedding_norm", [True, False])
def test_float32_is_exact(decoder, embedding_norm, tmp_path):
    model = random_model(decoder, embedding_norm)
    report = check_parity(PyTorchEngine(model), exported(model, tmp_path), None, is_exact=True)
    assert report.max_error <= 5e-6
    assert report.greedy_agreement == 1.0
    assert report.num_sentences == 32 and report.num_tokens > 300


def test_a_trained_model_gives_the_same_hypotheses(trained, tmp_path):
    model, sources = trained
    engines = PyTorchEngine(model), exported(model, tmp_path)
    for options in (
        SearchOptions(n_best=5),
        SearchOptions(beam=1),
        SearchOptions(length_penalty=0.0, min_length=10),
        SearchOptions(beam=2, max_length=5),
        SearchOptions(no_repeat_ngram_size=2),
    ):
        ours, theirs = (generate(engine, sources, options) for engine in engines)
        for a, b in zip(ours, theirs, strict=True):
            assert [hypothesis.ids for hypothesis in a] == [hypothesis.ids for hypothesis in b]
            for one, other in zip(a, b, strict=True):
                assert other.score == pytest.approx(one.score, abs=2e-5)
                assert other.token_scores == pytest.approx(one.token_scores, abs=2e-5)


def test_int8_is_close_and_smaller(trained, tmp_path):
    model, sources = trained
    report = check_parity(PyTorchEngine(model), exported(model, tmp_path, "int8"), sources, is_exact=False)
    assert 0 < report.mean_error <= 0.02
    assert report.greedy_agreement >= 0.9 and report.beam_agreement >= 0.9
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    assert (tmp_path / "weights.bin").stat().st_size < 1.3 * num_weights


def test_int8_output_does_not_depend_on_the_batch(trained, tmp_path):
    """One scale for all rows would let a sentence change with its neighbours."""
    model, sources = trained
    engine = exported(model, tmp_path, "int8")
    targets = []
    for source in sources:
        ((best,),) = engine.generate([source], SearchOptions())
        targets.append(best.ids)
    together = engine.score(sources, targets)
    for source, target, scores in zip(sources, targets, together, strict=True):
        assert engine.score([source], [target])[0] == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("precision", export.PRECISIONS)
def test_graphs_are_valid_and_share_one_weight_file(precision, tmp_path):
    model = random_model()
    exported(model, tmp_path, precision)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "decoder.onnx",
        "deltalm.json",
        "encoder.onnx",
        "weights.bin",
    ]
    for name in ("encoder.onnx", "decoder.onnx"):
        onnx.checker.check_model(tmp_path / name)
        (standard,) = (opset.version for opset in onnx.load(tmp_path / name).opset_import if opset.domain == "")
        assert standard <= 20
        assert (tmp_path / name).stat().st_size < 60_000
    if precision == "float32":  # nothing twice, and no padding rows
        num_tensors = len(model.state_dict())
        spare = (tmp_path / "weights.bin").stat().st_size - 4 * model.num_parameters()
        assert 0 <= spare < 64 * num_tensors


def swap_ffns(model):
    block = model.decoder.blocks[0]
    block.ffn_1, block.ffn_2 = block.ffn_2, block.ffn_1


def shift_positions(model):
    model.decoder.embedding.positions.data = model.decoder.embedding.positions.data.roll(1, dims=0)


def lose_a_bias(model):
    model.decoder.blocks[0].cross_attention.query.bias.data.zero_()


@pytest.mark.parametrize("precision", export.PRECISIONS)
@pytest.mark.parametrize("damage", [swap_ffns, shift_positions, lose_a_bias])
def test_a_wrong_export_is_found(damage, precision, trained, tmp_path):
    model, sources = trained
    wrong = DeltaLM(model.config).eval()
    wrong.load_state_dict(model.state_dict())
    damage(wrong)
    with pytest.raises(CheckError, match="nothing was written"):
        check_parity(PyTorchEngine(model), exported(wrong, tmp_path, precision), sources, is_exact=True)


def test_pad_is_never_produced(tmp_path):
    model = random_model()
    model.token_embedding.weight.data[1] *= 20  # the likeliest token wherever its logit is positive
    engine = exported(model, tmp_path)
    for hypotheses in generate(engine, random_sources(engine), SearchOptions(beam=1, max_length=30)):
        assert 1 not in hypotheses[0].ids


def test_a_missing_package_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    config = {"model": random_model().config.model_dump()}
    (tmp_path / "model").mkdir()
    write_json(tmp_path / "model/config.json", config)
    save_file(random_model().state_dict(), tmp_path / "model/model.safetensors")
    for package in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            patch.delitem(sys.modules, "deltalm_ds.generation.engines.onnx", raising=False)
            with pytest.raises(InputError, match=rf"package {package}: pip install 'deltalm-ds\[export\]'"):
                package_export(tmp_path / "model", tmp_path / "out", "onnx")
        assert not (tmp_path / "out").exists()

"""The CTranslate2 export gives what the model gives, and a wrong one is refused."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deltalm_ds.checkpoints.directory import load_weights
from deltalm_ds.checkpoints.official import load_official
from deltalm_ds.errors import CheckError, InputError
from deltalm_ds.export import ctranslate2 as export
from deltalm_ds.export.parity import random_sources
from deltalm_ds.files import write_json
from deltalm_ds.generation.beam_search import SearchOptions
from deltalm_ds.generation.engine import CTranslate2Engine, PyTorchEngine, load_engine
from deltalm_ds.generation.translate import generate
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM

FIXTURES = Path(__file__).parents[1] / "fixtures"


def save_model(model, directory):
    directory.mkdir()
    write_json(directory / "config.json", {"model": model.config.model_dump()})
    save_file(model.state_dict(), directory / "model.safetensors")
    return directory


def random_model(decoder="interleaved", embedding_norm=True, seed=0):
    torch.manual_seed(seed)
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
def trained(tmp_path_factory):
    """The official toy model that was trained: (directory, sources of the beam search reference)."""
    official = load_official(FIXTURES / "official_base_trained.pt", 1000, num_heads=4)
    model = DeltaLM(official.config)
    load_weights(model, official.weights, "fixture")
    reference = json.loads(gzip.decompress((FIXTURES / "beam.json.gz").read_bytes()))
    directory = save_model(model, tmp_path_factory.mktemp("trained") / "model")
    return directory, [source[:-1] for source in reference["sources"]]


@pytest.mark.parametrize("decoder", ["interleaved", "vanilla"])
@pytest.mark.parametrize("embedding_norm", [True, False])
def test_float32_is_exact(decoder, embedding_norm, tmp_path):
    directory = save_model(random_model(decoder, embedding_norm), tmp_path / "model")
    report = export.export_ctranslate2(directory, tmp_path / "out")
    assert report.max_error <= 5e-6
    assert report.greedy_agreement == 1.0
    assert report.num_sentences == 32 and report.num_tokens > 300


def test_a_trained_model_gives_the_same_outputs(trained, tmp_path):
    directory, sources = trained
    report = export.export_ctranslate2(directory, tmp_path / "out", "float32", sources)
    assert report.max_error <= 5e-6
    assert report.greedy_agreement == report.beam_agreement == 1.0
    engines = load_engine(directory), load_engine(tmp_path / "out")
    for options in (
        SearchOptions(n_best=1, length_penalty=0.6),
        SearchOptions(n_best=1, length_penalty=0.0),
        SearchOptions(n_best=1, min_length=10),
        SearchOptions(beam=1, max_length=5),
        SearchOptions(n_best=1, max_length=5),
        SearchOptions(n_best=1, no_repeat_ngram_size=2),
    ):
        ours, theirs = (generate(engine, sources, options, token_scores=True) for engine in engines)
        for (a,), (b,) in zip(ours, theirs, strict=True):
            assert a.ids == b.ids
            assert b.score == pytest.approx(a.score, abs=2e-5)
            assert b.token_scores == pytest.approx(a.token_scores, abs=2e-5)


@pytest.mark.parametrize("quantization", ["int8", "float16", "bfloat16"])
def test_quantized_exports_are_close_and_smaller(quantization, trained, tmp_path):
    directory, sources = trained
    report = export.export_ctranslate2(directory, tmp_path / "out", quantization, sources)
    assert 0 < report.mean_error <= 0.02
    assert report.greedy_agreement >= 0.9 and report.beam_agreement >= 0.9
    about = json.loads((tmp_path / "out/deltalm.json").read_text())
    assert about["quantization"] == quantization and about["parity"] == report.as_dict()
    ratio = (tmp_path / "out/model.bin").stat().st_size / (directory / "model.safetensors").stat().st_size
    assert ratio < 0.65


def test_pad_is_never_produced(tmp_path):
    model = random_model(seed=3)
    model.token_embedding.weight.data[1] *= 20  # the likeliest token wherever its logit is positive
    directory = save_model(model, tmp_path / "model")
    export.export_ctranslate2(directory, tmp_path / "out")
    engine = PyTorchEngine(model), CTranslate2Engine(tmp_path / "out")
    for found in (generate(e, random_sources(engine[0]), SearchOptions(beam=1, max_length=30)) for e in engine):
        assert all(1 not in hypotheses[0].ids for hypotheses in found)


def swap_ffns(spec):
    first, second = spec.decoder.layer[0].ffn, spec.decoder.layer[1].ffn
    first.linear_0.weight, second.linear_0.weight = second.linear_0.weight, first.linear_0.weight


def shift_positions(spec):
    table = spec.decoder.position_encodings
    table.encodings = table.encodings.roll(1, dims=0)


def scale_embeddings(spec):
    spec.encoder.scale_embeddings = True


def lose_a_bias(spec):
    spec.decoder.layer[1].attention.linear[2].bias *= 0


@pytest.mark.parametrize("quantization", ["float32", "int8"])
@pytest.mark.parametrize("damage", [swap_ffns, shift_positions, scale_embeddings, lose_a_bias])
def test_a_wrong_export_is_refused_and_leaves_nothing(damage, quantization, trained, tmp_path, monkeypatch):
    build_spec = export.build_spec

    def build_wrong_spec(model, tokens):
        spec = build_spec(model, tokens)
        damage(spec)
        return spec

    monkeypatch.setattr(export, "build_spec", build_wrong_spec)
    with pytest.raises(CheckError, match="nothing was written"):
        export.export_ctranslate2(trained[0], tmp_path / "out", quantization, trained[1])
    assert list(tmp_path.iterdir()) == []


def test_bad_requests_are_refused(trained, tmp_path):
    with pytest.raises(InputError, match="'int4'"):
        export.export_ctranslate2(trained[0], tmp_path / "out", "int4")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    with pytest.raises(InputError, match="exists already"):
        export.export_ctranslate2(trained[0], tmp_path / "full")

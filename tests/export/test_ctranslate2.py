"""The CTranslate2 export gives what the model gives, and a wrong one is refused."""

import ctranslate2
import pytest
from toys import random_model, save

from deltalm_ds.checkpoints.directory import load_model
from deltalm_ds.errors import CheckError
from deltalm_ds.export.formats import ctranslate2 as exporter
from deltalm_ds.export.package import export
from deltalm_ds.export.parity import random_sources
from deltalm_ds.files import read_json
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.generation.loading import load_engine
from deltalm_ds.generation.translate import generate


@pytest.mark.parametrize("decoder", ["interleaved", "vanilla"])
@pytest.mark.parametrize("embedding_norm", [True, False])
def test_float32_is_exact(decoder, embedding_norm, tmp_path):
    directory = save(random_model(decoder=decoder, embedding_norm=embedding_norm), tmp_path / "model")
    report = export(directory, tmp_path / "out")
    assert report.max_error <= 5e-6
    assert report.greedy_agreement == 1.0
    assert report.num_sentences == 32 and report.num_tokens > 300


def test_a_trained_model_gives_the_same_outputs(trained, tmp_path):
    directory, sources = trained
    report = export(directory, tmp_path / "out", check_sources=sources)
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


@pytest.mark.parametrize("precision", [precision for precision in exporter.PRECISIONS if precision != "float32"])
def test_quantized_exports_are_close_and_smaller(precision, trained, tmp_path):
    directory, sources = trained
    report = export(directory, tmp_path / "out", precision=precision, check_sources=sources)
    assert 0 < report.mean_error <= 0.02
    assert report.greedy_agreement >= 0.9 and report.beam_agreement >= 0.9
    about = read_json(tmp_path / "out/deltalm.json")
    assert about["precision"] == precision and about["parity"] == report.as_dict()
    ratio = (tmp_path / "out/model.bin").stat().st_size / (directory / "model.safetensors").stat().st_size
    assert ratio < 0.65


def test_pad_is_never_produced(tmp_path):
    model = random_model(seed=3)
    model.token_embedding.weight.data[1] *= 20  # the likeliest token wherever its logit is positive
    directory = save(model, tmp_path / "model")
    export(directory, tmp_path / "out")
    engines = load_engine(directory), load_engine(tmp_path / "out")
    for found in (generate(e, random_sources(e), SearchOptions(beam=1, max_length=30)) for e in engines):
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


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("damage", [swap_ffns, shift_positions, scale_embeddings, lose_a_bias])
def test_a_wrong_export_is_refused_and_leaves_nothing(damage, precision, trained, tmp_path, monkeypatch):
    build_spec = exporter.build_spec

    def build_wrong_spec(model, tokens):
        spec = build_spec(model, tokens)
        damage(spec)
        return spec

    monkeypatch.setattr(exporter, "build_spec", build_wrong_spec)
    with pytest.raises(CheckError, match="nothing was written"):
        export(trained[0], tmp_path / "out", precision=precision, check_sources=trained[1])
    assert list(tmp_path.iterdir()) == []


def test_the_token_table_is_stored_once(tmp_path):
    model = random_model(vocabulary_size=2000)
    exporter.write_ctranslate2(model, None, tmp_path, "float32")
    added = 4 * 48 * (48 * 4 + 96)  # generous: no-op attentions and norms
    assert (tmp_path / "model.bin").stat().st_size < 4 * model.num_parameters() + added


def test_exporting_leaves_the_model_alone(tmp_path):
    """CTranslate2 quantizes tensors in place."""
    model = load_model(save(random_model(), tmp_path / "model"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (tmp_path / "out").mkdir()
    exporter.write_ctranslate2(model, None, tmp_path / "out", "int8")
    assert all((tensor == before[name]).all() for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("supported", "precision", "expected"),
    [
        ({"float32", "int8", "int8_float32"}, "int8", "int8"),
        ({"float32", "int8", "int8_float32"}, "int8_bfloat16", "int8_float32"),
        ({"float32", "int8", "int8_float32"}, "float16", "float32"),
        ({"float32", "int8", "int8_float32", "bfloat16"}, "bfloat16", "bfloat16"),
        ({"float32"}, "int8", "float32"),
    ],
)
def test_what_a_cpu_cannot_compute_in_is_said(supported, precision, expected, monkeypatch):
    monkeypatch.setattr(ctranslate2, "get_supported_compute_types", lambda device: supported)
    assert exporter.computed_as(precision) == expected


@pytest.mark.parametrize("precision", exporter.PRECISIONS)
def test_computed_as_is_what_ctranslate2_does(precision, trained, tmp_path):
    exporter.write_ctranslate2(load_model(trained[0]), None, tmp_path, precision)
    assert ctranslate2.Translator(str(tmp_path)).compute_type.startswith(exporter.computed_as(precision))

"""Which device and dtype an engine is opened with, and what is refused: GPUs by stand-ins."""

from types import SimpleNamespace

import ctranslate2
import pytest
import torch

from deltalm_ds.checkpoints.directory import save_model
from deltalm_ds.errors import InputError
from deltalm_ds.export.formats.ctranslate2 import write_ctranslate2
from deltalm_ds.files import write_json
from deltalm_ds.generation.engines.pytorch import PyTorchEngine
from deltalm_ds.generation.interface import BATCH_TOKENS, EngineOptions, SearchOptions
from deltalm_ds.generation.loading import load_engine
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.vocabulary import Vocabulary

FLOATS = {"float32", "float16", "bfloat16"}
INT8 = {"int8", *(f"int8_{name}" for name in FLOATS)}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = DeltaLMConfig.preset("tiny", vocabulary_size=12, max_positions=20)
    model = DeltaLM(config).eval()
    model.token_embedding.weight.data *= 3  # sharper than fresh weights: candidates do not nearly tie
    return model


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory):
    parent = tmp_path_factory.mktemp("model")
    (parent / "dict.txt").write_text("".join(f"▁{letter} 1\n" for letter in "abcdefgh"))
    vocabulary = Vocabulary.from_dict(parent / "dict.txt", num_sentinels=0)
    assert vocabulary.num_tokens == model.config.vocabulary_size
    save_model(parent / "model", model.config, model.state_dict(), vocabulary, {})
    return parent / "model"


def write_export(model, directory, precision):
    directory.mkdir()
    write_ctranslate2(model, None, directory, precision)
    sizes = {"vocabulary_size": model.config.vocabulary_size, "max_positions": model.config.max_positions}
    write_json(directory / "deltalm.json", {"format": "ctranslate2", "precision": precision, **sizes})
    return directory


# --- PyTorch ---


@pytest.fixture
def gpus(monkeypatch):
    """Makes torch see GPUs of the given capabilities; returns where models were put, which in truth stay on the CPU."""

    def see(*capabilities):
        moves = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: capabilities[number])
        monkeypatch.setattr(DeltaLM, "to", lambda model, *where: moves.append(where) or model)
        return moves

    return see


@pytest.mark.parametrize(
    ("capabilities", "device", "dtype", "expected"),
    [
        ([], None, None, ("cpu", torch.float32)),
        ([], "cpu", "bfloat16", ("cpu", torch.bfloat16)),
        ([(8, 0)], None, None, ("cuda:0", torch.bfloat16)),
        ([(9, 0)], "cuda", "float32", ("cuda:0", torch.float32)),
        ([(7, 0)], None, None, ("cuda:0", torch.float16)),
        ([(8, 0), (7, 5)], "cuda:1", None, ("cuda:1", torch.float16)),
        ([(7, 0), (8, 6)], "cuda:1", "bfloat16", ("cuda:1", torch.bfloat16)),
        ([(7, 0)], "cpu", None, ("cpu", torch.float32)),
        ([(7, 0)], "cpu", "bfloat16", ("cpu", torch.bfloat16)),
    ],
)
def test_where_and_in_what_pytorch_computes(capabilities, device, dtype, expected, gpus, directory):
    moves = gpus(*capabilities)
    load_engine(directory, device=device, dtype=dtype)
    assert moves == [expected]


@pytest.mark.parametrize(
    ("capabilities", "device", "dtype", "message"),
    [
        ([], "cuda", None, "--device cuda: the engine sees no GPU here"),
        ([(8, 0)] * 2, "cuda:2", None, "--device cuda:2: the engine sees GPUs up to cuda:1"),
        ([(7, 5)], None, "bfloat16", r"--dtype bfloat16: this GPU does not compute in it.*float16"),
        ([], "cuda:x", None, "There is no device 'cuda:x'"),
        ([], "gpu", None, "There is no device 'gpu': give cpu, cuda"),
        ([], None, "fp16", "There is no dtype 'fp16': the nearest is 'float16'"),
    ],
)
def test_what_pytorch_cannot_do_is_refused(capabilities, device, dtype, message, gpus, directory):
    gpus(*capabilities)
    with pytest.raises(InputError, match=message):
        load_engine(directory, device=device, dtype=dtype)


def test_a_gpu_takes_larger_batches(model):
    weight = SimpleNamespace(device=torch.device("cuda:1"))
    on_gpu = SimpleNamespace(config=model.config, token_embedding=SimpleNamespace(weight=weight))
    assert PyTorchEngine(on_gpu).batch_tokens > PyTorchEngine(model).batch_tokens == BATCH_TOKENS["cpu"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_score_what_the_model_does_about(dtype, directory):
    """Scores of its own hypotheses, by search and by `score`, are near those in float32, and not the same."""
    sources = [[4, 5, 6], [7], [8, 9, 10, 11, 4]]
    exact, rounded = load_engine(directory, device="cpu"), load_engine(directory, device="cpu", dtype=dtype)
    assert rounded.model.token_embedding.weight.dtype == getattr(torch, dtype)
    found = rounded.generate(sources, SearchOptions(beam=3, max_length=8))
    outputs = [hypotheses[0].ids for hypotheses in found]
    expected = exact.score(sources, outputs)
    for hypotheses, again, scores in zip(found, rounded.score(sources, outputs), expected, strict=True):
        assert hypotheses[0].token_scores == pytest.approx(scores, abs=0.15)
        assert again == pytest.approx(scores, abs=0.15)
        assert again != pytest.approx(scores, abs=1e-6)


# --- CTranslate2 ---


@pytest.fixture
def translators(monkeypatch):
    """Makes CTranslate2 see GPUs that compute in the given types; returns the arguments of its translators."""

    def see(*supported):
        made = []
        monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: len(supported))
        types = {("cuda", number): types for number, types in enumerate(supported)}
        types["cpu", 0] = {"float32", "int8", "int8_float32"}
        monkeypatch.setattr(ctranslate2, "get_supported_compute_types", lambda device, index: types[device, index])
        monkeypatch.setattr(ctranslate2, "Translator", lambda path, device, **options: made.append((device, options)))
        return made

    return see


@pytest.mark.parametrize(
    ("precision", "gpus", "device", "dtype", "expected"),
    [
        ("float32", [], None, None, ("cpu", 0, "default")),
        ("int8", [], None, "float32", ("cpu", 0, "int8_float32")),
        ("int8", [FLOATS | INT8], None, None, ("cuda", 0, "int8_bfloat16")),
        ("float32", [FLOATS | INT8], None, None, ("cuda", 0, "bfloat16")),
        ("float32", [FLOATS, (FLOATS | INT8) - {"bfloat16", "int8_bfloat16"}], "cuda:1", None, ("cuda", 1, "float16")),
        ("int8", [{"float32", "int8", "int8_float32"}], None, None, ("cuda", 0, "int8_float32")),
        ("float32", [FLOATS], "cuda", "float16", ("cuda", 0, "float16")),
        ("float32", [FLOATS], "cpu", None, ("cpu", 0, "default")),
    ],
)
def test_where_and_in_what_ctranslate2_computes(precision, gpus, device, dtype, expected, translators, model, tmp_path):
    made = translators(*gpus)
    engine = load_engine(write_export(model, tmp_path / "out", precision), threads=3, device=device, dtype=dtype)
    on, index, compute_type = expected
    assert made == [(on, {"device_index": index, "compute_type": compute_type, "intra_threads": 3})]
    assert engine.batch_tokens == BATCH_TOKENS[on]


def test_what_ctranslate2_cannot_do_is_refused(translators, model, tmp_path):
    export = write_export(model, tmp_path / "out", "int8")
    translators({"float32"})
    with pytest.raises(
        InputError, match=r"does not compute in int8_bfloat16 on this device \(cpu\), but in float32, int8"
    ):
        load_engine(export, device="cpu", dtype="bfloat16")
    with pytest.raises(InputError, match=r"does not compute in int8_float16 on this device \(cuda\), but in float32\."):
        load_engine(export, dtype="float16")
    with pytest.raises(InputError, match="sees GPUs up to cuda:0"):
        load_engine(export, device="cuda:1")


def test_ctranslate2_takes_the_dtype(model, tmp_path):
    engine = load_engine(write_export(model, tmp_path / "out", "int8"), device="cpu", dtype="float32")
    assert engine.translator.compute_type == "int8_float32"


# --- ONNX ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (EngineOptions(device="cuda"), "--device cuda: the ONNX engine computes on the CPU only"),
        (EngineOptions(dtype="float16"), "precision that it was exported in"),
    ],
)
def test_onnx_is_for_the_cpu(options, message, tmp_path):
    write_json(tmp_path / "deltalm.json", {"format": "onnx"})
    with pytest.raises(InputError, match=message):
        load_engine(tmp_path, device=options.device, dtype=options.dtype)

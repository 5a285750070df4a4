"""Every kind of file and directory is told from its content."""

import json
import shutil
from math import prod

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltalm_ds.checkpoints.description import describe
from deltalm_ds.checkpoints.directory import load_model, save_model
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.export.formats.fairseq import write_fairseq
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.vocabulary import Vocabulary

NUM_TOKENS = 100


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DeltaLM(DeltaLMConfig.preset("tiny", vocabulary_size=NUM_TOKENS, max_positions=8))


@pytest.fixture
def directory(model, tmp_path):
    dictionary = tmp_path / "dict.txt"
    dictionary.write_text("".join(f"piece{i} 1\n" for i in range(NUM_TOKENS - 5)))
    words = Vocabulary.from_dict(dictionary, num_sentinels=0, languages=["de"])
    save_model(tmp_path / "model", model.config, model.state_dict(), words, {"made_by": "a test"})
    return tmp_path / "model"


def test_model_directory(model, directory):
    found = describe(directory)
    assert found["kind"] == "DeltaLM model directory"
    assert found["model"] == model.config.model_dump()
    assert found["parameters"] == model.num_parameters()
    assert found["parameters_with_padding_rows"] == sum(weight.numel() for weight in model.parameters())
    assert found["dtypes"] == ["float32"]
    assert (found["vocabulary"]["pieces"], found["languages"]) == (NUM_TOKENS - 5, ["de"])
    assert found["provenance"] == {"made_by": "a test"}
    json.dumps(found)


def test_dtypes(directory):
    path = directory / "model.safetensors"
    weights = load_file(path)
    save_file({name: weights[name].bfloat16() if weights[name].ndim == 2 else weights[name] for name in weights}, path)
    assert describe(directory)["dtypes"] == ["bfloat16", "float32"]


def test_run_and_checkpoint(directory, tmp_path):
    run = tmp_path / "run"
    for step, loss in ((10, 2.0), (20, 3.0)):
        checkpoint = run / "checkpoints" / f"step_{step:08d}"
        shutil.copytree(directory, checkpoint)
        state = {"step": step, "updates": step, "loss_scaler": None, "validation": {"loss": loss}}
        (checkpoint / "state.json").write_text(json.dumps(state))
    found = describe(checkpoint)
    assert (found["kind"], found["step"], found["validation"]) == ("checkpoint of a run", 20, {"loss": 3.0})
    found = describe(run)
    assert (found["kind"], found["best"]) == ("run directory", "step_00000010")
    assert found["checkpoints"] == ["step_00000010", "step_00000020"]
    assert found["newest"]["step"] == 20
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "recipe.yaml").touch()
    assert describe(tmp_path / "fresh")["checkpoints"] == []


def test_export(tmp_path):
    (tmp_path / "deltalm.json").write_text('{"format": "ctranslate2", "precision": "int8"}')
    found = describe(tmp_path)
    assert (found["kind"], found["precision"]) == ("export to ctranslate2", "int8")


def test_data_set_and_vocabulary(directory, tmp_path):
    (directory / "config.json").unlink()
    assert describe(directory)["kind"] == "vocabulary"
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "manifest.json").write_text("{}")
    assert describe(tmp_path / "shards")["see"] == f"deltalm data inspect {tmp_path / 'shards'}"


def test_foreign_checkpoints(model, directory, fixtures, tmp_path):
    released = describe(fixtures / "official_base.pt")
    assert released["kind"] == "DeltaLM as Microsoft released it, fairseq"
    assert (released["model"]["num_rows"], released["model"]["hidden_size"]) == (1000, 64)
    out = tmp_path / "fairseq"
    out.mkdir()
    write_fairseq(model, None, out, "float16")
    for path in (out, out / "finetuned.pt"):
        found = describe(path)
        assert found["kind"] == "DeltaLM as fairseq's trainer saves it"
        assert found["dtypes"] == ["float16", "float32"]  # encoder.version is float32
        # fairseq's two unused rows in front of either position table
        assert found["parameters"] == model.num_parameters() + 2 * 2 * model.config.hidden_size
        json.dumps(found)


def test_xlm_roberta(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra export is not installed")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.XLMRobertaConfig(vocab_size=30, type_vocab_size=1, max_position_embeddings=12, **sizes)
    transformers.XLMRobertaModel(config).save_pretrained(tmp_path / "xlmr")
    found = describe(tmp_path / "xlmr")
    assert found["kind"] == "XLM-R or InfoXLM, Hugging Face"
    assert (found["model"]["num_heads"], found["model"]["max_positions"], found["model"]["decoder"]) == (2, 10, None)
    json.dumps(found)


def test_tensors_of_no_model(directory, tmp_path):
    tensors = {"x": torch.zeros(2, 3), "y": torch.zeros(4, dtype=torch.bfloat16)}
    torch.save(tensors, tmp_path / "some.pt")
    save_file(tensors, tmp_path / "some.safetensors")
    for name in ("some.pt", "some.safetensors"):
        found = describe(tmp_path / name)
        assert (found["kind"], found["parameters"]) == ("tensors of no known model", 10)
        assert found["dtypes"] == ["bfloat16", "float32"]
    found = describe(directory / "model.safetensors")
    assert found["kind"] == "part of a DeltaLM model directory"
    shapes = [tensor.shape for tensor in load_file(directory / "model.safetensors").values()]
    assert found["parameters"] == sum(map(prod, shapes))


def altered(path):
    content = json.loads(path.read_text())
    content["model"]["ffn_size"] = 7
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda path: path.write_text("not JSON"), InputError, r"config\.json is not valid JSON"),
        (altered, DataError, r"ffn\.input\.weight has shape"),
        (lambda path: path.with_name("model.safetensors").unlink(), InputError, r"has no model\.safetensors"),
        (lambda path: path.with_name("vocabulary.json").write_text("[]"), DataError, "is not a vocabulary"),
    ],
)
def test_damaged_model_directories(damage, error, message, directory):
    damage(directory / "config.json")
    with pytest.raises(error, match=message):
        describe(directory)


def test_what_is_unknown(tmp_path):
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(InputError, match=r"nothing that deltalm knows: it has none of deltalm\.json, .* and no \.pt"):
        describe(tmp_path)
    with pytest.raises(DataError, match=r"notes\.txt is not a file of tensors"):
        describe(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="does not exist"):
        describe(tmp_path / "nothing")


def test_the_description_is_that_of_what_is_loaded(directory):
    assert describe(directory)["model"] == load_model(directory).config.model_dump()

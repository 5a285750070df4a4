"""Model directories: what is written is what is read, and damage is named."""

import errno
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltalm_ds.checkpoints import directory as module
from deltalm_ds.checkpoints.description import describe_model
from deltalm_ds.checkpoints.directory import load_model, read_config, save_model
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.vocabulary import Vocabulary

NUM_TOKENS = 100


def vocabulary(tmp_path):
    path = tmp_path / "dict.txt"
    path.write_text("".join(f"piece{i} 1\n" for i in range(NUM_TOKENS - 4)))
    return Vocabulary.from_dict(path, num_sentinels=0)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DeltaLM(DeltaLMConfig.preset("tiny", vocabulary_size=NUM_TOKENS, max_positions=8))


@pytest.fixture
def directory(model, tmp_path):
    save_model(tmp_path / "model", model.config, model.state_dict(), vocabulary(tmp_path), {"made_by": "a test"})
    return tmp_path / "model"


def test_written_is_read(model, directory):
    found = load_model(directory, dropout=0.25)
    assert found.config == model.config.model_copy(update={"dropout": 0.25})
    assert not found.training
    for name, weight in found.named_parameters():
        assert torch.equal(weight, model.state_dict()[name])
        assert weight.requires_grad
        assert weight.device.type == "cpu"


def test_weights_in_several_files_and_sixteen_bits(model, directory):
    weights = {name: weight.bfloat16() for name, weight in load_file(directory / "model.safetensors").items()}
    names = sorted(weights)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        save_file({name: weights[name] for name in part}, directory / f"model-0000{number}-of-00002.safetensors")
    (directory / "model.safetensors").unlink()
    found = load_model(directory)
    assert all(torch.equal(weight, weights[name].float()) for name, weight in found.named_parameters())
    assert describe_model(directory)["dtypes"] == ["bfloat16"]


def test_description(model, directory):
    found = describe_model(directory)
    assert found["parameters"] == model.num_parameters()
    assert found["parameters_with_padding_rows"] == sum(weight.numel() for weight in model.parameters())
    assert found["vocabulary"]["pieces"] == NUM_TOKENS - 4
    assert found["provenance"] == {"made_by": "a test"}
    json.dumps(found)


def change_config(directory, change):
    path = directory / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda c: c.pop("model"), InputError, "has no 'model' section"),
        (lambda c: c["model"].update(ffn_size=7), DataError, r"ffn\.input\.weight has shape"),
        (lambda c: c["model"].update(num_encoder_layers=3), DataError, r"encoder\.layers\.2\..* is missing"),
        (lambda c: c["model"].update(num_encoder_layers=1), DataError, r"encoder\.layers\.1\..* is unknown"),
        (lambda c: c["model"].update(num_heads=0, layers=2), DataError, r"num_heads: .*layers: "),
    ],
)
def test_config_that_does_not_fit(change, error, message, directory):
    change_config(directory, change)
    with pytest.raises(error, match=message):
        load_model(directory)
    with pytest.raises(error, match=message):
        describe_model(directory)


@pytest.mark.parametrize("kept", [0, 5, 0.3, 0.99])
def test_truncated_weights(kept, directory):
    path = directory / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(DataError, match=r"model\.safetensors cannot be read"):
        load_model(directory)


def test_missing_files(directory, tmp_path):
    with pytest.raises(InputError, match=r"config\.json does not exist"):
        read_config(tmp_path)
    (directory / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        load_model(directory)


def test_a_full_disk_leaves_nothing(model, tmp_path, monkeypatch):
    def full_disk(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    words = vocabulary(tmp_path)
    monkeypatch.setattr(module, "write_json", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_model(tmp_path / "model", model.config, model.state_dict(), words, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["dict.txt"]

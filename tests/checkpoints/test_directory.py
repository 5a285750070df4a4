"""Model directories: what is written is what is read, and damage is named."""

import errno
import json
import os
import re
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltalm_ds.checkpoints import directory as module
from deltalm_ds.checkpoints.directory import check_finite, load_model, parameter_shapes, read_config, save_model
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
    (directory / "model-00001-of-00002.safetensors").unlink()
    first_missing = next(name for name, _ in model.named_parameters() if name in names[::2])
    with pytest.raises(DataError, match=rf"model does not fit the model: {re.escape(first_missing)} is missing"):
        load_model(directory)


def test_changing_a_loaded_model_leaves_its_file_alone(directory):
    content = (directory / "model.safetensors").read_bytes()
    with torch.no_grad():
        for parameter in load_model(directory).parameters():
            parameter.fill_(7.0)
    assert (directory / "model.safetensors").read_bytes() == content


def test_a_left_over_file_is_noticed(directory):
    shutil.copy(directory / "model.safetensors", directory / "model-00001-of-00001.safetensors")
    with pytest.raises(DataError, match=r"the tensor .* in two of its files"):
        load_model(directory)


def test_weights_are_made_one_after_the_other_as_they_are_written(model, tmp_path):
    """Never is more than one of them alive."""
    made: list[weakref.ref] = []

    def maker(name):
        def make():
            assert not any(reference() is not None for reference in made)
            tensor = model.state_dict()[name].clone()
            made.append(weakref.ref(tensor))
            return tensor

        return make

    weights = {name: maker(name) for name in reversed(list(model.state_dict()))}
    save_model(tmp_path / "model", model.config, weights, vocabulary(tmp_path), {})
    assert len(made) == len(weights)
    found = load_model(tmp_path / "model").state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in model.state_dict().items())


def test_others_may_read_what_the_umask_lets_them(directory):
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in directory.iterdir()}
    assert modes == dict.fromkeys(modes, oct(0o666 & ~current_umask()))


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def missing(weights):
    del weights["encoder.embedding.positions"]


def unknown(weights):
    weights["adapter.weight"] = torch.zeros(2)


def misshapen(weights):
    weights["encoder.embedding.positions"] = torch.zeros(7, 128)


def misshapen_when_made(weights):
    weights["encoder.embedding.positions"] = lambda: torch.zeros(7, 128)


def whole_numbers(weights):
    weights["encoder.embedding.positions"] = weights["encoder.embedding.positions"].int()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing, r"encoder\.embedding\.positions is missing"),
        (unknown, r"adapter\.weight is unknown"),
        (misshapen, r"encoder\.embedding\.positions has shape \(7, 128\), the model needs \(8, 128\)"),
        (misshapen_when_made, r"encoder\.embedding\.positions has shape \(7, 128\), the model needs \(8, 128\)"),
        (whole_numbers, r"encoder\.embedding\.positions holds torch\.int32, not real numbers"),
    ],
)
def test_wrong_weights_are_not_written(change, message, model, tmp_path):
    weights = dict(model.state_dict())
    change(weights)
    words = vocabulary(tmp_path)
    with pytest.raises(DataError, match=message):
        save_model(tmp_path / "model", model.config, weights, words, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["dict.txt"]


def test_a_vocabulary_of_another_size_is_not_written(model, tmp_path):
    config = model.config.model_copy(update={"vocabulary_size": NUM_TOKENS + 1})
    with pytest.raises(DataError, match="the vocabulary has 100 tokens, the model's 101"):
        save_model(tmp_path / "model", config, model.state_dict(), vocabulary(tmp_path), {})


def test_a_dtype_that_was_altered_is_noticed(directory):
    path = directory / "model.safetensors"
    content = path.read_bytes()
    assert content.count(b'"F32"') == len(parameter_shapes(read_config(directory)))
    path.write_bytes(content.replace(b'"F32"', b'"I32"', 1))
    with pytest.raises(DataError, match=r"holds torch\.int32, not real numbers"):
        load_model(directory)


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


@pytest.mark.parametrize("kept", [0, 5, 0.3, 0.99])
def test_truncated_weights(kept, directory):
    path = directory / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(DataError, match=r"model\.safetensors (cannot be read|is empty|is not a file of tensors)"):
        load_model(directory)


@pytest.mark.parametrize(
    "damage",
    [
        lambda directory: (directory / "model.safetensors").write_bytes(b"\0" * 99),
        lambda directory: (directory / "model.safetensors").unlink(),
        lambda directory: (directory / "config.json").write_text('{"model": '),
    ],
)
def test_all_damaged_files_of_a_checkpoint_give_the_same_hint(damage, directory):
    (directory / "state.json").write_text('{"step": 3}')
    load_model(directory)
    damage(directory)
    message = rf"^The checkpoint {directory} is damaged \(.*[^.]\): remove it to go on from another\.$"
    with pytest.raises(DataError, match=message):
        load_model(directory)


@pytest.mark.parametrize(
    "values", [[1.0, float("nan"), 2.0], [float("-inf"), 0.0], [float("inf")], [[1.0], [float("nan")]]]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_numbers_that_are_not_finite(values, dtype):
    tensor = torch.tensor(values, dtype=dtype)
    check_finite("a weight", torch.zeros_like(tensor))
    check_finite("a weight", tensor[:0])
    check_finite("a weight", torch.full((3,), torch.finfo(dtype).max, dtype=dtype))
    with pytest.raises(DataError, match="a weight holds NaN or infinite numbers"):
        check_finite("a weight", tensor)


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

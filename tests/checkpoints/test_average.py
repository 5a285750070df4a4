"""The mean of checkpoints against numpy, and what cannot be averaged."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deltalm_ds.checkpoints.average import average_checkpoints
from deltalm_ds.checkpoints.directory import load_model, save_model
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.vocabulary import Vocabulary


def write_checkpoint(run, step, tmp_path, words="piece", **changes):
    dictionary = tmp_path / f"{words}.txt"
    dictionary.write_text("".join(f"{words}{i} 1\n" for i in range(16)))
    torch.manual_seed(step)
    model = DeltaLM(DeltaLMConfig.preset("tiny", vocabulary_size=20, **{"max_positions": 8, **changes}))
    directory = run / "checkpoints" / f"step_{step:08d}"
    vocabulary = Vocabulary.from_dict(dictionary, num_sentinels=0)
    save_model(directory, model.config, model.state_dict(), vocabulary, {})
    return model


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def test_mean_of_the_newest(run, tmp_path):
    models = [write_checkpoint(run, step, tmp_path) for step in (5, 10, 100, 1000)]
    averaged = average_checkpoints(run, 3, tmp_path / "out")
    assert [path.name for path in averaged] == ["step_00000010", "step_00000100", "step_00001000"]
    found = load_model(tmp_path / "out").state_dict()
    for name, weight in found.items():
        mean = np.mean([model.state_dict()[name].double().numpy() for model in models[1:]], axis=0)
        np.testing.assert_array_equal(weight.numpy(), mean.astype(np.float32))


def test_mean_of_equal_weights_is_exactly_that_weight(run, tmp_path):
    model = write_checkpoint(run, 0, tmp_path)
    for step in range(1, 7):
        directory = run / "checkpoints" / f"step_{step:08d}"
        save_model(directory, model.config, model.state_dict(), Vocabulary.load(directory.parent / "step_00000000"), {})
    average_checkpoints(run, 7, tmp_path / "out")
    found = load_model(tmp_path / "out").state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in model.state_dict().items())


def without_a_tensor(run, tmp_path):
    write_checkpoint(run, 1, tmp_path)
    path = run / "checkpoints" / "step_00000001" / "model.safetensors"
    weights = load_file(path)
    del weights["encoder.embedding.positions"]
    save_file(weights, path)


REFUSED = [
    (lambda run, tmp_path: write_checkpoint(run, 1, tmp_path, max_positions=9), "another shape or vocabulary"),
    (lambda run, tmp_path: write_checkpoint(run, 1, tmp_path, words="other"), "another shape or vocabulary"),
    (without_a_tensor, r"encoder\.embedding\.positions is missing"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_does_not_belong_together(make, message, run, tmp_path):
    make(run, tmp_path)
    write_checkpoint(run, 2, tmp_path)
    with pytest.raises(DataError, match=message):
        average_checkpoints(run, 2, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_few_checkpoints(run, tmp_path):
    with pytest.raises(InputError, match="has no checkpoints"):
        average_checkpoints(run, 5, tmp_path / "out")
    write_checkpoint(run, 1, tmp_path)
    with pytest.raises(InputError, match="has 1 checkpoints, not 5: give --last 1"):
        average_checkpoints(run, 5, tmp_path / "out")

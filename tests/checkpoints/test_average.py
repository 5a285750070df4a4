"""The mean of models against numpy, how much memory it takes, and what cannot be averaged."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deltalm_ds.checkpoints.average import average_models
from deltalm_ds.checkpoints.directory import load_model, save_model
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.vocabulary import Vocabulary

SIZES = {"max_positions": 8, "hidden_size": 16, "ffn_size": 32}


def write_model(directory, seed=0, words="piece", **changes):
    dictionary = directory.parent / f"{words}.txt"
    dictionary.parent.mkdir(exist_ok=True)
    dictionary.write_text("".join(f"{words}{i} 1\n" for i in range(changes.get("vocabulary_size", 20) - 4)))
    torch.manual_seed(seed)
    model = DeltaLM(DeltaLMConfig.preset("tiny", **{"vocabulary_size": 20, **SIZES, **changes}))
    save_model(directory, model.config, model.state_dict(), Vocabulary.from_dict(dictionary, num_sentinels=0), {})
    return model


def test_mean(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    models = [write_model(path, seed) for seed, path in enumerate(paths)]
    average_models(paths, tmp_path / "out")
    for name, weight in load_model(tmp_path / "out").state_dict().items():
        mean = np.mean([model.state_dict()[name].double().numpy() for model in models], axis=0)
        np.testing.assert_array_equal(weight.numpy(), mean.astype(np.float32))


def test_mean_of_equal_weights_is_exactly_that_weight(tmp_path):
    paths = [tmp_path / f"model{number}" for number in range(7)]
    models = [write_model(path) for path in paths]
    average_models(paths, tmp_path / "out")
    found = load_model(tmp_path / "out").state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in models[0].state_dict().items())


def test_a_model_in_several_files_of_sixteen_bits(tmp_path):
    models = [write_model(tmp_path / name, seed) for seed, name in enumerate("ab")]
    whole = tmp_path / "b" / "model.safetensors"
    weights = load_file(whole)
    whole.unlink()
    for number, (name, weight) in enumerate(weights.items()):
        save_file({name: weight.half()}, tmp_path / "b" / f"model-{number:05d}-of-00099.safetensors")
    average_models([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    for name, weight in load_model(tmp_path / "out").state_dict().items():
        assert torch.equal(weight, (models[0].state_dict()[name] + models[1].state_dict()[name].half().float()) / 2)


def test_what_was_averaged_is_written_down(tmp_path):
    write_model(tmp_path / "a", 1)
    write_model(tmp_path / "b", 2, dropout=0.3)
    state = {"step": 7, "updates": 6, "loss_scaler": None, "validation": {"loss": 2.5, "bleu": 30.0}}
    (tmp_path / "b" / "state.json").write_text(json.dumps(state))
    average_models([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert content["provenance"]["made_by"] == "deltalm average"
    assert content["provenance"]["averaged"] == [
        {"path": str(tmp_path / "a")},
        {"path": str(tmp_path / "b"), "step": 7, "validation": {"loss": 2.5, "bleu": 30.0}},
    ]
    assert content["model"]["dropout"] == 0.3  # only of use in training: the last one's


MEASURE_MEMORY = """
import resource, sys
from pathlib import Path
from deltalm_ds.checkpoints.average import average_models

def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

*paths, warm_up, out = map(Path, sys.argv[1:])
average_models(paths[:1], warm_up)
before = peak_bytes()
average_models(paths, out)
print(peak_bytes() - before)
"""


def test_memory_does_not_grow_with_the_number_of_models(tmp_path):
    """Five models take at most one model more than one does."""
    paths = [tmp_path / f"model{number}" for number in range(5)]
    write_model(paths[0], vocabulary_size=2_000, hidden_size=384, ffn_size=1536)
    for path in paths[1:]:
        shutil.copytree(paths[0], path)
    model_bytes = (paths[0] / "model.safetensors").stat().st_size
    assert model_bytes > 25e6
    command = [sys.executable, "-c", MEASURE_MEMORY, *paths, tmp_path / "warm-up", tmp_path / "out"]
    growth = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert int(growth.stdout) < model_bytes


def without_a_tensor(path):
    write_model(path)
    file = path / "model.safetensors"
    weights = load_file(file)
    del weights["encoder.embedding.positions"]
    save_file(weights, file)


def truncated(path):
    write_model(path)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def with_another_spm_model(path):
    model = write_model(path)
    words = Vocabulary(Vocabulary.load(path).blocks, b"not read before it is used")
    shutil.rmtree(path)
    save_model(path, model.config, model.state_dict(), words, {})


def not_finite(path):
    write_model(path)
    file = path / "model.safetensors"
    weights = load_file(file)
    weights["encoder.layers.1.ffn.output.bias"][3] = float("nan")
    save_file(weights, file)


REFUSED = [
    (lambda path: write_model(path, max_positions=9), "b and .*a cannot be averaged: max_positions is 8 and 9"),
    (lambda path: write_model(path, embedding_norm=False), "cannot be averaged: embedding_norm is True and False"),
    (lambda path: write_model(path, words="other"), "cannot be averaged: token 4 is 'piece0' and 'other0'"),
    (with_another_spm_model, "the vocabularies have other blocks or SentencePiece models"),
    (without_a_tensor, r"encoder\.embedding\.positions is missing"),
    (truncated, r"a/model\.safetensors cannot be read"),
    (not_finite, r"encoder\.layers\.1\.ffn\.output\.bias in .*/a/model\.safetensors holds NaN or infinite numbers"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_does_not_belong_together(make, message, tmp_path):
    make(tmp_path / "a")
    write_model(tmp_path / "b", 2)
    with pytest.raises(DataError, match=message):
        average_models([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_weights_of_a_checkpoint_give_the_hint_of_its_other_files(tmp_path):
    truncated(tmp_path / "step_00000001")
    write_model(tmp_path / "step_00000002", 2)
    for path in tmp_path.glob("step_*"):
        (path / "state.json").write_text(json.dumps({"step": 1}))
    message = r"The checkpoint .*1 is damaged \(.*cannot be read.*\): remove it to go on from another\."
    with pytest.raises(DataError, match=message):
        average_models(sorted(tmp_path.glob("step_*")), tmp_path / "out")


def test_a_model_named_twice(tmp_path):
    write_model(tmp_path / "a")
    with pytest.raises(InputError, match="named twice"):
        average_models([tmp_path / "a", tmp_path / "b" / ".." / "a"], tmp_path / "out")

"""Microsoft's files: what is refused, with which sentence, and that nothing is left behind."""

import argparse
import os
import re

import pytest
import torch

from deltalm_ds.checkpoints.directory import load_model
from deltalm_ds.checkpoints.official import convert_official, load_official
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.vocabulary import Vocabulary

NUM_HEADS = 4


@pytest.fixture
def state(fixtures):
    """The tensors of a released file, by its own names."""
    return dict(torch.load(fixtures / "official_base.pt", weights_only=True)["weights"])


@pytest.fixture
def dictionary(tmp_path):
    path = tmp_path / "dict.txt"
    path.write_text("".join(f"piece{i} 1\n" for i in range(996)))
    return path


def save(path, state, key="weights", **options):
    torch.save({key: state}, path, **options)
    return path


def test_conversion_gives_the_same_model_and_its_vocabulary(fixtures, dictionary, tmp_path):
    summary = convert_official(fixtures / "official_base.pt", dictionary, None, NUM_HEADS, tmp_path / "model")
    official = load_official(fixtures / "official_base.pt", 1000, NUM_HEADS)
    model = load_model(tmp_path / "model")
    assert model.config == official.config
    for name, weight in model.named_parameters():
        assert torch.equal(weight, official.weights[name]), name
    assert Vocabulary.load(tmp_path / "model").num_tokens == 1000
    assert summary["parameters"].startswith(f"{model.num_parameters():,} ")


def test_token_and_position_rows_stay_in_their_order(state, fixtures):
    """Row i of the table is token i; the two unused rows before the first position go."""
    official = load_official(fixtures / "official_base.pt", 1000, NUM_HEADS)
    assert torch.equal(official.weights["token_embedding.weight"][:1000], state["tgt_embedding.embed_tokens.weight"])
    positions = state["src_embedding.embed_positions.weight"]
    assert torch.equal(official.weights["encoder.embedding.positions"], positions[2:])
    assert official.config.max_positions == len(positions) - 2 == 64


def test_surplus_rows_are_left_out_and_said(fixtures):
    official = load_official(fixtures / "official_base.pt", 990, NUM_HEADS)
    assert official.config.vocabulary_size == 990
    assert not official.weights["token_embedding.weight"][990:].any()
    assert official.remarks == ("10 embedding rows behind the dictionary's 990 left out",)


def test_a_file_without_remarks_has_nothing_left_over(fixtures):
    assert load_official(fixtures / "official_base.pt", 1000, NUM_HEADS).remarks == ()


def test_of_two_tables_the_decoders_wins_and_it_is_said(state, tmp_path):
    state["src_embedding.embed_tokens.weight"] = state["tgt_embedding.embed_tokens.weight"] + 1
    official = load_official(save(tmp_path / "m.pt", state), 1000, NUM_HEADS)
    assert torch.equal(official.weights["token_embedding.weight"][:1000], state["tgt_embedding.embed_tokens.weight"])
    assert official.remarks == ("encoder.embed_tokens.weight differs from the decoder's table, which is the one taken",)


def test_a_file_of_fairseqs_trainer_with_its_arguments(state, tmp_path, fixtures):
    released = load_official(fixtures / "official_base.pt", 1000, NUM_HEADS)
    names = {"src_embedding.": "encoder.", "tgt_embedding.": "decoder.", ".emb_layer_norm.": ".layernorm_embedding."}
    names |= {".ffn_1.fc1.": ".fc3.", ".ffn_1.fc2.": ".fc4.", ".ffn_2.": ".", ".ffn.": "."}
    renamed = {}
    for name, tensor in state.items():
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    renamed["decoder.version"] = torch.tensor([3.0])
    path = tmp_path / "finetuned.pt"
    torch.save({"args": argparse.Namespace(arch="deltalm_base"), "model": renamed}, path)
    finetuned = load_official(path, 1000, NUM_HEADS)
    assert finetuned.config == released.config
    assert all(torch.equal(finetuned.weights[name], released.weights[name]) for name in released.weights)


def test_files_of_old_torch_are_read(state, tmp_path):
    path = save(tmp_path / "old.pt", state, _use_new_zipfile_serialization=False)
    assert load_official(path, 1000, NUM_HEADS).config.vocabulary_size == 1000


def test_sixteen_bit_weights_become_float32(state, tmp_path):
    path = save(tmp_path / "half.pt", {name: tensor.half() for name, tensor in state.items()})
    weights = load_official(path, 1000, NUM_HEADS).weights
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


class Payload:
    """What a malicious file would run when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_code_in_a_file_is_not_run(state, tmp_path):
    witness = tmp_path / "was-run"
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({"weights": state, "args": Payload(f"touch {witness}")}, tmp_path / "evil.pt", **options)
        with pytest.raises(DataError, match=r"evil\.pt cannot be read .* not loaded for safety"):
            load_official(tmp_path / "evil.pt", 1000, NUM_HEADS)
    assert not witness.exists()


def missing(state):
    del state["decoder.layers.1.ffn_1.fc2.weight"]


def foreign(state):
    state["decoder.layers.0.adapter.weight"] = torch.zeros(2)


def misshapen(state):
    state["encoder.layers.0.self_attn.out_proj.weight"] = torch.zeros(3, 3)


FAULTS = [
    (missing, DataError, r"has no tensor decoder\.layers\.1\.fc4\.weight"),
    (foreign, DataError, r"no place for: decoder\.layers\.0\.adapter\.weight"),
    (misshapen, DataError, r"encoder\.layers\.0\.self_attention\.output\.weight has shape \(3, 3\), .* \(64, 64\)"),
    (dict.clear, DataError, r"has no tensor decoder\.embed_tokens\.weight"),
]


@pytest.mark.parametrize(("damage", "error", "message"), FAULTS)
def test_wrong_tensors_are_named_and_nothing_is_written(damage, error, message, state, dictionary, tmp_path):
    damage(state)
    path, out = save(tmp_path / "m.pt", state), tmp_path / "out"
    with pytest.raises(error, match=message) as caught:
        convert_official(path, dictionary, None, NUM_HEADS, out)
    assert str(path) in str(caught.value)
    assert {entry.name for entry in tmp_path.iterdir()} == {"m.pt", "dict.txt"}


@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "message"),
    [
        (1001, NUM_HEADS, "1,000 embedding rows, its dictionary 1,001 tokens: wrong dict.txt?"),
        (1000, None, "64 wide, which no official size is: give the number of heads (--heads)"),
        (1000, 5, "num_heads=5 does not divide hidden_size=64"),
    ],
)
def test_wrong_dictionary_and_heads(num_tokens, num_heads, message, fixtures):
    with pytest.raises(InputError, match=re.escape(message)):
        load_official(fixtures / "official_base.pt", num_tokens, num_heads)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.999])
@pytest.mark.parametrize("zip_form", [True, False])
def test_truncated_files(kept, zip_form, state, tmp_path):
    path = save(tmp_path / "m.pt", state, _use_new_zipfile_serialization=zip_form)
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(DataError, match=r"m\.pt cannot be read as a PyTorch checkpoint"):
        load_official(path, 1000, NUM_HEADS)


def test_other_files(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_official(tmp_path / "none.pt", None)
    (tmp_path / "text.pt").write_text("not a checkpoint\n" * 10)
    with pytest.raises(DataError, match="cannot be read as a PyTorch checkpoint"):
        load_official(tmp_path / "text.pt", None)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(DataError, match="holds neither 'weights'"):
        load_official(tmp_path / "list.pt", None)


def test_an_existing_directory_is_left_alone(fixtures, dictionary, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        convert_official(fixtures / "official_base.pt", dictionary, None, NUM_HEADS, out)
    assert [entry.name for entry in out.iterdir()] == ["precious"]

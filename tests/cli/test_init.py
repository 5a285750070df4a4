"""`deltalm init` as a user calls it: what it prints, and that its JSON is complete."""

import json

import torch
from command import deltalm, make_world, must
from transformers import XLMRobertaConfig, XLMRobertaModel

from deltalm_ds.checkpoints.directory import load_model


def test_an_official_file(fixtures, tmp_path):
    (tmp_path / "dict.txt").write_text("".join(f"piece{number} 1\n" for number in range(990)))
    arguments = "init", "--from", fixtures / "official_base.pt", "--dict", tmp_path / "dict.txt", "--heads", 4
    text = must(*arguments, "--out", tmp_path / "model")
    model = load_model(tmp_path / "model")
    assert f"{model.num_parameters():,} parameters" in text
    assert "official_base.pt (deltalm-released)" in text
    assert "token rows kept: 994" in text and "token rows unnamed, dropped: 6" in text
    assert "positions: 64 from 64 of encoder.embedding.positions, 64 of decoder.embedding.positions" in text
    lines = [line.split() for line in text.splitlines()]
    ours, theirs = "decoder.blocks.{0-1}.ffn_1.input.{weight,bias}", "decoder.layers.{0-1}.ffn_1.fc1.{weight,bias}"
    assert [ours, theirs] in lines
    report = json.loads(must(*arguments, "--out", tmp_path / "again", "--json"))
    assert report["tensors"].keys() == dict(model.named_parameters()).keys()
    assert report["tensors"]["decoder.blocks.1.ffn_1.input.bias"] == "decoder.layers.1.ffn_1.fc1.bias"


def test_a_model_of_ours_with_other_languages(tmp_path, monkeypatch):
    make_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    languages = "--languages", "de,en,tr", "--sentinels", 2
    must("vocab", "import", "--spm", "vocabulary/spm.model", *languages, "--out", "more")
    layers = "--layer-map", "0 0", "--positions", 60, "--fit-positions", "extend"
    text = must("init", "--from", "model", "--vocab", "more", *layers, "--copy-row", "__tr__=__de__", "--out", "new")
    assert "token rows copied: 1 (__tr__)" in text and "token rows new: 0" in text
    old, new = load_model("model"), load_model("new")
    assert new.config.num_decoder_blocks == 2 * old.config.num_decoder_blocks
    assert new.config.max_positions == 60
    outcome = deltalm("init", "--from", "model", "--out", "new")
    assert outcome.code == 2 and "new exists already" in outcome.stderr


def test_an_xlm_r_with_padded_rows(tmp_path):
    """28 rows (4 special, 23 pieces, <mask>) made 32 by transformers: the four that mean nothing are counted."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    theirs = XLMRobertaModel(XLMRobertaConfig(vocab_size=28, type_vocab_size=1, max_position_embeddings=12, **sizes))
    theirs.resize_token_embeddings(pad_to_multiple_of=16)
    theirs.save_pretrained(tmp_path / "xlmr")
    (tmp_path / "xlmr" / "dict.txt").write_text("".join(f"piece{number} 1\n" for number in range(23)))
    text = must("init", "--from", tmp_path / "xlmr", "--out", tmp_path / "model")
    assert "token rows kept: 27" in text and "token rows dropped: 1 (<mask>)" in text
    assert "token rows unnamed, dropped: 4" in text
    assert load_model(tmp_path / "model").config.vocabulary_size == 27


def test_a_weight_that_is_no_number_is_named(fixtures, tmp_path):
    content = torch.load(fixtures / "official_base.pt", weights_only=True)
    content["weights"]["encoder.layers.1.ffn.fc1.bias"][2] = float("nan")
    torch.save(content, tmp_path / "nan.pt")
    (tmp_path / "dict.txt").write_text("".join(f"piece{number} 1\n" for number in range(996)))
    outcome = deltalm("init", "--from", tmp_path / "nan.pt", "--heads", 4, "--out", tmp_path / "model")
    assert outcome.code == 3 and "encoder.layers.1.ffn.fc1.bias" in outcome.stderr and "NaN" in outcome.stderr
    assert not (tmp_path / "model").exists()

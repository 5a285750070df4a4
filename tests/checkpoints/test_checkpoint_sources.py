"""What a checkpoint is told to be, and every way in which one is not what it must be."""

import json
import re
from pathlib import Path

import pytest
import torch
from foreign import (
    fairseq_arguments,
    fairseq_xlm_roberta,
    finetuned_names,
    hugging_face_names,
    write_dictionary,
    xlm_roberta,
)
from safetensors.torch import load_file, save_file

from deltalm_ds.checkpoints.directory import save_model
from deltalm_ds.checkpoints.sources import SOURCES, recognise
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.vocabulary import Vocabulary


@pytest.fixture
def released(fixtures):
    """The tensors of a released DeltaLM file, by its own names."""
    return dict(torch.load(fixtures / "official_base.pt", weights_only=True)["weights"])


@pytest.fixture
def hugging_face(tmp_path):
    """A directory of XLM-R as transformers writes it."""
    xlm_roberta().save_pretrained(tmp_path / "xlmr")
    return tmp_path / "xlmr"


def save(path, state, key="weights", **more):
    torch.save({key: state} | more, path)
    return path


def write_ours(path, decoder="interleaved"):
    path.parent.mkdir(exist_ok=True)
    vocabulary = Vocabulary.from_dict(write_dictionary(path.parent), num_sentinels=0)
    config = DeltaLMConfig.preset("tiny", vocabulary_size=vocabulary.num_tokens, decoder=decoder)
    save_model(path, config, DeltaLM(config).state_dict(), vocabulary, {})
    return path


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- kinds ---


def test_kinds(released, hugging_face, tmp_path):
    def kind(path):
        """What it is; no other kind may take it for its own, whatever their order."""
        source = recognise(path)
        assert [row.kind for row in SOURCES if row.recognises(source.tensors)] == [source.kind]
        return source.kind

    assert kind(save(tmp_path / "a", released)) == "deltalm-released"
    assert kind(save(tmp_path / "b", finetuned_names(released), "model")) == "deltalm-finetuned"
    assert kind(hugging_face) == kind(hugging_face / "model.safetensors") == "xlm-roberta-huggingface"
    assert kind(save(tmp_path / "c", fairseq_xlm_roberta(xlm_roberta(), fused=True), "model")) == "xlm-roberta-fairseq"
    port = tmp_path / "port"
    port.mkdir()
    torch.save(hugging_face_names(released), port / "pytorch_model.bin")
    (port / "config.json").write_text(json.dumps({"model_type": "deltalm", "encoder_attention_heads": 4}))
    assert kind(port) == "deltalm-huggingface"
    assert recognise(port).sizes.num_heads == 4
    ours = write_ours(tmp_path / "models" / "ours")
    assert kind(ours) == kind(ours / "model.safetensors") == "deltalm"
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    newest = write_ours(tmp_path / "models" / "late").rename(checkpoints / "step_00000002")
    (newest / "state.json").write_text('{"step": 2}')
    assert recognise(tmp_path / "run").path == newest


def test_the_guide_lists_every_kind():
    guide = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| ([^|]+?) \|", guide, re.MULTILINE)
    assert rows == [(row.kind, row.title) for row in SOURCES]


def test_a_directory_of_ours_in_parts(tmp_path):
    """As a run's checkpoint is written by its ranks; a part that has only other tensors of ours is told too."""
    ours = write_ours(tmp_path / "models" / "ours")
    weights = load_file(ours / "model.safetensors")
    (ours / "model.safetensors").unlink()
    names = sorted(weights)
    for part in range(3):
        save_file({name: weights[name] for name in names[part::3]}, ours / f"model-{part + 1:05d}-of-00003.safetensors")
    source = recognise(ours)
    assert source.kind == "deltalm" and source.tensors.keys() == weights.keys()
    assert recognise(ours / "model-00002-of-00003.safetensors").tensors.keys() == weights.keys()


@pytest.mark.parametrize("decoder", ["interleaved", "vanilla"])
def test_our_own_directory(decoder, tmp_path):
    source = recognise(write_ours(tmp_path / "models" / "ours", decoder))
    assert source.sizes.decoder == decoder
    assert source.sizes.config() == DeltaLMConfig.preset("tiny", vocabulary_size=source.sizes.num_rows, decoder=decoder)


def test_sizes_of_a_released_file(released, tmp_path):
    sizes = recognise(save(tmp_path / "m", released)).sizes
    assert (sizes.num_rows, sizes.hidden_size, sizes.ffn_size) == (1000, 64, 128)
    assert (sizes.num_encoder_layers, sizes.num_decoder_blocks, sizes.max_positions) == (4, 2, 64)
    assert sizes.num_heads is None and sizes.embedding_norm
    for name in [name for name in released if "emb_layer_norm" in name]:
        del released[name]
    assert not recognise(save(tmp_path / "large", released)).sizes.embedding_norm


def test_heads_of_official_widths(tmp_path):
    """768 wide is 12 heads, as base has it; 1,024 wide 16, as large."""
    for width, heads in ((768, 12), (1024, 16)):
        state = fairseq_xlm_roberta(xlm_roberta(2), fused=True)
        zeros = {16: width, 48: 3 * width}
        wide = {name: torch.zeros([zeros.get(size, size) for size in tensor.shape]) for name, tensor in state.items()}
        assert recognise(save(tmp_path / "m", wide, "model")).sizes.num_heads == heads


def test_the_vocabulary_beside_a_source(hugging_face):
    assert recognise(hugging_face).dict_file is None
    dictionary = write_dictionary(hugging_face)
    (hugging_face / "sentencepiece.bpe.model").write_bytes(b"")
    source = recognise(hugging_face / "model.safetensors")
    assert (source.dict_file, source.spm_file) == (dictionary, hugging_face / "sentencepiece.bpe.model")


# --- the token table and its copies ---


def test_copies_of_the_token_table(released, tmp_path):
    state = finetuned_names(released)
    source = recognise(save(tmp_path / "m", state, "model"))
    assert source.copies == ("encoder.embed_tokens.weight", "decoder.output_projection.weight")
    assert source.differing_copies == () and source.unused == ("encoder.version", "decoder.version")
    state["encoder.embed_tokens.weight"] = state["encoder.embed_tokens.weight"] + 1
    source = recognise(save(tmp_path / "m", state, "model"))
    assert source.differing_copies == ("encoder.embed_tokens.weight",)
    assert torch.equal(source.read("token_embedding.weight"), state["decoder.embed_tokens.weight"])


def test_an_output_layer_of_its_own_is_refused(released, tmp_path):
    state = finetuned_names(released)
    state["decoder.output_projection.weight"] += 1
    with pytest.raises(DataError, match=r"an output layer of its own \(decoder.output_projection.weight\)"):
        recognise(save(tmp_path / "m", state, "model"))
    port = hugging_face_names(released)
    port["final_logits_bias"][0, 3] = 1
    torch.save(port, tmp_path / "port")
    with pytest.raises(DataError, match=r"an output layer of its own \(final_logits_bias\)"):
        recognise(tmp_path / "port")


# --- tensors that are not what they must be ---


def missing(state):
    del state["decoder.layers.1.ffn_1.fc2.weight"]


def missing_norm_bias(state):
    del state["src_embedding.emb_layer_norm.bias"]


def missing_table(state):
    del state["tgt_embedding.embed_tokens.weight"], state["src_embedding.embed_tokens.weight"]


def missing_layer(state):
    for name in [name for name in state if name.startswith("encoder.layers.2.")]:
        del state[name]


def foreign(state):
    state["decoder.layers.0.adapter.weight"] = torch.zeros(2)


def misshapen(state):
    state["encoder.layers.0.self_attn.out_proj.weight"] = torch.zeros(3, 3)


def misshapen_part(state):
    state["encoder.layers.0.self_attn.k_proj.bias"] = torch.zeros(65)


def misshapen_positions(state):
    state["tgt_embedding.embed_positions.weight"] = torch.zeros(66, 63)


def few_positions(state):
    state["tgt_embedding.embed_positions.weight"] = torch.zeros(2, 64)


def flat_table(state):
    state["tgt_embedding.embed_tokens.weight"] = torch.zeros(64)


def integers(state):
    state["encoder.layers.3.ffn.fc1.bias"] = torch.zeros(128, dtype=torch.int64)


def twice(state):
    state["encoder.embed_tokens.weight"] = torch.zeros(2)


FAULTS = [
    (missing, "has no tensor for decoder.layers.1.fc4.weight"),
    (missing_norm_bias, "has no tensor for encoder.layernorm_embedding.bias"),
    (missing_table, "has no table of token embeddings"),
    (missing_layer, "has no tensor for encoder.layers.2.self_attn_layer_norm.weight"),
    (foreign, "no place for: decoder.layers.0.adapter.weight"),
    (misshapen, "encoder.layers.0.self_attn.out_proj.weight in {} has shape (3, 3), its model needs (64, 64)"),
    (misshapen_part, "encoder.layers.0.self_attn.k_proj.bias in {} has shape (65,), its model needs (64,)"),
    (misshapen_positions, "tgt_embedding.embed_positions.weight in {} has shape (66, 63), its model needs (66, 64)"),
    (few_positions, "tgt_embedding.embed_positions.weight in {} has shape (2, 64)"),
    (flat_table, "tgt_embedding.embed_tokens.weight in {} has shape (64,): a matrix"),
    (integers, "encoder.layers.3.ffn.fc1.bias in {} holds int64, not floating-point numbers"),
    (twice, "the same tensor twice: src_embedding.embed_tokens.weight and encoder.embed_tokens.weight"),
]


@pytest.mark.parametrize(("damage", "message"), FAULTS)
def test_wrong_tensors_are_named(damage, message, released, tmp_path):
    damage(released)
    path = save(tmp_path / "m.pt", released)
    with pytest.raises(DataError, match=re.escape(message.format(path))) as caught:
        recognise(path)
    assert str(path) in str(caught.value)


def test_two_token_types_are_not_xlm_r(hugging_face):
    """BERT's weights have the same names."""
    path = hugging_face / "model.safetensors"
    state = load_file(path)
    state["roberta.embeddings.token_type_embeddings.weight"] = torch.zeros(2, 16)
    save_file(state, path)
    with pytest.raises(DataError, match=r"token_type_embeddings\.weight .* shape \(2, 16\), its model needs \(1, 16\)"):
        recognise(hugging_face)


# --- what it states of itself ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 5}, "states num_hidden_layers=5, but has 4: is it complete?"),
        ({"vocab_size": 101}, "states vocab_size=101, but has 100"),
        ({"hidden_size": 32}, "states hidden_size=32, but has 16"),
        ({"num_attention_heads": 3}, "states 3 heads, which do not divide its width 16"),
        ({"num_attention_heads": "2"}, "states num_attention_heads='2' where"),
        ({"model_type": "bert"}, "has model_type='bert', DeltaLM only 'xlm-roberta'"),
        ({"hidden_act": "relu"}, "has hidden_act='relu'"),
        ({"position_embedding_type": "relative_key"}, "has position_embedding_type='relative_key'"),
        ({"layer_norm_eps": "small"}, "states layer_norm_eps='small'"),
    ],
)
def test_settings_that_contradict_the_tensors(changes, message, hugging_face):
    edit_json(hugging_face / "config.json", **changes)
    with pytest.raises(DataError, match=re.escape(message)):
        recognise(hugging_face)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_attention_heads": 8, "encoder_attention_heads": 4}, "decoder_attention_heads=8, but has 4"),
        ({"encoder_normalize_before": True}, "has encoder_normalize_before=True"),
        ({"no_scale_embedding": False}, "has no_scale_embedding=False"),
        ({"activation_fn": "relu"}, "has activation_fn='relu'"),
        ({"decoder_layers": 6}, "states decoder_layers=6, but has 2"),
    ],
)
def test_arguments_of_fairseq_that_contradict_the_tensors(changes, message, released, tmp_path):
    arguments = {"encoder_embed_dim": 64, "encoder_ffn_embed_dim": 128, "encoder_attention_heads": 4}
    cfg = {"model": fairseq_arguments(**(arguments | changes))}
    path = save(tmp_path / "m", finetuned_names(released), "model", args=None, cfg=cfg)
    with pytest.raises(DataError, match=re.escape(message)):
        recognise(path)


@pytest.mark.parametrize("arguments", ["text", 3, [1]])
def test_arguments_in_no_form_of_fairseqs(arguments, released, tmp_path):
    with pytest.raises(DataError, match="not fairseq's"):
        recognise(save(tmp_path / "m", finetuned_names(released), "model", args=arguments))


# --- other things ---


def test_nothing_to_take(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        recognise(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no file that could be the model"):
        recognise(tmp_path / "empty")
    for name in ("a.pt", "b.pt"):
        torch.save({}, tmp_path / "empty" / name)
    with pytest.raises(InputError, match="has 2 files that could be the model"):
        recognise(tmp_path / "empty")
    with pytest.raises(DataError, match="no checkpoint of a known kind: it holds nothing"):
        recognise(tmp_path / "empty" / "a.pt")
    torch.save({"bert.embeddings.word_embeddings.weight": torch.zeros(2, 2)}, tmp_path / "bert.bin")
    with pytest.raises(DataError, match="no checkpoint of a known kind: it holds tensors such as bert"):
        recognise(tmp_path / "bert.bin")


def test_a_damaged_model_directory_of_ours(tmp_path):
    ours = write_ours(tmp_path / "models" / "ours")
    weights = load_file(ours / "model.safetensors")
    for damage, message in (
        (lambda: weights.pop("decoder.blocks.0.ffn_1.norm.bias"), "decoder.blocks.0.ffn_1.norm.bias is missing"),
        (lambda: weights.update({"decoder.blocks.0.ffn_1.norm.bias": torch.zeros(3)}), "has shape (3,)"),
        (lambda: weights.update({"extra": torch.zeros(3)}), "extra is unknown"),
    ):
        damage()
        save_file(weights, ours / "model.safetensors")
        with pytest.raises(DataError, match=re.escape(message)):
            recognise(ours)
        if "shape" in message:
            weights["decoder.blocks.0.ffn_1.norm.bias"] = torch.zeros(128)
    (ours / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json does not exist"):
        recognise(ours)

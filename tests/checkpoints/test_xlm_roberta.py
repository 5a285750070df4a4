"""XLM-R into DeltaLM against transformers' XLMRobertaModel, from every form in which its weights are kept."""

import pytest
import torch
from foreign import NUM_HEADS, NUM_POSITIONS, NUM_ROWS, fairseq_arguments, fairseq_xlm_roberta, xlm_roberta

from deltalm_ds.checkpoints.initialise import unchanged_initialisation
from deltalm_ds.checkpoints.sources import recognise
from deltalm_ds.model.packing import PackedSequences

TOLERANCE = 1e-5
PAD = 1


def save_hugging_face(model, path):
    model.save_pretrained(path)


def save_sharded(model, path):
    model.save_pretrained(path, max_shard_size="8KB")
    assert len(list(path.glob("*.safetensors"))) > 2


def save_without_head(model, path):
    model.roberta.save_pretrained(path)


def save_bin(model, path):
    model.config.save_pretrained(path)
    state = model.state_dict() | {"roberta.embeddings.position_ids": torch.arange(9)[None]}
    state |= {"roberta.pooler.dense.weight": torch.zeros(2, 2), "roberta.pooler.dense.bias": torch.zeros(2)}
    torch.save(state, path / "pytorch_model.bin")


def save_fairseq(model, path, fused=True, prefix="decoder.sentence_encoder.", norm="emb_layer_norm", key="args"):
    path.mkdir()
    arguments = fairseq_arguments(encoder_layers=model.config.num_hidden_layers)
    content = {"args": arguments} if key == "args" else {"args": None, "cfg": {"model": arguments}}
    torch.save({"model": fairseq_xlm_roberta(model, fused, prefix, norm), **content}, path / "model.pt")


def save_fairseq_split(model, path):
    save_fairseq(model, path, fused=False)


def save_fairseq_new(model, path):
    save_fairseq(model, path, False, "encoder.sentence_encoder.", "layernorm_embedding", "cfg")


def save_fairseq_bare(model, path):
    save_fairseq(model, path, prefix="")


FORMS = [
    save_hugging_face,
    save_sharded,
    save_without_head,
    save_bin,
    save_fairseq,
    save_fairseq_split,
    save_fairseq_new,
    save_fairseq_bare,
]


def texts(num_texts, seed, longest=NUM_POSITIONS):
    """Ids that are not padding; the first text has the greatest length."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [longest, *torch.randint(1, longest + 1, (num_texts - 1,), generator=generator).tolist()]
    return [torch.randint(2, NUM_ROWS, (length,), generator=generator).tolist() for length in lengths]


def padded(sequences):
    longest = max(map(len, sequences))
    ids = torch.tensor([[*sequence, *[PAD] * (longest - len(sequence))] for sequence in sequences])
    return ids, (ids != PAD).long()


@torch.no_grad()
def assert_same_encoder(theirs, ours, sequences):
    """On packed sequences, on the padded batch that transformers sees, and on each one alone."""
    ids, mask = padded(sequences)
    expected = theirs.roberta(ids, attention_mask=mask).last_hidden_state
    found = ours.encode(PackedSequences.from_sequences(sequences))
    assert (found - expected[mask.bool()]).abs().max() <= TOLERANCE
    alone = theirs.roberta(torch.tensor([sequences[0]])).last_hidden_state[0]
    assert (ours.encode(PackedSequences.from_sequences(sequences[:1])) - alone).abs().max() <= TOLERANCE


@pytest.mark.parametrize("save", FORMS)
@pytest.mark.parametrize("num_layers", [2, 5])
def test_the_encoder_gives_the_same_output(save, num_layers, tmp_path):
    theirs = xlm_roberta(num_layers, seed=num_layers)
    save(theirs, tmp_path / "xlmr")
    source = recognise(tmp_path / "xlmr")
    assert source.kind == f"xlm-roberta-{'fairseq' if 'fairseq' in save.__name__ else 'huggingface'}"
    assert source.sizes.num_heads == NUM_HEADS and source.sizes.max_positions == NUM_POSITIONS
    ours = unchanged_initialisation(source).model()
    assert ours.config.num_decoder_blocks == num_layers // 2
    for seed in range(3):
        assert_same_encoder(theirs, ours, texts(4, seed))


@pytest.mark.parametrize("num_layers", [2, 12, 24])
def test_depths_of_the_real_models(num_layers, tmp_path):
    theirs = xlm_roberta(num_layers)
    save_hugging_face(theirs, tmp_path / "xlmr")
    assert_same_encoder(theirs, unchanged_initialisation(recognise(tmp_path / "xlmr")).model(), texts(3, seed=0))


@pytest.mark.parametrize("save", [save_bin, save_fairseq, save_fairseq_split])
def test_decoder_sublayers_are_those_of_the_encoder_bit_for_bit(save, tmp_path):
    """Block i: self-attention and first FFN of layer 2i, cross-attention and second FFN of layer 2i + 1."""
    theirs = xlm_roberta(6)
    save(theirs, tmp_path / "xlmr")
    ours = unchanged_initialisation(recognise(tmp_path / "xlmr")).model()
    for i, block in enumerate(ours.decoder.blocks):
        first, second = theirs.roberta.encoder.layer[2 * i], theirs.roberta.encoder.layer[2 * i + 1]
        attention, cross = first.attention.self, second.attention.self
        for kind in ("weight", "bias"):
            pairs = [
                (block.self_attention.query_key_value, [attention.query, attention.key, attention.value]),
                (block.self_attention.output, [first.attention.output.dense]),
                (block.self_attention.norm, [first.attention.output.LayerNorm]),
                (block.ffn_1.input, [first.intermediate.dense]),
                (block.ffn_1.output, [first.output.dense]),
                (block.ffn_1.norm, [first.output.LayerNorm]),
                (block.cross_attention.query, [cross.query]),
                (block.cross_attention.key_value, [cross.key, cross.value]),
                (block.cross_attention.output, [second.attention.output.dense]),
                (block.cross_attention.norm, [second.attention.output.LayerNorm]),
                (block.ffn_2.input, [second.intermediate.dense]),
                (block.ffn_2.output, [second.output.dense]),
                (block.ffn_2.norm, [second.output.LayerNorm]),
            ]
            for module, parts in pairs:
                assert torch.equal(getattr(module, kind), torch.cat([getattr(part, kind) for part in parts]))
    embeddings = theirs.roberta.embeddings
    positions = embeddings.position_embeddings.weight[2:] + embeddings.token_type_embeddings.weight[0]
    assert torch.equal(ours.decoder.embedding.positions, positions)
    assert torch.equal(ours.encoder.embedding.positions, positions)
    assert torch.equal(ours.decoder.embedding.norm.bias, embeddings.LayerNorm.bias)
    assert torch.equal(ours.token_embedding.weight[:NUM_ROWS], embeddings.word_embeddings.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype, tmp_path):
    theirs = xlm_roberta(2).to(dtype)
    theirs.save_pretrained(tmp_path / "xlmr")
    ours = unchanged_initialisation(recognise(tmp_path / "xlmr")).model()
    weight = theirs.roberta.encoder.layer[1].intermediate.dense.weight
    assert ours.encoder.layers[1].ffn.input.weight.dtype == torch.float32
    assert torch.equal(ours.encoder.layers[1].ffn.input.weight, weight.float())


def test_the_epsilon_of_the_norms_is_taken_over(tmp_path):
    theirs = xlm_roberta(2)
    for module in theirs.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-2
    theirs.config.layer_norm_eps = 1e-2
    theirs.save_pretrained(tmp_path / "xlmr")
    assert_same_encoder(theirs, unchanged_initialisation(recognise(tmp_path / "xlmr")).model(), texts(3, seed=0))

"""Small foreign checkpoints with random weights: XLM-R as transformers writes it, and under fairseq's names.

The names are spelled out here once more, so that the tests do not read them from what they test.
"""

import argparse

import torch
from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

from deltalm_ds.checkpoints.initialise import initialise, own_vocabulary
from deltalm_ds.checkpoints.layer_map import make_layer_map
from deltalm_ds.checkpoints.sources import recognise

NUM_PIECES = 95
NUM_ROWS = 4 + NUM_PIECES + 1  # the last is <mask>
WIDTH, FFN_SIZE, NUM_HEADS, NUM_POSITIONS = 16, 40, 2, 30


def write_dictionary(directory, num_pieces=NUM_PIECES):
    path = directory / "dict.txt"
    path.write_text("".join(f"piece{i} 1\n" for i in range(num_pieces)))
    return path


def xlm_roberta(num_layers=4, seed=0):
    """Every weight random, also biases, norms, the pad rows and the token type."""
    config = XLMRobertaConfig(
        vocab_size=NUM_ROWS,
        hidden_size=WIDTH,
        intermediate_size=FFN_SIZE,
        num_attention_heads=NUM_HEADS,
        num_hidden_layers=num_layers,
        max_position_embeddings=NUM_POSITIONS + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    model = XLMRobertaForMaskedLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.2 * noise if "LayerNorm.weight" in name else 0.3 * noise
    return model


def fairseq_xlm_roberta(model, fused, prefix="decoder.sentence_encoder.", norm="emb_layer_norm"):
    """The tensors of a transformers model under fairseq's names; fairseq has no token types, so add them before."""
    state, theirs = {}, {key.removeprefix("roberta."): tensor for key, tensor in model.state_dict().items()}
    state[f"{prefix}embed_tokens.weight"] = theirs["embeddings.word_embeddings.weight"]
    token_type = theirs["embeddings.token_type_embeddings.weight"]
    state[f"{prefix}embed_positions.weight"] = theirs["embeddings.position_embeddings.weight"] + token_type
    for kind in ("weight", "bias"):
        state[f"{prefix}{norm}.{kind}"] = theirs[f"embeddings.LayerNorm.{kind}"]
        for i in range(model.config.num_hidden_layers):
            layer, ours = f"encoder.layer.{i}", f"{prefix}layers.{i}"
            query, key, value = (theirs[f"{layer}.attention.self.{x}.{kind}"] for x in ("query", "key", "value"))
            if fused:
                state[f"{ours}.self_attn.in_proj_{kind}"] = torch.cat([query, key, value])
            else:
                for letter, tensor in (("q", query), ("k", key), ("v", value)):
                    state[f"{ours}.self_attn.{letter}_proj.{kind}"] = tensor
            state[f"{ours}.self_attn.out_proj.{kind}"] = theirs[f"{layer}.attention.output.dense.{kind}"]
            state[f"{ours}.self_attn_layer_norm.{kind}"] = theirs[f"{layer}.attention.output.LayerNorm.{kind}"]
            state[f"{ours}.fc1.{kind}"] = theirs[f"{layer}.intermediate.dense.{kind}"]
            state[f"{ours}.fc2.{kind}"] = theirs[f"{layer}.output.dense.{kind}"]
            state[f"{ours}.final_layer_norm.{kind}"] = theirs[f"{layer}.output.LayerNorm.{kind}"]
    stack = prefix.split(".")[0] if "." in prefix else "decoder"
    for name in ("weight", "bias", "dense.weight", "dense.bias", "layer_norm.weight", "layer_norm.bias"):
        state[f"{stack}.lm_head.{name}"] = torch.zeros(3)
    return state


def fairseq_arguments(**changes):
    return argparse.Namespace(
        **{
            "arch": "roberta_base",
            "encoder_embed_dim": WIDTH,
            "encoder_ffn_embed_dim": FFN_SIZE,
            "encoder_attention_heads": NUM_HEADS,
            "encoder_layers": 4,
            "activation_fn": "gelu",
            **changes,
        }
    )


def finetuned_names(released):
    """The tensors of a released DeltaLM file under the names that fairseq's trainer saves."""
    pairs = {
        "src_embedding.": "encoder.",
        "tgt_embedding.": "decoder.",
        ".emb_layer_norm.": ".layernorm_embedding.",
        ".ffn_1.fc1.": ".fc3.",
        ".ffn_1.fc2.": ".fc4.",
        ".ffn_2.": ".",
        ".ffn.": ".",
    }
    state = {}
    for name, tensor in released.items():
        for old, new in pairs.items():
            name = name.replace(old, new)
        state[name] = tensor
    state["encoder.version"] = state["decoder.version"] = torch.tensor([3.0])
    state["decoder.output_projection.weight"] = state["decoder.embed_tokens.weight"].clone()
    return state


def hugging_face_names(released):
    """The tensors of a released DeltaLM file as the ports on the Hugging Face hub name them."""
    state = finetuned_names(released)
    for name in ("encoder.version", "decoder.version", "decoder.output_projection.weight"):
        del state[name]
    state = {f"model.{name}": tensor for name, tensor in state.items()}
    state["model.shared.weight"] = state["lm_head.weight"] = state["model.decoder.embed_tokens.weight"]
    state["final_logits_bias"] = torch.zeros(1, len(state["model.shared.weight"]))
    return state


def init(path, out, num_heads=None, vocabulary=None, layers=(), dictionary=None, **options):
    """A model directory from a checkpoint; returns the report."""
    source = recognise(path)
    layer_map = make_layer_map(source.sizes, *layers)
    own = own_vocabulary(source, dictionary)
    return initialise(source, out, layer_map, own, vocabulary, num_heads=num_heads, **options)

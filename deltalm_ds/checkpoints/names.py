"""The names of tensors in foreign checkpoints: every format's into fairseq's, and fairseq's into ours [FACTS §1].

Each format is one list of replacements that gives fairseq's names of a DeltaLM (of its encoder, for XLM-R); one
function says of which fairseq tensors each of ours consists. So what a tensor means stands in one place only.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

from deltalm_ds.model.config import DeltaLMConfig

Kind = Literal[
    "xlm-roberta-huggingface",
    "xlm-roberta-fairseq",
    "deltalm-released",
    "deltalm-finetuned",
    "deltalm-huggingface",
    "deltalm",
]

POSITION_OFFSET = 2  # fairseq's and XLM-R's first real token reads row 2
TOKEN_TYPES = "encoder.embed_token_types.weight"  # Hugging Face's XLM-R adds its row 0 at every position
OUTPUT_PROJECTION = "decoder.output_projection.weight"
OUTPUT_BIAS = "final_logits_bias"
# The token table under all its names: the first that is there is taken, the others must be copies of it.
TABLES = ("decoder.embed_tokens.weight", "shared.weight", "encoder.embed_tokens.weight", OUTPUT_PROJECTION)
OUR_MARK = "encoder.layers.0.self_attention.query_key_value.weight"

# our sub-layers of an encoder layer and an interleaved block, with fairseq's names of the attention or FFN and norm
_Sublayers = dict[str, tuple[str | tuple[str, str], str]]
_ENCODER_SUBLAYERS: _Sublayers = {
    "self_attention": ("self_attn", "self_attn_layer_norm"),
    "ffn": (("fc1", "fc2"), "final_layer_norm"),
}
_BLOCK_SUBLAYERS: _Sublayers = {
    "self_attention": ("self_attn", "self_attn_layer_norm"),
    "ffn_1": (("fc3", "fc4"), "ffn_layer_norm"),
    "cross_attention": ("encoder_attn", "encoder_attn_layer_norm"),
    "ffn_2": (("fc1", "fc2"), "final_layer_norm"),
}
_VANILLA_SUBLAYERS = _ENCODER_SUBLAYERS | {"cross_attention": _BLOCK_SUBLAYERS["cross_attention"]}


@dataclass(frozen=True)
class NamingScheme:
    """A foreign format.

    Attributes:
        renames: patterns and replacements that make fairseq's names, applied in turn.
        unused: patterns of fairseq names that DeltaLM has no use for.
        sizes: settings (of config.json or fairseq's arguments) and which of our sizes each one states.
        required: settings that change the computation, with the only value DeltaLM has.
    """

    kind: Kind
    renames: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()
    sizes: dict[str, str] = field(default_factory=dict)
    required: dict[str, Any] = field(default_factory=dict)

    @property
    def has_decoder(self) -> bool:
        """Whether the checkpoint is an encoder-decoder."""
        return self.kind.startswith("deltalm")

    def fairseq_name(self, name: str) -> str:
        """The fairseq name of a tensor of this format."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name

    def is_unused(self, fairseq_name: str) -> bool:
        """Whether the tensor is on the list of those that DeltaLM has no use for."""
        return any(re.match(pattern, fairseq_name) for pattern in self.unused)


_FAIRSEQ_ENCODER_SIZES = {
    "encoder_embed_dim": "hidden_size",
    "encoder_ffn_embed_dim": "ffn_size",
    "encoder_attention_heads": "num_heads",
    "encoder_layers": "num_encoder_layers",
}
_HUGGING_FACE_XLM_ROBERTA = NamingScheme(
    "xlm-roberta-huggingface",
    renames=(
        (r"^roberta\.", ""),
        (r"^embeddings\.word_embeddings\.", "encoder.embed_tokens."),
        (r"^embeddings\.position_embeddings\.", "encoder.embed_positions."),
        (r"^embeddings\.token_type_embeddings\.", "encoder.embed_token_types."),
        (r"^embeddings\.LayerNorm\.", "encoder.layernorm_embedding."),
        (r"^encoder\.layer\.", "encoder.layers."),
        (r"\.attention\.self\.query\.", ".self_attn.q_proj."),
        (r"\.attention\.self\.key\.", ".self_attn.k_proj."),
        (r"\.attention\.self\.value\.", ".self_attn.v_proj."),
        (r"\.attention\.output\.dense\.", ".self_attn.out_proj."),
        (r"\.attention\.output\.LayerNorm\.", ".self_attn_layer_norm."),
        (r"\.intermediate\.dense\.", ".fc1."),
        (r"\.output\.dense\.", ".fc2."),
        (r"\.output\.LayerNorm\.", ".final_layer_norm."),
    ),
    unused=(r"lm_head\.", r"pooler\.", r"embeddings\.position_ids$", r"embeddings\.token_type_ids$"),
    sizes={
        "hidden_size": "hidden_size",
        "intermediate_size": "ffn_size",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_encoder_layers",
        "vocab_size": "num_rows",
    },
    required={"model_type": "xlm-roberta", "hidden_act": "gelu", "position_embedding_type": "absolute"},
)
_FAIRSEQ_XLM_ROBERTA = NamingScheme(
    "xlm-roberta-fairseq",
    renames=(
        (r"^(encoder|decoder)\.(lm_head\.|version$)", r"\2"),
        (r"^((encoder|decoder)\.)?(sentence_encoder\.)?(?=embed_|layers\.|emb_layer_norm\.|layernorm_)", "encoder."),
        (r"^(encoder|decoder)\.sentence_encoder\.version$", "version"),
        (r"\.emb_layer_norm\.", ".layernorm_embedding."),
    ),
    unused=(r"lm_head\.", r"version$"),
    sizes=_FAIRSEQ_ENCODER_SIZES,
    required={"activation_fn": "gelu"},
)
_RELEASED = NamingScheme(
    "deltalm-released",
    renames=(
        (r"^src_embedding\.", "encoder."),
        (r"^tgt_embedding\.", "decoder."),
        (r"\.emb_layer_norm\.", ".layernorm_embedding."),
        (r"\.ffn_1\.fc1\.", ".fc3."),
        (r"\.ffn_1\.fc2\.", ".fc4."),
        (r"\.ffn_2\.(fc[12])\.", r".\1."),
        (r"\.ffn\.(fc[12])\.", r".\1."),
    ),
)
_FINETUNED = NamingScheme(
    "deltalm-finetuned",
    unused=(r"(encoder|decoder)\.version$",),
    sizes=_FAIRSEQ_ENCODER_SIZES
    | {
        "decoder_embed_dim": "hidden_size",
        "decoder_ffn_embed_dim": "ffn_size",
        "decoder_attention_heads": "num_heads",
        "decoder_layers": "num_decoder_blocks",
    },
    required={
        "activation_fn": "gelu",
        "encoder_normalize_before": False,
        "decoder_normalize_before": False,
        "no_scale_embedding": True,
    },
)
_HUGGING_FACE_DELTALM = NamingScheme(
    "deltalm-huggingface",
    renames=((r"^model\.", ""), (r"^lm_head\.weight$", OUTPUT_PROJECTION)),
    unused=(rf"{OUTPUT_BIAS}$",),  # must be zero, which is checked
    sizes={
        "d_model": "hidden_size",
        "encoder_ffn_dim": "ffn_size",
        "decoder_ffn_dim": "ffn_size",
        "encoder_attention_heads": "num_heads",
        "decoder_attention_heads": "num_heads",
        "encoder_layers": "num_encoder_layers",
        "decoder_layers": "num_decoder_blocks",
        "vocab_size": "num_rows",
    },
    required={"activation_function": "gelu", "scale_embedding": False, "normalize_before": False},
)


def format_of(names: Collection[str], section: str) -> NamingScheme | None:
    """The format of a checkpoint by the names of its tensors and the key of the file that they stand under."""

    def has(pattern: str) -> bool:
        return any(re.search(pattern, name) for name in names)

    if OUR_MARK in names:
        return NamingScheme("deltalm")
    if has(r"^(src|tgt)_embedding\."):
        return _RELEASED
    if has(r"\.encoder_attn\.") and has(r"\.fc3\."):
        return _FINETUNED if section else _HUGGING_FACE_DELTALM
    if has(r"^(roberta\.)?embeddings\.word_embeddings\.weight$"):
        return _HUGGING_FACE_XLM_ROBERTA
    if has(r"(^|\.)embed_tokens\.weight$") and has(r"(^|\.)layers\.0\.fc1\.") and not has(r"encoder_attn"):
        return _FAIRSEQ_XLM_ROBERTA
    return None


def fairseq_names(config: DeltaLMConfig) -> dict[str, list[str]]:
    """For each of our parameters the fairseq tensors that make it, to be laid one below the other."""
    names = {"token_embedding.weight": ["decoder.embed_tokens.weight"]}
    block_sublayers = _BLOCK_SUBLAYERS if config.decoder == "interleaved" else _VANILLA_SUBLAYERS
    stacks = (
        ("encoder", "layers", config.num_encoder_layers, _ENCODER_SUBLAYERS),
        ("decoder", "blocks", config.num_decoder_blocks, block_sublayers),
    )
    for stack, layers, num_layers, sublayers in stacks:
        names[f"{stack}.embedding.positions"] = [f"{stack}.embed_positions.weight"]
        for kind in ("weight", "bias"):
            if config.embedding_norm:
                names[f"{stack}.embedding.norm.{kind}"] = [f"{stack}.layernorm_embedding.{kind}"]
            for i in range(num_layers):
                for ours, (theirs, norm) in sublayers.items():
                    sublayer = _sublayer_names(ours, theirs, norm, kind)
                    for name, parts in sublayer.items():
                        names[f"{stack}.{layers}.{i}.{name}"] = [f"{stack}.layers.{i}.{part}" for part in parts]
    return names


def _sublayer_names(ours: str, theirs: str | tuple[str, str], norm: str, kind: str) -> dict[str, list[str]]:
    names = {f"{ours}.norm.{kind}": [f"{norm}.{kind}"]}
    if isinstance(theirs, tuple):
        return names | {
            f"{ours}.input.{kind}": [f"{theirs[0]}.{kind}"],
            f"{ours}.output.{kind}": [f"{theirs[1]}.{kind}"],
        }
    q, k, v, out = (f"{theirs}.{projection}_proj.{kind}" for projection in ("q", "k", "v", "out"))
    names[f"{ours}.output.{kind}"] = [out]
    if ours == "self_attention":
        return names | {f"{ours}.query_key_value.{kind}": [q, k, v]}
    return names | {f"{ours}.query.{kind}": [q], f"{ours}.key_value.{kind}": [k, v]}

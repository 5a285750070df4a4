"""fairseq's names of the tensors of a DeltaLM, through which all foreign names are read [facts: checkpoint files].

Each kind of foreign checkpoint states how its names become fairseq's (see `naming_scheme`); one function here says of
which fairseq tensors each of ours consists. So what a tensor means stands in one place only.
"""

from deltalm_ds.model.config import DeltaLMConfig

POSITION_OFFSET = 2  # fairseq's and XLM-R's first real token reads row 2
TOKEN_TYPES = "encoder.embed_token_types.weight"  # Hugging Face's XLM-R adds its row 0 at every position
OUTPUT_PROJECTION = "decoder.output_projection.weight"
OUTPUT_BIAS = "final_logits_bias"
# The token table under all its names: the first that is there is taken, the others must be copies of it.
TABLES = ("decoder.embed_tokens.weight", "shared.weight", "encoder.embed_tokens.weight", OUTPUT_PROJECTION)

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

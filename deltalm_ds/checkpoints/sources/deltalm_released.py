"""The pre-trained DeltaLM as Microsoft released it: tensors alone, with no word about itself."""

from deltalm_ds.checkpoints.naming_scheme import NamingScheme, has_name

DELTALM_RELEASED = NamingScheme(
    kind="deltalm-released",
    title="DeltaLM as Microsoft released it, fairseq",
    recognises=lambda tensors: has_name(tensors, r"^(src|tgt)_embedding\."),
    has_decoder=True,
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

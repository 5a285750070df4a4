"""The ports of DeltaLM on Hugging Face's hub, with `DeltalmForConditionalGeneration`."""

from deltalm_ds.checkpoints.names import OUTPUT_BIAS, OUTPUT_PROJECTION
from deltalm_ds.checkpoints.naming_scheme import NamingScheme, has_name
from deltalm_ds.checkpoints.tensor_files import TensorFile


def _is_port(tensors: TensorFile) -> bool:
    blocks = r"^(model\.)?decoder\.layers\.\d+\."
    return (
        not tensors.section and has_name(tensors, rf"{blocks}encoder_attn\.") and has_name(tensors, rf"{blocks}fc3\.")
    )


DELTALM_HUGGINGFACE = NamingScheme(
    kind="deltalm-huggingface",
    title="DeltaLM, Hugging Face port",
    recognises=_is_port,
    has_decoder=True,
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

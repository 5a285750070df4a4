"""A DeltaLM as fairseq's trainer saves it: its tensors have fairseq's names."""

from deltalm_ds.checkpoints.naming_scheme import NamingScheme, has_name
from deltalm_ds.checkpoints.sizes import FAIRSEQ_ENCODER_SIZES
from deltalm_ds.checkpoints.tensor_files import TensorFile


def _is_fairseqs_file(tensors: TensorFile) -> bool:
    blocks = r"^decoder\.layers\.\d+\."
    return (
        bool(tensors.section) and has_name(tensors, rf"{blocks}encoder_attn\.") and has_name(tensors, rf"{blocks}fc3\.")
    )


DELTALM_FINETUNED = NamingScheme(
    kind="deltalm-finetuned",
    title="DeltaLM as fairseq's trainer saves it",
    recognises=_is_fairseqs_file,
    has_decoder=True,
    unused=(r"(encoder|decoder)\.version$",),
    sizes=FAIRSEQ_ENCODER_SIZES
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

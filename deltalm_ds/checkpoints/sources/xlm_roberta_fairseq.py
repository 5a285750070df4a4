"""XLM-R and InfoXLM as fairseq's trainer writes them, with fused or split projections."""

from deltalm_ds.checkpoints.naming_scheme import NamingScheme, has_name
from deltalm_ds.checkpoints.sizes import FAIRSEQ_ENCODER_SIZES
from deltalm_ds.checkpoints.tensor_files import TensorFile


def _is_encoder(tensors: TensorFile) -> bool:
    stack = r"^((encoder|decoder)\.)?(sentence_encoder\.)?"
    has_stack = has_name(tensors, rf"{stack}embed_tokens\.weight$") and has_name(tensors, rf"{stack}layers\.0\.fc1\.")
    return has_stack and not has_name(tensors, r"encoder_attn")


XLM_ROBERTA_FAIRSEQ = NamingScheme(
    kind="xlm-roberta-fairseq",
    title="XLM-R or InfoXLM, fairseq",
    recognises=_is_encoder,
    has_decoder=False,
    renames=(
        (r"^(encoder|decoder)\.(lm_head\.|version$)", r"\2"),
        (r"^((encoder|decoder)\.)?(sentence_encoder\.)?(?=embed_|layers\.|emb_layer_norm\.|layernorm_)", "encoder."),
        (r"^(encoder|decoder)\.sentence_encoder\.version$", "version"),
        (r"\.emb_layer_norm\.", ".layernorm_embedding."),
    ),
    unused=(r"lm_head\.", r"version$"),
    sizes=FAIRSEQ_ENCODER_SIZES,
    required={"activation_fn": "gelu"},
    last_token="<mask>",
)

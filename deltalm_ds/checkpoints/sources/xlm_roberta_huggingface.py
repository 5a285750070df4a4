"""XLM-R and InfoXLM as Hugging Face's transformers writes them."""

from deltalm_ds.checkpoints.naming_scheme import NamingScheme, has_name

XLM_ROBERTA_HUGGINGFACE = NamingScheme(
    kind="xlm-roberta-huggingface",
    title="XLM-R or InfoXLM, Hugging Face",
    recognises=lambda tensors: has_name(tensors, r"^(roberta\.)?embeddings\.word_embeddings\.weight$"),
    has_decoder=False,
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
    last_token="<mask>",
)

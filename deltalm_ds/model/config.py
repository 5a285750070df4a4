"""The shape of a model, validated; presets of the paper's sizes."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deltalm_ds.token_ids import ROW_MULTIPLE


class DeltaLMConfig(BaseModel):
    """A DeltaLM encoder-decoder [Ma+21 §2]; `vanilla` is the paper's ablation with one FFN a block."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    vocabulary_size: int = Field(gt=4, description="Token ids in use, without padding rows.")
    hidden_size: int = Field(gt=0, description="Width of embeddings and layers; a multiple of num_heads.")
    ffn_size: int = Field(gt=0, description="Width inside the feed-forward networks.")
    num_heads: int = Field(gt=0, description="Heads of every attention.")
    num_encoder_layers: int = Field(gt=0, description="Layers of the encoder.")
    num_decoder_blocks: int = Field(gt=0, description="Blocks of the decoder.")
    decoder: Literal["interleaved", "vanilla"] = Field(
        "interleaved",
        description="Form of a decoder block: self-attention, FFN, cross-attention, FFN (interleaved), or without the "
        "first FFN (vanilla).",
    )
    max_positions: int = Field(512, gt=0, description="Longest source or target in tokens, `</s>` included.")
    embedding_norm: bool = Field(True, description="LayerNorm over token + position embedding (base, not large).")
    layer_norm_eps: float = Field(1e-5, gt=0, description="Added to the variance in every LayerNorm.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share dropped of embeddings and sub-layer outputs.")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="Share dropped of attention probabilities.")
    activation_dropout: float = Field(0.0, ge=0, lt=1, description="Share dropped inside the FFN, after GELU.")
    activation_checkpointing: bool = Field(False, description="Compute layers again in the backward to save memory.")

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> "DeltaLMConfig":
        if self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} does not divide hidden_size={self.hidden_size}")
        return self

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def num_embedding_rows(self) -> int:
        """The vocabulary with its padding rows."""
        return -(-self.vocabulary_size // ROW_MULTIPLE) * ROW_MULTIPLE

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "DeltaLMConfig":
        """A named size with some fields replaced; `vocabulary_size` has no default."""
        if name not in PRESETS:
            raise ValueError(f"there is no preset {name!r}: the presets are {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 128,
        "ffn_size": 512,
        "num_heads": 4,
        "num_encoder_layers": 2,
        "num_decoder_blocks": 1,
        "max_positions": 256,
    },
    "base": {
        "hidden_size": 768,
        "ffn_size": 3072,
        "num_heads": 12,
        "num_encoder_layers": 12,
        "num_decoder_blocks": 6,
    },
    "large": {
        "hidden_size": 1024,
        "ffn_size": 4096,
        "num_heads": 16,
        "num_encoder_layers": 24,
        "num_decoder_blocks": 12,
        "embedding_norm": False,
    },
}

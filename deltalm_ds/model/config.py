"""The shape of a model, validated; presets of the paper's sizes."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deltalm_ds.token_ids import ROW_MULTIPLE


class DeltaLMConfig(BaseModel):
    """A DeltaLM encoder-decoder [Ma+21 §2]; `vanilla` is the paper's ablation with one FFN a block."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vocabulary_size: int = Field(gt=4, description="token ids in use, without padding rows")
    hidden_size: int = Field(gt=0)
    ffn_size: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    num_encoder_layers: int = Field(gt=0)
    num_decoder_blocks: int = Field(gt=0)
    decoder: Literal["interleaved", "vanilla"] = "interleaved"
    max_positions: int = Field(512, gt=0, description="longest source or target, `</s>` included")
    embedding_norm: bool = Field(True, description="LayerNorm over token + position embedding (base, not large)")
    layer_norm_eps: float = 1e-5
    dropout: float = Field(0.1, ge=0, lt=1, description="on embeddings and sub-layer outputs")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="on attention probabilities")
    activation_dropout: float = Field(0.0, ge=0, lt=1, description="inside the FFN, after GELU")
    activation_checkpointing: bool = Field(False, description="recompute layers in the backward to save memory")

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

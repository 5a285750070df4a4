"""DeltaLM for Hugging Face transformers (4.56 or later, or 5.12 or later): `trust_remote_code=True` loads this file.

Legend: B sequences, S source tokens, T target tokens, P tokens decoded before, H heads, D head dim, M model dim.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, gelu, scaled_dot_product_attention
from transformers import DynamicCache, EncoderDecoderCache, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput

from .configuration_deltalm import DeltaLMConfig  # noqa: TID252 - transformers copies both files to its own package

POSITION_OFFSET = 2  # the first position's row, as in fairseq and BART
IGNORED_LABEL = -100


class DeltaLMAttention(nn.Module):
    """Multi-head attention."""

    def __init__(self, config: DeltaLMConfig, num_heads: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(config.d_model, config.d_model) for _ in range(4)
        )
        self.num_heads, self.dropout = num_heads, config.attention_dropout

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [B, S, M] -> two of [B, H, S, D]."""
        return self._split(self.k_proj(x)), self._split(self.v_proj(x))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """x: [B, T, M]; keys, values: [B, H, S, D]; mask: bool, broadcast to [B, H, T, S], true where seen."""
        dropout_p = self.dropout if self.training else 0.0
        out = scaled_dot_product_attention(self._split(self.q_proj(x)), keys, values, mask, dropout_p)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class DeltaLMLayer(nn.Module):
    """What encoder and decoder layers share: post-LN sub-layers."""

    def __init__(self, config: DeltaLMConfig) -> None:
        super().__init__()
        self.dropout, self.activation_dropout = config.dropout, config.activation_dropout

    def add(self, residual: Tensor, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """norm(residual + dropout(x)): the end of every sub-layer."""
        return norm(residual + dropout(x, self.dropout, self.training))

    def feed_forward(self, x: Tensor, inner: nn.Linear, outer: nn.Linear, norm: nn.LayerNorm) -> Tensor:
        """A whole FFN sub-layer."""
        return self.add(x, outer(dropout(gelu(inner(x)), self.activation_dropout, self.training)), norm)


class DeltaLMEncoderLayer(DeltaLMLayer):
    """Self-attention, FFN."""

    def __init__(self, config: DeltaLMConfig) -> None:
        super().__init__(config)
        self.self_attn = DeltaLMAttention(config, config.encoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model, config.layer_norm_eps)
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model, config.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x: [B, S, M] -> [B, S, M]."""
        attended = self.self_attn(x, *self.self_attn.keys_and_values(x), mask)
        x = self.add(x, attended, self.self_attn_layer_norm)
        return self.feed_forward(x, self.fc1, self.fc2, self.final_layer_norm)


class DeltaLMDecoderLayer(DeltaLMLayer):
    """Self-attention, FFN (fc3, fc4; interleaved decoders only), cross-attention, FFN (fc1, fc2)."""

    def __init__(self, config: DeltaLMConfig, layer_idx: int) -> None:
        super().__init__(config)
        self.layer_idx, self.is_interleaved = layer_idx, config.interleaved_decoder
        self.self_attn = DeltaLMAttention(config, config.decoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model, config.layer_norm_eps)
        if self.is_interleaved:
            self.fc3 = nn.Linear(config.d_model, config.decoder_ffn_dim)
            self.fc4 = nn.Linear(config.decoder_ffn_dim, config.d_model)
            self.ffn_layer_norm = nn.LayerNorm(config.d_model, config.layer_norm_eps)
        self.encoder_attn = DeltaLMAttention(config, config.decoder_attention_heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model, config.layer_norm_eps)
        self.fc1 = nn.Linear(config.d_model, config.decoder_ffn_dim)
        self.fc2 = nn.Linear(config.decoder_ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model, config.layer_norm_eps)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        encoder_states: Tensor,
        encoder_mask: Tensor | None,
        cache: EncoderDecoderCache | None,
    ) -> Tensor:
        """x: [B, T, M]; encoder_states: [B, S, M] -> [B, T, M]; the cache grows by T."""
        keys, values = self.self_attn.keys_and_values(x)
        if cache is not None:
            keys, values = cache.self_attention_cache.update(keys, values, self.layer_idx)
        x = self.add(x, self.self_attn(x, keys, values, mask), self.self_attn_layer_norm)
        if self.is_interleaved:
            x = self.feed_forward(x, self.fc3, self.fc4, self.ffn_layer_norm)
        attended = self.encoder_attn(x, *self._source_keys_and_values(encoder_states, cache), encoder_mask)
        x = self.add(x, attended, self.encoder_attn_layer_norm)
        return self.feed_forward(x, self.fc1, self.fc2, self.final_layer_norm)

    def _source_keys_and_values(
        self, encoder_states: Tensor, cache: EncoderDecoderCache | None
    ) -> tuple[Tensor, Tensor]:
        """Computed once a sentence, where there is a cache."""
        if cache is None:
            return self.encoder_attn.keys_and_values(encoder_states)
        if not cache.is_updated.get(self.layer_idx):
            cache.is_updated[self.layer_idx] = True
            keys, values = self.encoder_attn.keys_and_values(encoder_states)
            return cache.cross_attention_cache.update(keys, values, self.layer_idx)
        layer: Any = cache.cross_attention_cache.layers[self.layer_idx]
        return layer.keys, layer.values


class DeltaLMPreTrainedModel(PreTrainedModel):
    """What all DeltaLM models share."""

    config_class = DeltaLMConfig
    base_model_prefix = "model"
    _no_split_modules = ["DeltaLMEncoderLayer", "DeltaLMDecoderLayer"]  # noqa: RUF012 - as in the base class


class DeltaLMStack(DeltaLMPreTrainedModel):
    """Position embedding and embedding norm, of the encoder and of the decoder."""

    def __init__(self, config: DeltaLMConfig) -> None:
        super().__init__(config)
        self.embed_positions = nn.Embedding(config.max_position_embeddings + POSITION_OFFSET, config.d_model)
        self.layernorm_embedding = (
            nn.LayerNorm(config.d_model, config.layer_norm_eps) if config.embedding_norm else nn.Identity()
        )

    def embed(self, token_embeddings: Tensor, num_before: int = 0) -> Tensor:
        """token_embeddings: [B, T, M], the first at position `num_before` -> [B, T, M]."""
        length, longest = token_embeddings.shape[1], self.config.max_position_embeddings
        if num_before + length > longest:
            raise ValueError(f"A sequence has {num_before + length} tokens; the model takes at most {longest}.")
        positions = torch.arange(num_before, num_before + length, device=token_embeddings.device) + POSITION_OFFSET
        x = self.layernorm_embedding(token_embeddings + self.embed_positions(positions))
        return dropout(x, self.config.dropout, self.training)


class DeltaLMEncoder(DeltaLMStack):
    """Embeddings and layers over the source. The token embedding serves the target and the output too."""

    def __init__(self, config: DeltaLMConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.layers = nn.ModuleList(DeltaLMEncoderLayer(config) for _ in range(config.encoder_layers))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """input_ids: [B, S]; attention_mask: [B, S], 0 at padding, which comes last."""
        x = self.embed(self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds)
        mask = _key_mask(attention_mask)
        for layer in self.layers:
            x = layer(x, mask)
        return BaseModelOutput(last_hidden_state=x)


class DeltaLMDecoder(DeltaLMStack):
    """Position embedding and layers over the target."""

    def __init__(self, config: DeltaLMConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(DeltaLMDecoderLayer(config, index) for index in range(config.decoder_layers))
        self.post_init()

    def forward(
        self,
        token_embeddings: Tensor,
        encoder_states: Tensor,
        encoder_mask: Tensor | None,
        target_mask: Tensor | None,
        cache: EncoderDecoderCache | None,
    ) -> Tensor:
        """token_embeddings: [B, T, M]; encoder_states: [B, S, M] -> [B, T, M].

        Masks: [B, S] and [B, P + T], 0 at padding.
        """
        length, num_before = token_embeddings.shape[1], cache.get_seq_length() if cache is not None else 0
        x = self.embed(token_embeddings, num_before)
        mask = torch.ones(length, num_before + length, dtype=torch.bool, device=x.device).tril(num_before)
        if target_mask is not None:
            mask = mask & target_mask[:, None, None].bool()
        for layer in self.layers:
            x = layer(x, mask, encoder_states, _key_mask(encoder_mask), cache)
        return x


class DeltaLMModel(DeltaLMPreTrainedModel):
    """Encoder and decoder without the output layer."""

    def __init__(self, config: DeltaLMConfig) -> None:
        super().__init__(config)
        self.encoder, self.decoder = DeltaLMEncoder(config), DeltaLMDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding."""
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the token embedding."""
        self.encoder.embed_tokens = value

    def get_encoder(self, *args: Any, **kwargs: Any) -> DeltaLMEncoder:
        """The encoder, which `generate` runs once."""
        return self.encoder

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Seq2SeqModelOutput:
        """input_ids: [B, S], decoder_input_ids: [B, T], those before it being in the cache; masks 0 at padding."""
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask)
        if past_key_values is None and use_cache:
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        encoder_states = encoder_outputs[0]
        hidden = self.decoder(
            self.encoder.embed_tokens(decoder_input_ids),
            encoder_states,
            attention_mask,
            decoder_attention_mask,
            past_key_values,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=hidden, past_key_values=past_key_values, encoder_last_hidden_state=encoder_states
        )


class DeltaLMForConditionalGeneration(DeltaLMPreTrainedModel, GenerationMixin):
    """DeltaLM with its output layer, which is the token embedding."""

    def __init__(self, config: DeltaLMConfig) -> None:
        super().__init__(config)
        self.model = DeltaLMModel(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the token embedding, and the output layer with it."""
        self.model.set_input_embeddings(value)

    def get_encoder(self, *args: Any, **kwargs: Any) -> DeltaLMEncoder:
        """The encoder, which `generate` runs once."""
        return self.model.encoder

    def _get_logits_processor(self, generation_config: Any, **kwargs: Any) -> LogitsProcessorList:  # type: ignore[override]
        """What `generate` applies at every step, and last of all fairseq's rule at the maximum length."""
        parent: Any = super()
        processors = parent._get_logits_processor(generation_config=generation_config, **kwargs)
        return LogitsProcessorList([*processors, EndAt(generation_config.max_length, self.config.eos_token_id)])

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """`</s>` and the labels without the last; ignored labels become padding. labels: [B, T] -> [B, T]."""
        start = labels.new_full((len(labels), 1), self.config.decoder_start_token_id)
        shifted = torch.cat([start, labels[:, :-1]], dim=1)
        return shifted.masked_fill(shifted == IGNORED_LABEL, self.config.pad_token_id)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Logits [B, T, V], and the mean loss where labels [B, T] are given (-100 is ignored); see `DeltaLMModel`."""
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        outputs = self.model(
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs,
            past_key_values,
            use_cache,
        )
        logits = nn.functional.linear(outputs.last_hidden_state, self.get_input_embeddings().weight)
        loss = None
        if labels is not None:
            loss = cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL)
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
        )


class EndAt(LogitsProcessor):
    """Nothing but `</s>` may be the token at the maximum length, with its own log p.

    It would be 0 by `forced_eos_token_id`, and an output without end would win too often.
    """

    def __init__(self, max_length: int, eos_token_id: int) -> None:
        self.max_length, self.eos_token_id = max_length, eos_token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids: [N, tokens so far], the first `</s>` included; scores: [N, V]."""
        if input_ids.shape[1] < self.max_length - 1:
            return scores
        ended = torch.full_like(scores, float("-inf"))
        ended[:, self.eos_token_id] = scores[:, self.eos_token_id]
        return ended


def _key_mask(attention_mask: Tensor | None) -> Tensor | None:
    """[B, S], 0 at padding -> [B, 1, 1, S] bool, true where seen."""
    return None if attention_mask is None else attention_mask[:, None, None].bool()

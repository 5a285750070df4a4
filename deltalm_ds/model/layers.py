"""The layers of encoder and decoder, post-LN as in the official code [facts: layers].

Legend: T target or query tokens, S source tokens, B sequences, H heads, D head dim, M model dim, F ffn dim.
"""

import torch
from torch import Tensor, nn

from deltalm_ds.kernels.attention import cross_attention, self_attention
from deltalm_ds.kernels.dropout import dropout
from deltalm_ds.kernels.feed_forward import feed_forward
from deltalm_ds.kernels.layer_norm import dropout_add_layer_norm, layer_norm
from deltalm_ds.kernels.linear import linear
from deltalm_ds.model.cache import AttentionCache, CrossAttentionCache
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.packing import PackedSequences


class Linear(nn.Linear):
    """PyTorch's layer, multiplied by the fastest library of a CPU where one was chosen."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [T, K] -> [T, N]."""
        return linear(x, self.weight, self.bias)


class PostNorm(nn.Module):
    """norm(residual + dropout(x)): the end of every sub-layer."""

    def __init__(self, config: DeltaLMConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(config.hidden_size))
        self.eps, self.dropout = config.layer_norm_eps, config.dropout

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """x, residual: [T, M] -> [T, M]."""
        dropout_p = self.dropout if self.training else 0.0
        return dropout_add_layer_norm(x, residual, self.weight, self.bias, self.eps, dropout_p)


class Embedding(nn.Module):
    """Token + learned position embedding, normed (base only), dropped out. The token table is the model's."""

    def __init__(self, config: DeltaLMConfig) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(config.max_positions, config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps) if config.embedding_norm else None
        self.dropout = config.dropout

    def forward(self, token_rows: Tensor, positions: Tensor) -> Tensor:
        """token_rows: [T, M], of the token table; positions: [T] int64 -> [T, M]."""
        x = token_rows + nn.functional.embedding(positions, self.positions)
        if self.norm is not None:
            x = layer_norm(x, self.norm.weight, self.norm.bias, self.norm.eps)
        return dropout(x, self.dropout if self.training else 0.0)


class SelfAttention(nn.Module):
    """Self-attention sub-layer; query, key and value are one matrix product."""

    def __init__(self, config: DeltaLMConfig, causal: bool) -> None:
        super().__init__()
        self.query_key_value = Linear(config.hidden_size, 3 * config.hidden_size)
        self.output = Linear(config.hidden_size, config.hidden_size)
        self.norm = PostNorm(config)
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.causal, self.dropout = causal, config.attention_dropout

    def forward(self, x: Tensor, sequences: PackedSequences) -> Tensor:
        """x: [T, M] -> [T, M]."""
        qkv = self.query_key_value(x).unflatten(1, (3, self.num_heads, self.head_dim))  # [T, 3, H, D]
        dropout_p = self.dropout if self.training else 0.0
        out = self_attention(qkv, sequences.cu_seqlens, sequences.max_seqlen, self.causal, dropout_p)
        return self.norm(self.output(out.flatten(1)), x)

    def step(self, x: Tensor, cache: AttentionCache) -> Tensor:
        """One decoding step. x: [N, M], one new token a row -> [N, M]; the cache takes its keys and values."""
        projected = self.query_key_value(x).unflatten(1, (3, self.num_heads, self.head_dim))  # [N, 3, H, D]
        return self.norm(self.output(cache.attend(projected)), x)


class CrossAttention(nn.Module):
    """Cross-attention sub-layer; keys and values of the source are one matrix product."""

    def __init__(self, config: DeltaLMConfig) -> None:
        super().__init__()
        self.query = Linear(config.hidden_size, config.hidden_size)
        self.key_value = Linear(config.hidden_size, 2 * config.hidden_size)
        self.output = Linear(config.hidden_size, config.hidden_size)
        self.norm = PostNorm(config)
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.dropout = config.attention_dropout

    def _keys_and_values(self, encoder_states: Tensor) -> Tensor:
        return self.key_value(encoder_states).unflatten(1, (2, self.num_heads, self.head_dim))  # [S, 2, H, D]

    def forward(self, x: Tensor, target: PackedSequences, encoder_states: Tensor, source: PackedSequences) -> Tensor:
        """One sub-layer.

        Args:
            x: [T, M].
            target: the sequences that x is of.
            encoder_states: [S, M], the encoder's output.
            source: the sequences that it is of; as many as in `target`.

        Returns:
            [T, M].
        """
        q = self.query(x).unflatten(1, (self.num_heads, self.head_dim))
        kv = self._keys_and_values(encoder_states)
        dropout_p = self.dropout if self.training else 0.0
        out = cross_attention(
            q, kv, target.cu_seqlens, source.cu_seqlens, target.max_seqlen, source.max_seqlen, dropout_p
        )
        return self.norm(self.output(out.flatten(1)), x)

    def weights(
        self, x: Tensor, target: PackedSequences, encoder_states: Tensor, source: PackedSequences
    ) -> list[Tensor]:
        """Of every pair [T', S'] float32, the mean of the heads' attention; arguments: see `forward`.

        Pair by pair, so that what is found does not depend on what a pair is beside.
        """
        q = self.query(x).unflatten(1, (self.num_heads, self.head_dim)).transpose(0, 1)  # [H, T, D]
        k = self._keys_and_values(encoder_states)[:, 0].transpose(0, 1)  # [H, S, D]
        pairs = zip(q.split(target.lengths.tolist(), 1), k.split(source.lengths.tolist(), 1), strict=True)
        scores = ((of_target @ of_source.mT).float() * self.head_dim**-0.5 for of_target, of_source in pairs)
        return [of_pair.softmax(2).mean(0) for of_pair in scores]

    def cache(self, encoder_states: Tensor, source: PackedSequences) -> CrossAttentionCache:
        """Keys and values of every source sentence, computed once. encoder_states: [S, M]."""
        k, v = self._keys_and_values(encoder_states).unbind(1)
        return CrossAttentionCache.from_packed(k, v, source)

    def step(self, x: Tensor, cache: AttentionCache) -> Tensor:
        """One decoding step. x: [N, M] with N = B · beam, the beams of a sentence side by side -> [N, M]."""
        q = self.query(x).unflatten(1, (self.num_heads, self.head_dim))
        return self.norm(self.output(cache.attend(q)), x)


class FeedForward(nn.Module):
    """Position-wise FFN sub-layer with exact GELU."""

    def __init__(self, config: DeltaLMConfig) -> None:
        super().__init__()
        self.input = Linear(config.hidden_size, config.ffn_size)
        self.output = Linear(config.ffn_size, config.hidden_size)
        self.norm = PostNorm(config)
        self.dropout = config.activation_dropout

    def forward(self, x: Tensor) -> Tensor:
        """x: [T, M] -> [T, M]."""
        dropout_p = self.dropout if self.training else 0.0
        hidden = feed_forward(x, self.input.weight, self.input.bias, self.output.weight, self.output.bias, dropout_p)
        return self.norm(hidden, x)


class EncoderLayer(nn.Module):
    """Self-attention, FFN."""

    def __init__(self, config: DeltaLMConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config, causal=False)
        self.ffn = FeedForward(config)

    def forward(self, x: Tensor, sequences: PackedSequences) -> Tensor:
        """x: [S, M] -> [S, M]."""
        return self.ffn(self.self_attention(x, sequences))


class InterleavedBlock(nn.Module):
    """Self-attention, FFN, cross-attention, FFN: two encoder layers' worth of weights [Ma+21 §2.2]."""

    def __init__(self, config: DeltaLMConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config, causal=True)
        self.ffn_1 = FeedForward(config)
        self.cross_attention = CrossAttention(config)
        self.ffn_2 = FeedForward(config)

    def forward(self, x: Tensor, target: PackedSequences, encoder_states: Tensor, source: PackedSequences) -> Tensor:
        """x: [T, M] -> [T, M]; arguments: see `CrossAttention.forward`."""
        x = self.before_cross_attention(x, target)
        return self.ffn_2(self.cross_attention(x, target, encoder_states, source))

    def before_cross_attention(self, x: Tensor, target: PackedSequences) -> Tensor:
        """The part of `forward` that does not look at the source. x: [T, M] -> [T, M]."""
        return self.ffn_1(self.self_attention(x, target))

    def step(self, x: Tensor, self_cache: AttentionCache, cross_cache: AttentionCache) -> Tensor:
        """One decoding step. x: [N, M] -> [N, M]."""
        x = self.ffn_1(self.self_attention.step(x, self_cache))
        return self.ffn_2(self.cross_attention.step(x, cross_cache))


class VanillaBlock(nn.Module):
    """Self-attention, cross-attention, FFN: the ordinary Transformer decoder layer."""

    def __init__(self, config: DeltaLMConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config, causal=True)
        self.cross_attention = CrossAttention(config)
        self.ffn = FeedForward(config)

    def forward(self, x: Tensor, target: PackedSequences, encoder_states: Tensor, source: PackedSequences) -> Tensor:
        """x: [T, M] -> [T, M]; arguments: see `CrossAttention.forward`."""
        x = self.before_cross_attention(x, target)
        return self.ffn(self.cross_attention(x, target, encoder_states, source))

    def before_cross_attention(self, x: Tensor, target: PackedSequences) -> Tensor:
        """The part of `forward` that does not look at the source. x: [T, M] -> [T, M]."""
        return self.self_attention(x, target)

    def step(self, x: Tensor, self_cache: AttentionCache, cross_cache: AttentionCache) -> Tensor:
        """One decoding step. x: [N, M] -> [N, M]."""
        x = self.self_attention.step(x, self_cache)
        return self.ffn(self.cross_attention.step(x, cross_cache))

"""DeltaLM: a pretrained encoder with an interleaved decoder [Ma+21 §2], on packed sequences.

Legend: T target tokens, S source tokens, B sequences, N = B · beam rows, M model dim, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deltalm_ds.kernels.embedding import shared_embedding
from deltalm_ds.kernels.linear import linear
from deltalm_ds.kernels.linear_cross_entropy import CrossEntropy, linear_cross_entropy
from deltalm_ds.model.cache import DecoderCache, JointCache
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.layers import Embedding, EncoderLayer, InterleavedBlock, VanillaBlock
from deltalm_ds.model.packing import PackedSequences


def reset_layer_parameter(name: str, parameter: Tensor, generator: torch.Generator | None = None) -> None:
    """Fresh numbers for a weight of a layer, in place; `generator` draws them, PyTorch's own if None."""
    if parameter.dim() == 2:
        nn.init.xavier_uniform_(parameter, generator=generator)
    elif name.endswith("bias"):
        nn.init.zeros_(parameter)
    else:
        nn.init.ones_(parameter)  # of a norm


class Encoder(nn.Module):
    """Embedding and layers over the source."""

    def __init__(self, config: DeltaLMConfig) -> None:
        super().__init__()
        self.embedding = Embedding(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_encoder_layers))


class Decoder(nn.Module):
    """Embedding and blocks over the target."""

    def __init__(self, config: DeltaLMConfig) -> None:
        super().__init__()
        block = InterleavedBlock if config.decoder == "interleaved" else VanillaBlock
        self.embedding = Embedding(config)
        self.blocks = nn.ModuleList(block(config) for _ in range(config.num_decoder_blocks))


class DeltaLM(nn.Module):
    """Encoder-decoder with one token table for source, target and output."""

    def __init__(self, config: DeltaLMConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.num_embedding_rows, config.hidden_size)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fresh weights: Xavier-uniform matrices, embeddings N(0, 1/M), zero biases and padding rows."""
        for name, parameter in self.named_parameters():
            if name.endswith(("token_embedding.weight", "embedding.positions")):
                nn.init.normal_(parameter, std=self.config.hidden_size**-0.5)
            else:
                reset_layer_parameter(name, parameter)
        self.token_embedding.weight[self.config.vocabulary_size :] = 0

    def num_parameters(self, padding_rows: bool = False) -> int:
        """Number of weights; without the embedding's padding rows unless asked."""
        total = sum(parameter.numel() for parameter in self.parameters())
        padding = self.config.num_embedding_rows - self.config.vocabulary_size
        return total if padding_rows else total - padding * self.config.hidden_size

    def forward(
        self,
        source: PackedSequences,
        target_input: PackedSequences,
        labels: Tensor,
        label_smoothing: float = 0.0,
    ) -> CrossEntropy:
        """The loss of a micro-batch, summed over target tokens.

        Args:
            source: B sequences, S tokens.
            target_input: B sequences, T tokens; each is `</s>` and the target without its last token.
            labels: [T] int64, the token after each of `target_input`; -100 where there is no loss.
            label_smoothing: probability that is shared among all tokens of the vocabulary.
        """
        hidden, table = self.hidden_and_table(source, target_input)
        return linear_cross_entropy(hidden, table, labels, self.config.vocabulary_size, label_smoothing)

    def hidden_and_table(self, source: PackedSequences, target_input: PackedSequences) -> tuple[Tensor, Tensor]:
        """The decoder's output [T, M], and the table [rows, M] by which the output layer multiplies it."""
        table, source_rows, target_rows = shared_embedding(
            self.token_embedding.weight, source.tokens, target_input.tokens
        )
        encoder_states = self._encode(source_rows, source)
        return self._decode(target_rows, target_input, encoder_states, source), table

    def encode(self, source: PackedSequences) -> Tensor:
        """The encoder's output [S, M]."""
        return self._encode(self.token_embedding(source.tokens), source)

    def decode(self, target_input: PackedSequences, encoder_states: Tensor, source: PackedSequences) -> Tensor:
        """The decoder's output [T, M] for whole targets; encoder_states: [S, M]."""
        return self._decode(self.token_embedding(target_input.tokens), target_input, encoder_states, source)

    def attention_to_source(self, target_input: PackedSequences, source: PackedSequences) -> list[Tensor]:
        """Of every pair [T', S'] float32, the attention of the last block to the source, whole targets at once.

        It is the mean of the heads: see `CrossAttention.weights`.
        """
        encoder_states = self.encode(source)
        *blocks, last = self._blocks
        x = self.decoder.embedding(self.token_embedding(target_input.tokens), target_input.positions)
        for block in blocks:
            x = block(x, target_input, encoder_states, source)
        x = last.before_cross_attention(x, target_input)
        return last.cross_attention.weights(x, target_input, encoder_states, source)

    def _encode(self, token_rows: Tensor, source: PackedSequences) -> Tensor:
        x = self.encoder.embedding(token_rows, source.positions)
        for layer in self.encoder.layers:
            x = self._run(layer, x, source)
        return x

    def _decode(
        self, token_rows: Tensor, target_input: PackedSequences, encoder_states: Tensor, source: PackedSequences
    ) -> Tensor:
        x = self.decoder.embedding(token_rows, target_input.positions)
        for block in self.decoder.blocks:
            x = self._run(block, x, target_input, encoder_states, source)
        return x

    def _run(self, layer: nn.Module, *inputs: Any) -> Tensor:
        if self.config.activation_checkpointing and self.training:
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)

    @property
    def max_positions(self) -> int:
        """Longest source and longest target, `</s>` included."""
        return self.config.max_positions

    @property
    def _blocks(self) -> Sequence[InterleavedBlock | VanillaBlock]:
        return cast(Sequence[InterleavedBlock | VanillaBlock], self.decoder.blocks)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the real vocabulary. hidden: [..., M] -> [..., V]."""
        return linear(hidden, self._output_weight)

    @property
    def _output_weight(self) -> Tensor:
        return self.token_embedding.weight[: self.config.vocabulary_size]

    def step_weights(self) -> list[Tensor]:
        """The matrices that every `decode_step` multiplies with: those of the decoder's layers and the output layer.

        Not among them are the keys and values of the source, which are computed once.
        """
        once = {id(block.cross_attention.key_value) for block in self._blocks}
        layers = [module for module in self.decoder.modules() if isinstance(module, nn.Linear)]
        return [*(layer.weight for layer in layers if id(layer) not in once), self._output_weight]

    def start_decoding(self, source: PackedSequences) -> DecoderCache:
        """Encode the source and prepare step-by-step decoding."""
        encoder_states = self.encode(source)
        return DecoderCache([block.cross_attention.cache(encoder_states, source) for block in self._blocks])

    def decode_step(self, tokens: Tensor, cache: DecoderCache | JointCache) -> Tensor:
        """Logits [N, V] after one more token a row, for which the cache (each of several) has been told to `reserve`.

        It never waits for the device, so that it can be recorded in a CUDA graph. tokens: [N] int64, the beams of a
        sentence side by side.
        """
        x = self.decoder.embedding(self.token_embedding(tokens), cache.begin_step(len(tokens)))
        for block, of_block in zip(self._blocks, cache.of_blocks(), strict=True):
            x = block.step(x, *of_block)
        cache.end_step()
        return self.logits(x)

"""COMET's networks [Rei+20], [Rei+22]: our encoder with XLM-R's weights, and an estimator of people's scores.

Legend: T tokens, B sequences, M model dim, L layers of the encoder, N sentences.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from deltalm_ds.generation.interface import BATCH_TOKENS, Ids
from deltalm_ds.generation.translate import batches_by_cost
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import Encoder
from deltalm_ds.model.packing import PackedSequences
from deltalm_ds.progress import progress

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"Tanh": torch.tanh, "Sigmoid": torch.sigmoid}
AT_ONCE = 1_024  # outputs, through the estimator: its layers are up to six times as wide as the encoder
NORM_EPS = 1e-12  # of the norm before layers are mixed


@dataclass(frozen=True)
class Head:
    """What COMET does with the states of the encoder's layers.

    Attributes:
        norms: whether each layer's states of a sequence get mean 0 and variance 1, all together, before they are mixed.
        pool: the state of a sequence: `avg`, of all its tokens, or `cls`, of its first one.
        activation, final_activation: of the estimator's hidden layers, and of its output if it has one there; of
            `ACTIVATIONS`.
    """

    norms: bool
    pool: str
    activation: str
    final_activation: str | None


class CometNetwork(nn.Module):
    """An XLM-R encoder whose layers are mixed, and an estimator on top. Nothing is dropped out.

    Args:
        config: sizes of the encoder.
        num_rows: of its token table.
        sizes: of the estimator, from its input to its one output.
        head: what lies between them.
    """

    def __init__(self, config: DeltaLMConfig, num_rows: int, sizes: Sequence[int], head: Head) -> None:
        super().__init__()
        self.head = head
        self.table = nn.Parameter(torch.empty(num_rows, config.hidden_size))
        self.encoder = Encoder(config)
        self.layer_weights = nn.Parameter(torch.empty(config.num_encoder_layers + 1))  # the embedding is a layer too
        self.estimator = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.eval()

    @torch.inference_mode()
    def states(self, sequences: Sequence[Ids], what: str) -> Tensor:
        """[N, M] float32 on the CPU: a state for each sequence of ids, `<s>` and `</s>` included.

        Args:
            sequences: that the positions allow.
            what: the progress line's name.
        """
        found = torch.empty(len(sequences), self.table.shape[1])
        costs, device = [len(ids) for ids in sequences], self.table.device
        with progress(what, len(sequences), "sequences") as advance:
            for batch in batches_by_cost(costs, BATCH_TOKENS[device.type]):
                packed = PackedSequences.from_sequences([sequences[index] for index in batch]).to(device)
                found[batch] = self._pool(self._encode(packed), packed).cpu()
                advance(len(batch))
        return found

    @torch.inference_mode()
    def compare(self, source: Tensor, output: Tensor, reference: Tensor, counts: Sequence[int]) -> Tensor:
        """[N] float32 on the CPU: the highest score of each sentence with one of its references [Rei+20 §2.3].

        Args:
            source: [N, M], states on the CPU.
            output: [N, M].
            reference: [references, M], those of a sentence side by side.
            counts: how many each sentence has, of N.
        """
        lengths = torch.tensor(counts)
        sentence = torch.repeat_interleave(torch.arange(len(counts)), lengths)
        found = []
        for r, index in zip(reference.split(AT_ONCE), sentence.split(AT_ONCE), strict=True):
            h, s = output[index], source[index]
            found.append(self.estimate(torch.cat([h, r, h * r, (h - r).abs(), h * s, (h - s).abs()], 1)))
        return torch.segment_reduce(torch.cat(found), "max", lengths=lengths)

    @torch.inference_mode()
    def estimate(self, features: Tensor) -> Tensor:
        """[N, the estimator's width] on the CPU -> [N]: its outputs."""
        return torch.cat([self._estimate(part.to(self.table.device)).cpu() for part in features.split(AT_ONCE)])

    def _estimate(self, x: Tensor) -> Tensor:
        *hidden, last = self.estimator
        for layer in hidden:
            x = ACTIVATIONS[self.head.activation](layer(x))
        x = last(x).flatten()
        return x if self.head.final_activation is None else ACTIVATIONS[self.head.final_activation](x)

    def _encode(self, packed: PackedSequences) -> Tensor:
        """[T, M]: the mixture of all layers."""
        x = self.encoder.embedding(nn.functional.embedding(packed.tokens, self.table), packed.positions)
        mixed = self.layer_weights[0] * self._normed(x, packed)
        for weight, layer in zip(self.layer_weights[1:], self.encoder.layers, strict=True):
            x = layer(x, packed)
            mixed += weight * self._normed(x, packed)
        return mixed

    def _normed(self, x: Tensor, packed: PackedSequences) -> Tensor:
        if not self.head.norms:
            return x
        number = packed.sequence_of_token
        centred = x - _means(x.mean(1), packed)[number, None]
        variance = _means(centred.square().mean(1), packed)
        return centred * torch.rsqrt(variance + NORM_EPS)[number, None]

    def _pool(self, x: Tensor, packed: PackedSequences) -> Tensor:
        """[T, M] -> [B, M]."""
        return _means(x, packed) if self.head.pool == "avg" else x[packed.cu_seqlens[:-1].long()]


def _means(x: Tensor, packed: PackedSequences) -> Tensor:
    """The mean over the tokens of each sequence, [T, …] -> [B, …], in the same order on every device."""
    return torch.segment_reduce(x, "mean", lengths=packed.lengths.long(), unsafe=True)


def sparsemax(x: Tensor) -> Tensor:
    """The nearest point of the probability simplex, which may have zeros [Martins+16]. x: [K] -> [K]."""
    ordered = x.sort(descending=True).values
    excess = ordered.cumsum(0) - 1
    rank = torch.arange(1, len(x) + 1)
    size = int((rank * ordered > excess).sum())
    return (x - excess[size - 1] / size).clamp(min=0)

"""What a step consists of, counted from shapes: matrix products, passes over memory, and how often the host calls.

Legend: S source and T target tokens of a micro-batch, B its sequences, M model dim, F FFN dim, V embedding rows.
"""

from collections import Counter
from typing import NamedTuple

from deltalm_ds.model.config import DeltaLMConfig


class Product(NamedTuple):
    """`batch` times [m, k] by [k, n]; `kind` is that of a linear layer (`kernels.linear.PRODUCTS`), or `attention`."""

    kind: str
    batch: int
    m: int
    k: int
    n: int

    @property
    def operations(self) -> float:
        """A multiplication and an addition each."""
        return 2.0 * self.batch * self.m * self.k * self.n

    def bytes_moved(self, element_bytes: int) -> float:
        """Operands read and result written once."""
        return element_bytes * float(self.batch) * (self.m * self.k + self.k * self.n + self.m * self.n)


class MicroBatch(NamedTuple):
    """Its tokens with padding, and how many sequences they are."""

    source_tokens: int
    target_tokens: int
    sequences: int


def products(config: DeltaLMConfig, shape: MicroBatch) -> Counter[Product]:
    """How often forward and backward of a micro-batch compute each product; recomputing counts."""
    found: Counter[Product] = Counter()
    width, ffn, again = config.hidden_size, config.ffn_size, int(config.activation_checkpointing)
    source, target = shape.source_tokens, shape.target_tokens

    def linear(tokens: int, inputs: int, outputs: int, times: int, forwards: int = 1) -> None:
        found[Product("forward", 1, tokens, inputs, outputs)] += times * forwards
        found[Product("input_gradient", 1, tokens, outputs, inputs)] += times
        found[Product("weight_gradient", 1, outputs, tokens, inputs)] += times

    def attend(queries: int, keys: int, times: int) -> None:
        batch, d = config.num_heads * shape.sequences, width // config.num_heads
        q, k = -(-queries // shape.sequences), -(-keys // shape.sequences)
        for m, inner, n, count in ((q, d, k, 2 + again), (q, k, d, 2 + again), (k, q, d, 2)):
            found[Product("attention", batch, m, inner, n)] += times * count

    layers, blocks = config.num_encoder_layers, config.num_decoder_blocks
    ffns = 2 if config.decoder == "interleaved" else 1
    for tokens, inputs, outputs, times in (
        (source, width, 3 * width, layers),
        (source, width, width, layers),
        (source, width, ffn, layers),
        (source, ffn, width, layers),
        (target, width, 3 * width, blocks),
        (target, width, width, 3 * blocks),
        (source, width, 2 * width, blocks),
        (target, width, ffn, ffns * blocks),
        (target, ffn, width, ffns * blocks),
    ):
        linear(tokens, inputs, outputs, times, 1 + again)
    attend(source, source, layers)
    attend(target, target, blocks)
    attend(target, source, blocks)
    linear(target, width, config.num_embedding_rows, 1)
    return found


def bytes_of_passes(config: DeltaLMConfig, shape: MicroBatch, element_bytes: int) -> dict[str, float]:
    """What a micro-batch reads and writes outside of products, forward and backward, by what does it.

    A norm with dropout and residual reads 2 M and writes 2 M, and as much again backward; GELU 2 F and 3 F; attention
    4 M and 8 M; a bias gradient reads its layer's gradient, and a residual's gradient is added (3 M). The loss passes
    three times over the logits; its gradient of the token table is scaled and rounded, and written.
    """
    width, ffn = config.hidden_size, config.ffn_size
    ffns = 2 if config.decoder == "interleaved" else 1
    again = 1.4 if config.activation_checkpointing else 1.0  # the forward's part once more
    norm, gelu, attention, biases, residual = 8 * width, 5 * ffn, 12 * width, ffn + 5 * width, 3 * width
    of_source = config.num_encoder_layers * (2 * (norm + residual) + gelu + attention + biases)
    of_target = config.num_decoder_blocks * (
        (2 + ffns) * (norm + residual) + ffns * (gelu + ffn + width) + 2 * (attention + 4 * width)
    )
    embedding = 10 * width
    layers = shape.source_tokens * (of_source + embedding) + shape.target_tokens * (of_target + embedding)
    logits = 3 * shape.target_tokens * config.num_embedding_rows
    table = config.num_embedding_rows * width
    return {
        "layers": again * element_bytes * layers,
        "loss": element_bytes * logits + table * (4 + 2 * element_bytes),
    }


def bytes_of_update(num_trained: int, num_ranks: int, stage: int, element_bytes: int, num_micro_batches: int) -> float:
    """What DeepSpeed and Adam read and write of weights and gradients on a rank in a step.

    For each micro-batch a gradient is read and added to its float32 sum; then the norm is taken in float64 (read 4,
    write and read 8), gradients are scaled, Adam reads 16 and writes 12, 16-bit weights are made, and the sum is set to
    zero for the next step. From stage 2 on sums are those of a rank's share.

    Args:
        num_trained: parameters that take a gradient.
        num_ranks: that share what the stage says.
        stage: of ZeRO.
        element_bytes: of a weight.
        num_micro_batches: of a rank in a step.
    """
    share = num_trained / num_ranks
    summed = share if stage > 1 else num_trained
    adding = num_micro_batches * (num_trained * element_bytes + 8.0 * summed)
    narrow = 6 if element_bytes == 2 else 0
    return adding + share * (20 + 8 + 28 + narrow) + 4 * summed

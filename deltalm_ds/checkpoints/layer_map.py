"""Which of a source's layers each layer of a new model starts from [facts: layer map].

By default the encoder is copied, and so is a decoder where the source has one; without one, block i of the decoder is
made of encoder layers 2i and 2i + 1: of the first its self-attention and first FFN, of the second its cross-attention
and second FFN, each with their norms.

A vanilla decoder starts as XLM's does: block i takes self-attention and FFN of encoder layer i; its cross-attention is
that layer's self-attention once more, or random [Ma+21 §2.2].
"""

import re
from dataclasses import dataclass
from typing import Literal

from deltalm_ds.checkpoints.sizes import Sizes
from deltalm_ds.errors import InputError

Pair = tuple[int, int]
DecoderForm = Literal["interleaved", "vanilla"]
CrossAttention = Literal["copied", "random"]
FfnOrder = Literal["official", "swapped"]


@dataclass(frozen=True)
class Slice:
    """Rows `[start:stop]` of a tensor, in units of the model's width; all rows if `stop` is None."""

    name: str
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class LayerMap:
    """Indices, from 0, into the source's layers.

    Attributes:
        encoder: the source's encoder layer of each encoder layer.
        decoder: of each block a pair of the source's encoder layers, or the number of the source's decoder block.
        ffn_order: "swapped" exchanges the first and second FFN of copied decoder blocks, but not their norms: for
            files of the community's converter.
        form: of the new decoder's blocks. Of a vanilla one made of encoder layers, a pair names the same layer twice.
        cross_attention: "random" leaves this sub-layer of every block, with its norm, as in a fresh model.
    """

    encoder: tuple[int, ...]
    decoder: tuple[Pair | int, ...]
    ffn_order: FfnOrder = "official"
    form: DecoderForm = "interleaved"
    cross_attention: CrossAttention = "copied"

    def is_fresh(self, name: str) -> bool:
        """Whether a parameter of the new model, by our name, starts from none of the source's."""
        return self.cross_attention == "random" and ".cross_attention." in name

    def origin(self, name: str) -> Slice:
        """The parameter of the source that one of the new model's starts from, if it is not fresh; by our names."""
        if match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name):
            return Slice(f"encoder.layers.{self.encoder[int(match[1])]}.{match[2]}")
        if match := re.fullmatch(r"decoder\.blocks\.(\d+)\.(.+)", name):
            layers = self.decoder[int(match[1])]
            return self._from_block(layers, match[2]) if isinstance(layers, int) else _from_encoder(layers, match[2])
        if name.startswith("decoder.") and not any(isinstance(layers, int) for layers in self.decoder):
            return Slice(name.replace("decoder.", "encoder.", 1))  # positions and norm of the embedding
        return Slice(name)

    def _from_block(self, block: int, rest: str) -> Slice:
        if self.ffn_order == "swapped":
            other = {"ffn_1": "ffn_2", "ffn_2": "ffn_1"}
            rest = re.sub(r"^ffn_[12](?=\.(input|output)\.)", lambda match: other[match[0]], rest)
        return Slice(f"decoder.blocks.{block}.{rest}")


def _from_encoder(pair: Pair, rest: str) -> Slice:
    sublayer, tensor = rest.split(".", 1)
    first, second = pair
    number = second if sublayer in ("cross_attention", "ffn_2") else first
    layer = f"encoder.layers.{number}"
    if sublayer.startswith("ffn"):
        return Slice(f"{layer}.ffn.{tensor}")
    projection, _, kind = tensor.rpartition(".")
    if sublayer == "cross_attention" and projection in ("query", "key_value"):
        fused = f"{layer}.self_attention.query_key_value.{kind}"
        return Slice(fused, 0, 1) if projection == "query" else Slice(fused, 1, 3)
    return Slice(f"{layer}.self_attention.{tensor}")


def make_layer_map(
    sizes: Sizes,
    encoder: str | None = None,
    decoder: str | None = None,
    ffn_order: FfnOrder = "official",
    form: DecoderForm | None = None,
    cross_attention: CrossAttention = "copied",
) -> LayerMap:
    """The layer map that the user asks for, or the default.

    Args:
        sizes: of the source.
        encoder: the source's encoder layers, such as "0 1 2 5".
        decoder: of each block two of the source's encoder layers, "0,1 2,3", or one of its decoder blocks, "0 2"; of
            each block of a vanilla decoder for a source without one, one of its encoder layers, "0 2".
        ffn_order, cross_attention: see `LayerMap`.
        form: of the decoder, the source's own or interleaved if None.

    Raises:
        InputError: a map is malformed or names a layer that the source has not, or does not fit the source's decoder.
    """
    if form is not None and sizes.decoder not in (None, form):
        raise InputError(f"The source's decoder is {sizes.decoder} and cannot be made {form}: leave out --decoder.")
    form = form or sizes.decoder or "interleaved"
    num_layers = sizes.num_encoder_layers
    encoder_layers = _parse(encoder, r"\d+") if encoder is not None else [(i,) for i in range(num_layers)]
    blocks = _decoder_blocks(sizes, decoder, form)
    for item in (*encoder_layers, *(block for block in blocks if isinstance(block, tuple))):
        if max(item) >= num_layers:
            raise InputError(f"The source has no encoder layer {max(item)}: it has layers 0 to {num_layers - 1}.")
    if ffn_order == "swapped" and sizes.decoder != "interleaved":
        raise InputError("The order of FFNs is for sources with an interleaved decoder; this one has none.")
    return LayerMap(tuple(layer for (layer,) in encoder_layers), tuple(blocks), ffn_order, form, cross_attention)


def _decoder_blocks(sizes: Sizes, text: str | None, form: DecoderForm) -> list[Pair | int]:
    """What each block is made of; see `make_layer_map`."""
    num_layers, num_blocks = sizes.num_encoder_layers, sizes.num_decoder_blocks
    if sizes.decoder is None and form == "vanilla":
        # as deep as an interleaved one, from the lowest layers: so fairseq's transformer_from_pretrained_xlm takes them
        layers = _parse(text, r"\d+") if text is not None else [(i,) for i in range(max(1, num_layers // 2))]
        return [(layer, layer) for (layer,) in layers]
    if text is None:
        blocks: list[Pair | int] = [*range(num_blocks)] or [(2 * i, 2 * i + 1) for i in range(num_layers // 2)]
    else:
        blocks = [(item[0], item[1]) if len(item) == 2 else item[0] for item in _parse(text, r"\d+(,\d+)?")]
    if not blocks:
        raise InputError("The source has a single encoder layer: say which layers make a block with --layer-map 0,0.")
    for block in blocks:
        if isinstance(block, int) and block >= num_blocks:
            has = f"decoder blocks 0 to {num_blocks - 1}" if num_blocks else "only an encoder: give pairs such as 0,1"
            raise InputError(f"The source has no decoder block {block}: it has {has}.")
    if form == "vanilla" and any(isinstance(block, tuple) for block in blocks):
        raise InputError("The source's decoder is vanilla: blocks made of two encoder layers do not fit beside it.")
    return blocks


def _parse(text: str, pattern: str) -> list[tuple[int, ...]]:
    items = text.split()
    wrong = next((item for item in items if not re.fullmatch(pattern, item, re.ASCII)), None)
    if not items or wrong is not None:
        raise InputError(f"{text!r} is no list of layers: expected numbers such as '0 1 2' (or pairs '0,1 2,3').")
    return [tuple(int(number) for number in item.split(",")) for item in items]

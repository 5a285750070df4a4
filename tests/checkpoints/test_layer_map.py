"""Layer maps: the default ones, those that a user writes, and what is refused."""

import re

import pytest

from deltalm_ds.checkpoints.layer_map import LayerMap, Slice, make_layer_map
from deltalm_ds.checkpoints.sizes import Sizes
from deltalm_ds.errors import InputError


def sizes(num_layers=6, num_blocks=0, decoder=None):
    return Sizes(100, 16, 32, 2, num_layers, num_blocks, decoder, 30, True)


def test_defaults():
    assert make_layer_map(sizes()) == LayerMap((0, 1, 2, 3, 4, 5), ((0, 1), (2, 3), (4, 5)))
    assert make_layer_map(sizes(5)) == LayerMap((0, 1, 2, 3, 4), ((0, 1), (2, 3)))
    assert make_layer_map(sizes(4, 3, "interleaved")) == LayerMap((0, 1, 2, 3), (0, 1, 2))


def test_a_vanilla_decoder():
    """As deep as an interleaved one from the lowest layers, or of the layers that the user names."""
    wanted = LayerMap((0, 1, 2, 3, 4), ((0, 0), (1, 1)), form="vanilla", cross_attention="random")
    assert make_layer_map(sizes(5), form="vanilla", cross_attention="random") == wanted
    assert make_layer_map(sizes(1), form="vanilla").decoder == ((0, 0),)
    assert make_layer_map(sizes(4), None, "3 0", form="vanilla").decoder == ((3, 3), (0, 0))
    assert make_layer_map(sizes(4, 2, "vanilla")) == LayerMap((0, 1, 2, 3), (0, 1), form="vanilla")


def test_maps_of_the_user():
    assert make_layer_map(sizes(), "0 1 5", "0,5 1,1") == LayerMap((0, 1, 5), ((0, 5), (1, 1)))
    wanted = LayerMap((0, 1, 2, 3, 4, 5), (2, (0, 1), 2), "swapped")
    assert make_layer_map(sizes(6, 3, "interleaved"), None, "2 0,1 2", "swapped") == wanted


def test_origins():
    """What each sub-layer starts from, written out."""
    layer_map = LayerMap((3, 0), ((4, 2), 1))
    origins = {
        "token_embedding.weight": Slice("token_embedding.weight"),
        "encoder.layers.0.ffn.input.bias": Slice("encoder.layers.3.ffn.input.bias"),
        "encoder.layers.1.self_attention.norm.weight": Slice("encoder.layers.0.self_attention.norm.weight"),
        "decoder.blocks.0.self_attention.query_key_value.weight": Slice(
            "encoder.layers.4.self_attention.query_key_value.weight"
        ),
        "decoder.blocks.0.ffn_1.norm.bias": Slice("encoder.layers.4.ffn.norm.bias"),
        "decoder.blocks.0.cross_attention.query.bias": Slice(
            "encoder.layers.2.self_attention.query_key_value.bias", 0, 1
        ),
        "decoder.blocks.0.cross_attention.key_value.weight": Slice(
            "encoder.layers.2.self_attention.query_key_value.weight", 1, 3
        ),
        "decoder.blocks.0.cross_attention.output.weight": Slice("encoder.layers.2.self_attention.output.weight"),
        "decoder.blocks.0.ffn_2.output.weight": Slice("encoder.layers.2.ffn.output.weight"),
        "decoder.blocks.1.ffn_2.output.weight": Slice("decoder.blocks.1.ffn_2.output.weight"),
        "decoder.embedding.positions": Slice("decoder.embedding.positions"),
    }
    assert {name: layer_map.origin(name) for name in origins} == origins
    only_encoder = LayerMap((0,), ((0, 0),))
    assert only_encoder.origin("decoder.embedding.norm.bias") == Slice("encoder.embedding.norm.bias")


def test_the_swapped_order_exchanges_ffns_but_not_their_norms():
    swapped = LayerMap((0,), (1,), "swapped")
    for first, second in (("ffn_1", "ffn_2"), ("ffn_2", "ffn_1")):
        for tensor in ("input.weight", "output.bias"):
            name, other = (f"decoder.blocks.{i}.{ffn}.{tensor}" for i, ffn in ((0, first), (1, second)))
            assert swapped.origin(name) == Slice(other)
        assert swapped.origin(f"decoder.blocks.0.{first}.norm.bias") == Slice(f"decoder.blocks.1.{first}.norm.bias")


@pytest.mark.parametrize(
    ("source", "encoder", "decoder", "order", "message"),
    [
        (sizes(), "0 6", None, "official", "no encoder layer 6: it has layers 0 to 5"),
        (sizes(), None, "0,1 2,6", "official", "no encoder layer 6"),
        (sizes(), None, "0 1", "official", "no decoder block 0: it has only an encoder: give pairs such as 0,1"),
        (sizes(6, 3, "interleaved"), None, "3", "official", "no decoder block 3: it has decoder blocks 0 to 2"),
        (sizes(6, 3, "vanilla"), None, "0,1", "official", "The source's decoder is vanilla"),
        (sizes(6, 3, "interleaved"), None, None, "vanilla", "decoder is interleaved and cannot be made vanilla"),
        (sizes(), None, "0,1", "vanilla", "'0,1' is no list of layers"),
        (sizes(), None, "6", "vanilla", "no encoder layer 6"),
        (sizes(), None, None, "swapped", "this one has none"),
        (sizes(1), None, None, "official", "a single encoder layer"),
        (sizes(), "", None, "official", "'' is no list of layers"),
        (sizes(), "0,1", None, "official", "'0,1' is no list of layers"),
        (sizes(), None, "0,1,2", "official", "'0,1,2' is no list of layers"),
        (sizes(), None, "0-3", "official", "'0-3' is no list of layers"),
        (sizes(), "-1", None, "official", "'-1' is no list of layers"),
    ],
)
def test_maps_that_cannot_be(source, encoder, decoder, order, message):
    options = {"form": order} if order == "vanilla" else {"ffn_order": order}
    with pytest.raises(InputError, match=re.escape(message)):
        make_layer_map(source, encoder, decoder, **options)

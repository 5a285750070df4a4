"""A model without weights: what it is like, and that it costs next to nothing."""

import subprocess
import sys

import pytest

from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.empty import empty_model


@pytest.mark.parametrize("decoder", ["interleaved", "vanilla"])
def test_it_is_the_model_without_memory(decoder):
    config = DeltaLMConfig(
        vocabulary_size=50,
        hidden_size=16,
        num_heads=2,
        ffn_size=32,
        num_encoder_layers=2,
        num_decoder_blocks=1,
        max_positions=20,
        decoder=decoder,
    )
    empty, model = empty_model(config), DeltaLM(config)
    assert all(parameter.is_meta for parameter in empty.parameters())
    shapes = [
        [(name, parameter.shape, parameter.dtype) for name, parameter in each.named_parameters()]
        for each in (empty, model)
    ]
    assert shapes[0] == shapes[1]
    empty.load_state_dict(model.state_dict(), assign=True)
    assert all(theirs.equal(ours) for ours, theirs in zip(model.parameters(), empty.parameters(), strict=True))


def test_the_compiler_is_not_loaded_for_it():
    code = """
import sys
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.empty import empty_model
empty_model(DeltaLMConfig.preset("base", vocabulary_size=100))
print("torch" in sys.modules, "torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"

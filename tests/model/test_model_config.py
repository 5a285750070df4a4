"""Shapes of models: presets, exact sizes, refusals."""

import pytest
import torch
from pydantic import ValidationError

from deltalm_ds.model.config import PRESETS, DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM

XLM_R_VOCABULARY = 250_001

# the published base is "362M" [facts: sizes]; both counted by hand, see test_counts_follow_from_the_sizes
PARAMETERS = {"base": 362_899_200, "large": 861_668_352}


def on_meta(config):
    with torch.device("meta"):
        return DeltaLM(config)


@pytest.mark.parametrize(("preset", "expected"), PARAMETERS.items())
def test_exact_number_of_parameters(preset, expected):
    config = DeltaLMConfig.preset(preset, vocabulary_size=XLM_R_VOCABULARY)
    model = on_meta(config)
    print(f"{preset}: {model.num_parameters():,} parameters at vocabulary {XLM_R_VOCABULARY:,}")
    assert model.num_parameters() == expected
    assert config.num_embedding_rows == 250_048
    assert model.num_parameters(padding_rows=True) == expected + 47 * config.hidden_size


@pytest.mark.parametrize("decoder", ["interleaved", "vanilla"])
@pytest.mark.parametrize("preset", PRESETS)
def test_counts_follow_from_the_sizes(preset, decoder):
    config = DeltaLMConfig.preset(preset, vocabulary_size=1000, decoder=decoder)
    m, f = config.hidden_size, config.ffn_size
    norm = 2 * m
    attention = 4 * (m * m + m) + norm
    ffn = m * f + f + f * m + m + norm
    embedding = config.max_positions * m + (norm if config.embedding_norm else 0)
    ffns_a_block = 2 if decoder == "interleaved" else 1
    expected = 1000 * m + 2 * embedding + config.num_encoder_layers * (attention + ffn)
    expected += config.num_decoder_blocks * (2 * attention + ffns_a_block * ffn)
    assert on_meta(config).num_parameters() == expected


@pytest.mark.parametrize(("vocabulary_size", "rows"), [(5, 64), (64, 64), (65, 128), (XLM_R_VOCABULARY, 250_048)])
def test_embedding_rows_are_a_multiple_of_64(vocabulary_size, rows):
    assert DeltaLMConfig.preset("tiny", vocabulary_size=vocabulary_size).num_embedding_rows == rows


def test_large_differs_from_base_in_sizes_and_the_embedding_norm():
    base, large = (DeltaLMConfig.preset(name, vocabulary_size=9) for name in ("base", "large"))
    assert (base.embedding_norm, large.embedding_norm) == (True, False)
    assert base.head_dim == large.head_dim == 64
    # half as many blocks as encoder layers: each block takes two layers' weights [Ma+21 §2.2]
    for config in (base, large):
        assert config.num_encoder_layers == 2 * config.num_decoder_blocks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "does not divide hidden_size=128"),
        ({"dropout": 1.0}, "dropout"),
        ({"num_head": 4}, "num_head"),
        ({"decoder": "parallel"}, "interleaved"),
        ({"vocabulary_size": 4}, "vocabulary_size"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        DeltaLMConfig.preset("tiny", **{"vocabulary_size": 100, **change})


def test_unknown_preset_names_the_presets():
    with pytest.raises(ValueError, match="no preset 'huge': the presets are tiny, base, large"):
        DeltaLMConfig.preset("huge", vocabulary_size=100)

"""The export as stock BART: exact where BART can express the model, refused where not."""

import math

import pytest
import torch
from toys import random_model

from deltalm_ds.errors import CheckError, InputError
from deltalm_ds.export import stock_transformers
from deltalm_ds.export.formats import bart
from deltalm_ds.export.package import export
from deltalm_ds.export.two_layers import split_norm
from deltalm_ds.files import read_json
from deltalm_ds.generation.engines.pytorch import PyTorchEngine
from deltalm_ds.model.layers import PostNorm


@pytest.mark.parametrize(("decoder", "num_layers"), [("interleaved", 4), ("vanilla", 2)])
def test_scores_are_exact(decoder, num_layers, tmp_path):
    model = random_model(decoder=decoder)
    bart.write_bart(model, None, tmp_path, "float32")
    assert read_json(tmp_path / "config.json")["decoder_layers"] == num_layers
    sources, targets = [[5, 6, 7, 8, 9], [12]], [[20, 21], [23, 24, 25, 26]]
    ours, theirs = (engine.score(sources, targets) for engine in (PyTorchEngine(model), bart.open_bart(tmp_path)))
    for a, b in zip(ours, theirs, strict=True):
        assert b == pytest.approx(a, abs=1e-5)


def test_stock_bart_takes_every_tensor(tmp_path):
    from transformers import BartForConditionalGeneration

    bart.write_bart(random_model(), None, tmp_path, "float32")
    _, info = BartForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_is_close(precision, trained, tmp_path):
    assert 0 < export(trained[0], tmp_path / "out", "bart", precision, trained[1]).mean_error <= 0.01


def test_what_bart_cannot_express_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"BART always norms its embeddings.*large.*marian"):
        bart.write_bart(random_model(embedding_norm=False), None, tmp_path, "float32")
    with pytest.raises(InputError, match="epsilon 1e-05 and this model's 1e-06"):
        bart.write_bart(random_model(layer_norm_eps=1e-6), None, tmp_path, "float32")
    assert list(tmp_path.iterdir()) == []


def test_a_norm_that_is_not_split_is_noticed(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(stock_transformers, "split_norm", lambda norm: [(norm.weight.detach(), norm.bias.detach())] * 2)
    with pytest.raises(CheckError):
        export(trained[0], tmp_path / "out", "bart", check_sources=trained[1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_two_norms_are_one(scale):
    """In float64, against one LayerNorm with the epsilon that `two_layers` states; so also where epsilon matters."""
    torch.manual_seed(0)
    norm = PostNorm(random_model().config).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = scale * torch.randn(20, len(norm.weight), dtype=torch.float64)
    y = x
    for gamma, beta in split_norm(norm):
        y = torch.nn.functional.layer_norm(y, gamma.shape, gamma, beta, norm.eps)
    ratio = norm.eps * 2.0**24
    eps = norm.eps * ratio / (1 + ratio)
    assert math.isclose(eps, 0.994 * norm.eps, rel_tol=1e-3)
    expected = torch.nn.functional.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, eps)
    assert (y - expected).abs().max() < 1e-10

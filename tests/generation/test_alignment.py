"""Attention of finished outputs against another implementation, and its units by hand."""

import numpy as np
import pytest
import torch

from deltalm_ds.errors import InputError
from deltalm_ds.export.formats.ctranslate2 import write_ctranslate2
from deltalm_ds.export.formats.onnx import write_onnx
from deltalm_ds.files import read_json, write_json
from deltalm_ds.generation.alignment import COVERED, alignment, attention, check_unit, uncovered, words
from deltalm_ds.generation.engines.pytorch import PyTorchEngine
from deltalm_ds.generation.loading import load_engine
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.packing import PackedSequences
from deltalm_ds.token_ids import EOS_ID
from deltalm_ds.vocabulary import Vocabulary

SOURCES, TARGETS = [[4, 5, 6, 7], [8], [9, 10]], [[11, 12], [], [13, 14, 15, 16, 17]]


@pytest.fixture(scope="module", params=["interleaved", "vanilla"])
def model(request):
    torch.manual_seed(0)
    config = DeltaLMConfig.preset("tiny", vocabulary_size=50, max_positions=20, decoder=request.param)
    model = DeltaLM(config).eval()
    model.token_embedding.weight.data *= 8  # attention that differs between positions
    return model


def by_torch(model, source, target):
    """The mean of the heads as torch's own attention gives it, from what the sub-layer is called with."""
    attention, given = model.decoder.blocks[-1].cross_attention, []
    hook = attention.register_forward_pre_hook(lambda _, inputs: given.extend(inputs))
    packed = PackedSequences.from_sequences([[*source, EOS_ID]])
    with torch.inference_mode():
        model.decode(PackedSequences.from_sequences([[EOS_ID, *target]]), model.encode(packed), packed)
        hook.remove()
        x, _, states, _ = given
        q, kv = attention.query, attention.key_value
        _, weights = torch.nn.functional.multi_head_attention_forward(
            x, states, states, x.shape[1], attention.num_heads,
            torch.cat([q.weight, kv.weight]), torch.cat([q.bias, kv.bias]), None, None, False, 0.0,
            attention.output.weight, attention.output.bias, training=False,
        )  # fmt: skip
    return weights.numpy()


def test_attention_is_that_of_torch(model):
    for found, source, target in zip(attention(PyTorchEngine(model), SOURCES, TARGETS), SOURCES, TARGETS, strict=True):
        expected = by_torch(model, source, target)
        assert found.shape == expected.shape == (len(target) + 1, len(source) + 1)
        assert found == pytest.approx(expected, abs=1e-6)
        assert np.ptp(expected) > 0.01


@pytest.mark.parametrize(("name", "write"), [("ctranslate2", write_ctranslate2), ("onnx", write_onnx)])
def test_exports_show_the_same(model, name, write, tmp_path):
    write(model, None, tmp_path, "float32")
    sizes = {"vocabulary_size": 50, "max_positions": 20}
    write_json(tmp_path / "deltalm.json", {"format": name, "precision": "float32", **sizes})
    expected = attention(PyTorchEngine(model), SOURCES, TARGETS)
    for found, ours in zip(attention(load_engine(tmp_path), SOURCES, TARGETS), expected, strict=True):
        assert found.shape == ours.shape
        assert found == pytest.approx(ours, abs=1e-5)


def test_what_cannot_show_it_is_refused(model, tmp_path):
    with pytest.raises(InputError, match="--alignments: object does not show"):
        attention(object(), [[4]], [[5]])
    write_ctranslate2(model, None, tmp_path, "float32")
    sizes = {"vocabulary_size": 50, "max_positions": 20}
    write_json(tmp_path / "deltalm.json", {"format": "ctranslate2", "precision": "float32", **sizes})
    config = read_json(tmp_path / "config.json")
    del config["alignment_heads"]
    write_json(tmp_path / "config.json", config)
    with pytest.raises(InputError, match="attention of one head only: export the model again"):
        attention(load_engine(tmp_path), [[4]], [[5]])
    with pytest.raises(InputError, match="between words or pieces, not 'lines'"):
        check_unit("lines")


@pytest.fixture
def vocabulary(tmp_path):
    pieces = "▁The ▁dog s ' ▁ 犬 が <0xC3> <0xA9> . ▁a f"
    (tmp_path / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in pieces.split()), encoding="utf-8")
    return Vocabulary.from_dict(tmp_path / "dict.txt", num_sentinels=2, languages=["de"])


def ids_of(vocabulary, pieces):
    known = {vocabulary.token(token): token for token in range(vocabulary.num_tokens)}
    return [known[piece] for piece in pieces.split()]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ("__de__ ▁The ▁dog s .", ["__de__", " The", " dogs", "."]),
        ("▁dog ' s", [" dog", "'", "s"]),
        ("▁ 犬 が .", [" 犬", "が", "."]),
        ("▁a f <0xC3> <0xA9> s </s>", [" afés", "</s>"]),
        ("s __de__ s", ["s", "__de__", "s"]),
        ("", []),
    ],
)
def test_pieces_make_words(vocabulary, pieces, expected):
    ids = ids_of(vocabulary, pieces)
    found = words(vocabulary, ids)
    assert [text for text, _ in found] == expected
    assert [token for _, place in found for token in ids[place]] == ids


def test_words_have_the_weights_of_their_pieces(vocabulary):
    source, target = ids_of(vocabulary, "__de__ ▁dog s"), ids_of(vocabulary, "▁a f .")
    weights = np.array(
        [[0.1, 0.2, 0.3, 0.4], [0.0, 0.5, 0.1, 0.4], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]], dtype=np.float32
    )
    merged = alignment(vocabulary, source, target, weights, "words")
    assert (merged.source, merged.target) == (("__de__", " dogs", "</s>"), (" af", ".", "</s>"))
    assert merged.as_dict()["weights"] == [[0.05, 0.55, 0.4], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    same = alignment(vocabulary, source, target, weights, "pieces")
    assert same.target == ("▁a", "f", ".", "</s>")
    assert (same.weights == weights).all()


def test_what_no_token_looks_at_is_uncovered(vocabulary):
    source = ids_of(vocabulary, "__de__ ▁The ▁dog s .")
    seen = COVERED / 2 + 0.01
    weights = np.array([[0, 0, seen, seen, 0, 1], [0, COVERED - 0.01, 0, 0, 0, 1]], dtype=np.float32)
    assert uncovered(vocabulary, source, weights) == ["The"]
    weights[1, 2:4] = weights[0, 2:4] = COVERED / 2 - 0.01, COVERED / 2
    assert uncovered(vocabulary, source, weights) == ["The", "dogs"]
    assert uncovered(vocabulary, source, weights[:1]) == []

"""The export as stock Marian, for models without embedding norm: exact, learned positions included, else refused."""

import pytest
import torch
from toys import random_model
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, MarianMTModel

from deltalm_ds.errors import InputError
from deltalm_ds.export.formats import marian
from deltalm_ds.files import read_json
from deltalm_ds.generation.engines.pytorch import PyTorchEngine
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.generation.loading import load_engine
from deltalm_ds.generation.translate import encoder_for, generate
from deltalm_ds.vocabulary import Vocabulary

SOURCES = [[5, 6, 7, 8, 9], [12], list(range(10, 45))]
TARGETS = [[20, 21], [23, 24, 25, 26], list(range(50, 85))]


@pytest.mark.parametrize(("decoder", "num_layers"), [("interleaved", 4), ("vanilla", 2)])
def test_scores_and_outputs_are_exact(decoder, num_layers, tmp_path):
    model = random_model(decoder=decoder, embedding_norm=False)
    marian.write_marian(model, None, tmp_path, "float32")
    assert read_json(tmp_path / "config.json")["decoder_layers"] == num_layers
    engines = PyTorchEngine(model), marian.open_marian(tmp_path)
    for a, b in zip(*(engine.score(SOURCES, TARGETS) for engine in engines), strict=True):
        assert b == pytest.approx(a, abs=1e-5)
    for options in (SearchOptions(beam=1), SearchOptions(max_length=30, length_penalty=0.5)):
        ours, theirs = (generate(engine, SOURCES, options) for engine in engines)
        assert [best.ids for (best,) in ours] == [best.ids for (best,) in theirs]


@pytest.fixture
def written(tmp_path):
    """(our model, its export)."""
    model = random_model(embedding_norm=False)
    marian.write_marian(model, None, tmp_path, "float32")
    return model, tmp_path


def test_stock_marian_takes_every_tensor(written):
    model, out = written
    theirs, info = MarianMTModel.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for stack in ("encoder", "decoder"):
        learned = getattr(model, stack).embedding.positions
        assert torch.equal(getattr(theirs.model, stack).embed_positions.weight, learned)


def test_what_is_saved_again_keeps_its_positions_as_the_model_card_says(written, tmp_path):
    model, out = written
    theirs = MarianMTModel.from_pretrained(out)
    theirs.save_pretrained(tmp_path / "lost")
    with pytest.raises(AssertionError):  # if this works one day, the card needs no advice
        _compare(model, tmp_path / "lost")
    assert "model._keys_to_ignore_on_save = None" in marian.FORMAT.note
    theirs._keys_to_ignore_on_save = None
    theirs.save_pretrained(tmp_path / "kept")
    _compare(model, tmp_path / "kept")


def _compare(model, directory):
    engines = PyTorchEngine(model), marian.open_marian(directory)
    for a, b in zip(*(engine.score(SOURCES, TARGETS) for engine in engines), strict=True):
        assert b == pytest.approx(a, abs=1e-5)


def test_generate_as_a_user_calls_it(large_with_text, tmp_path):
    """Lines of unequal length in one batch; nothing but the directory is given."""
    vocabulary = Vocabulary.load(large_with_text)
    engine = load_engine(large_with_text)
    marian.write_marian(engine.model, vocabulary, tmp_path, "float32")
    lines = ["A dog is running.", "3,5 km  oder 12½ Meilen?", "Ein Hund"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    batch = tokenizer([f"__de__ {line}" for line in lines], return_tensors="pt", padding=True)
    outputs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).generate(**batch)
    encode = encoder_for(vocabulary, "de")
    ours = generate(engine, [encode(line) for line in lines], SearchOptions())
    assert tokenizer.batch_decode(outputs, skip_special_tokens=True) == [
        vocabulary.decode(best.ids) for (best,) in ours
    ]


def test_what_marian_cannot_express_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"Marian does not norm its embeddings.*base.*export it to bart"):
        marian.write_marian(random_model(), None, tmp_path, "float32")
    with pytest.raises(InputError, match="Marian's LayerNorm has epsilon 1e-05 and this model's 1e-06"):
        marian.write_marian(random_model(embedding_norm=False, layer_norm_eps=1e-6), None, tmp_path, "float32")
    assert list(tmp_path.iterdir()) == []

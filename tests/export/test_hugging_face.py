"""The Hugging Face export, whose model is code of ours: outputs, cache, padding, training, loading and back."""

import json

import pytest
import torch
from toys import random_model, save

from deltalm_ds.checkpoints.directory import load_model, load_weights
from deltalm_ds.checkpoints.initialise import unchanged_initialisation
from deltalm_ds.checkpoints.sources import recognise
from deltalm_ds.export.formats import load_format
from deltalm_ds.export.formats.huggingface import open_huggingface, write_huggingface
from deltalm_ds.export.hugging_face_files.modeling_deltalm import DeltaLMForConditionalGeneration
from deltalm_ds.export.package import export
from deltalm_ds.generation.engines.pytorch import PyTorchEngine
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.generation.loading import load_engine
from deltalm_ds.generation.translate import generate
from deltalm_ds.model.packing import PackedSequences
from deltalm_ds.vocabulary import Vocabulary

SOURCES = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14]]
TARGETS = [[20, 21, 22], [23, 24, 25, 26, 27], [28]]
OPTIONS = (
    SearchOptions(),
    SearchOptions(length_penalty=0.6),
    SearchOptions(length_penalty=0.0),
    SearchOptions(min_length=10),
    SearchOptions(beam=1, max_length=5),
    SearchOptions(max_length=5),
    SearchOptions(no_repeat_ngram_size=2),
    SearchOptions(beam=2, max_length=1),
)


@pytest.mark.parametrize("decoder", ["interleaved", "vanilla"])
@pytest.mark.parametrize("embedding_norm", [True, False])
def test_scores_are_exact(decoder, embedding_norm, tmp_path):
    model = random_model(decoder=decoder, embedding_norm=embedding_norm)
    write_huggingface(model, None, tmp_path, "float32")
    ours, theirs = (engine.score(SOURCES, TARGETS) for engine in (PyTorchEngine(model), open_huggingface(tmp_path)))
    for a, b in zip(ours, theirs, strict=True):
        assert b == pytest.approx(a, abs=1e-5)


@pytest.mark.parametrize("to", ["huggingface", "bart"])
def test_a_trained_model_gives_the_same_outputs(to, trained, tmp_path):
    """All ways of searching that a user can set; of more than the best output fairseq's rules may choose others."""
    directory, sources = trained
    export(directory, tmp_path / "out", to, check_sources=sources)
    engines = load_engine(directory), load_format(to).open(tmp_path / "out")
    for options in OPTIONS:
        ours, theirs = (generate(engine, sources, options) for engine in engines)
        for (a,), (b,) in zip(ours, theirs, strict=True):
            assert a.ids == b.ids
            assert b.score == pytest.approx(a.score, abs=2e-5)


def test_generate_as_a_user_calls_it(with_text, tmp_path):
    """generation_config.json has our search, and the tokenizer our ids: nothing else needs to be given."""
    from transformers import AutoTokenizer

    lines = ["A dog is running.", "3,5 km  oder 12½ Meilen?", ""]
    export(with_text, tmp_path / "out", "huggingface", check_sources=[[7, 8, 9]])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    batch = tokenizer([f"__de__ {line}" for line in lines], return_tensors="pt", padding=True)
    vocabulary = Vocabulary.load(with_text)
    sources = [[vocabulary.language_id("de"), *vocabulary.encode(line).tolist()] for line in lines]
    found = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert found == [[*source, 2] for source in sources]
    outputs = DeltaLMForConditionalGeneration.from_pretrained(tmp_path / "out").generate(**batch)
    ours = [hypotheses[0].ids for hypotheses in generate(load_engine(with_text), sources, SearchOptions())]
    assert tokenizer.batch_decode(outputs, skip_special_tokens=True) == [vocabulary.decode(ids) for ids in ours]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(our model, the same in transformers, its directory)."""
    model, directory = random_model(), tmp_path_factory.mktemp("exported")
    write_huggingface(model, None, directory, "float32")
    theirs, info = DeltaLMForConditionalGeneration.from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    return model, theirs.eval(), directory


def padded(sequences, value=1):
    tensors = [torch.tensor(ids) for ids in sequences]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)


@torch.no_grad()
def test_the_cache_changes_nothing(exported):
    _, model, _ = exported
    source, target = padded(SOURCES[:2]), torch.tensor([[2, 30, 31, 32], [2, 33, 34, 35]])
    mask = (source != 1).long()
    full = model(source, mask, target).logits
    first = model(source, mask, target[:, :2], use_cache=True)
    rest = model(
        encoder_outputs=(first.encoder_last_hidden_state,),
        attention_mask=mask,
        decoder_input_ids=target[:, 2:],
        past_key_values=first.past_key_values,
    )
    assert torch.cat([first.logits, rest.logits], dim=1).numpy() == pytest.approx(full.numpy(), abs=1e-5)


@torch.no_grad()
def test_padding_changes_nothing(exported):
    _, model, _ = exported
    source, target = padded(SOURCES), padded([[2, *ids] for ids in TARGETS])
    together = model(source, (source != 1).long(), target, decoder_attention_mask=(target != 1).long()).logits
    for row, ids in enumerate(TARGETS):
        alone = model(torch.tensor([SOURCES[row]]), None, torch.tensor([[2, *ids]])).logits[0]
        assert together[row, : len(alone)].numpy() == pytest.approx(alone.numpy(), abs=1e-5)


def test_the_loss_and_its_gradient_are_ours(exported):
    """The mean over target tokens, where ours is the sum."""
    ours, theirs, _ = exported
    labels = padded([[*ids, 2] for ids in TARGETS], -100)
    source = padded(SOURCES)
    loss = theirs(source, (source != 1).long(), labels=labels).loss
    loss.backward()
    packed, inputs, expected = (
        PackedSequences.from_sequences(ids)
        for ids in (SOURCES, [[2, *ids] for ids in TARGETS], [[*ids, 2] for ids in TARGETS])
    )
    mean = ours(packed, inputs, expected.tokens).loss / len(expected.tokens)
    assert loss.item() == pytest.approx(mean.item(), abs=1e-5)
    mean.backward()
    table = ours.token_embedding.weight
    gradient = theirs.get_input_embeddings().weight.grad
    row = theirs.config.pad_token_id  # an nn.Embedding's padding row has no gradient but that of the output layer
    difference = (gradient - table.grad[: len(gradient)]).abs()
    assert torch.cat([difference[:row], difference[row + 1 :]]).max() < 1e-6


def test_what_transformers_saves_it_loads(exported, tmp_path):
    _, model, _ = exported
    model.save_pretrained(tmp_path)
    again = DeltaLMForConditionalGeneration.from_pretrained(tmp_path)
    source = padded(SOURCES[:1])
    with torch.no_grad():
        assert torch.equal(*(m.eval()(source, None, source).logits for m in (model, again)))


def test_a_source_that_is_too_long_is_refused(exported):
    with pytest.raises(ValueError, match="41 tokens; the model takes at most 40"):
        exported[1](torch.full((1, 41), 7), None, torch.tensor([[2]]))


@pytest.mark.parametrize("embedding_norm", [True, False])
def test_it_comes_back(embedding_norm, tmp_path):
    """`deltalm init` reads it as it reads other ports of DeltaLM."""
    model = random_model(embedding_norm=embedding_norm)
    write_huggingface(model, None, tmp_path, "float32")
    back = unchanged_initialisation(recognise(tmp_path)).model()
    assert back.config.embedding_norm == embedding_norm
    for name, tensor in back.state_dict().items():
        rows = model.config.vocabulary_size if name == "token_embedding.weight" else len(tensor)
        assert torch.equal(tensor[:rows], model.state_dict()[name][:rows])


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_is_close_and_half_as_large(precision, trained, tmp_path):
    report = export(trained[0], tmp_path / "out", "huggingface", precision, trained[1])
    assert 0 < report.mean_error <= 0.01
    size = (tmp_path / "out/model.safetensors").stat().st_size
    assert size < 0.55 * (trained[0] / "model.safetensors").stat().st_size
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == precision
    assert str(open_huggingface(tmp_path / "out").model.dtype) == f"torch.{precision}"


def test_writing_leaves_the_model_alone(tmp_path):
    model = load_model(save(random_model(), tmp_path / "model"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write_huggingface(model, None, tmp_path, "float16")
    load_weights(model, before, "before")
    assert model.state_dict().keys() == before.keys()

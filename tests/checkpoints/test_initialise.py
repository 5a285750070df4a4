"""A new model from each kind of source: its weights, the report, and that a failure leaves nothing."""

import errno
import json
import re

import pytest
import torch
from foreign import NUM_HEADS, finetuned_names, hugging_face_names, init, write_dictionary, xlm_roberta
from transformers import XLMRobertaModel

from deltalm_ds.checkpoints.directory import load_model
from deltalm_ds.checkpoints.initialise import summary, unchanged_initialisation
from deltalm_ds.checkpoints.sources import recognise
from deltalm_ds.checkpoints.tensor_files import TensorFile
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.files import read_json
from deltalm_ds.vocabulary import Vocabulary

OFFICIAL_HEADS = 4


@pytest.fixture
def released(fixtures):
    return dict(torch.load(fixtures / "official_base.pt", weights_only=True)["weights"])


def save(path, state, key="weights"):
    path.parent.mkdir(exist_ok=True)
    torch.save({key: state} if key else state, path)
    return path


# --- DeltaLM files ---


def test_all_forms_of_a_deltalm_give_the_same_model(fixtures, released, tmp_path):
    dictionary = write_dictionary(tmp_path, 996)
    forms = {
        "released": fixtures / "official_base.pt",
        "finetuned": save(tmp_path / "finetuned.pt", finetuned_names(released), "model"),
        "port": save(tmp_path / "port.bin", hugging_face_names(released), None),
    }
    unchanged = unchanged_initialisation(recognise(forms["released"]), OFFICIAL_HEADS).model().state_dict()
    for name, path in forms.items():
        init(path, tmp_path / name, OFFICIAL_HEADS, dictionary=dictionary)
        model = load_model(tmp_path / name)
        assert model.config.max_positions == 64
        for parameter, weight in model.named_parameters():
            assert torch.equal(weight, unchanged[parameter]), (name, parameter)
        assert Vocabulary.load(tmp_path / name).num_tokens == 1000


def test_the_trained_files_are_equal(reference):
    models = [
        unchanged_initialisation(recognise(reference / "base_trained" / name), OFFICIAL_HEADS).model().state_dict()
        for name in ("pretrained.pt", "finetuned.pt")
    ]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_rows_stay_in_their_order(released, fixtures):
    """Row i of the table is token i; the two unused rows before the first position go."""
    weights = unchanged_initialisation(recognise(fixtures / "official_base.pt"), OFFICIAL_HEADS).weights
    assert torch.equal(weights["token_embedding.weight"]()[:1000], released["tgt_embedding.embed_tokens.weight"])
    assert not weights["token_embedding.weight"]()[1000:].any()
    positions = released["src_embedding.embed_positions.weight"]
    assert torch.equal(weights["encoder.embedding.positions"](), positions[2:])


def test_surplus_rows_are_reported(fixtures, tmp_path):
    dictionary = write_dictionary(tmp_path, 986)
    report = init(fixtures / "official_base.pt", tmp_path / "out", OFFICIAL_HEADS, dictionary=dictionary)
    assert report["rows"]["unnamed_dropped"] == 10
    model = load_model(tmp_path / "out")
    assert model.config.vocabulary_size == 990
    assert not model.token_embedding.weight[990:].any()


def test_surplus_rows_and_positions_of_the_reference(reference, tmp_path):
    path = reference / "base" / "pretrained_morerows.pt"
    report = init(path, tmp_path / "out", OFFICIAL_HEADS)
    assert report["rows"]["unnamed_dropped"] == 104
    assert report["positions"]["source"] == {"encoder.embedding.positions": 96, "decoder.embedding.positions": 96}
    assert report["model"]["max_positions"] == 96
    with pytest.raises(InputError, match="96 positions and 64 are wanted"):
        init(path, tmp_path / "short", OFFICIAL_HEADS, max_positions=64)
    init(path, tmp_path / "short", OFFICIAL_HEADS, max_positions=64, fit="truncate")
    init(reference / "base" / "pretrained.pt", tmp_path / "official", OFFICIAL_HEADS)
    short, official = (load_model(tmp_path / name).state_dict() for name in ("short", "official"))
    assert all(torch.equal(short[name], official[name]) for name in official)


def test_the_other_order_of_ffns(fixtures, tmp_path):
    """As the community's converter: each FFN of a block in the other's place, norms where they were."""
    path, dictionary = fixtures / "official_base.pt", write_dictionary(tmp_path, 996)
    init(path, tmp_path / "a", OFFICIAL_HEADS, dictionary=dictionary)
    init(path, tmp_path / "b", OFFICIAL_HEADS, layers=(None, None, "swapped"), dictionary=dictionary)
    official, swapped = (load_model(tmp_path / name).state_dict() for name in "ab")
    for name, weight in official.items():
        ffn = re.search(r"ffn_[12](?=\.(input|output))", name)
        other = name.replace(ffn[0], f"ffn_{3 - int(ffn[0][-1])}") if ffn else name
        assert torch.equal(swapped[other], weight), name
    assert not torch.equal(
        official["decoder.blocks.0.ffn_1.input.weight"], swapped["decoder.blocks.0.ffn_1.input.weight"]
    )


# --- other depths ---


def test_a_model_in_memory_shares_no_weights(xlmr):
    """Encoder and decoder start from the same tensors; training one must not change the other."""
    model = unchanged_initialisation(recognise(xlmr)).model()
    assert len({weight.untyped_storage().data_ptr() for weight in model.parameters()}) == len([*model.parameters()])


def test_a_deeper_decoder_and_a_shallower_encoder(xlmr, tmp_path):
    init(xlmr, tmp_path / "all", NUM_HEADS)
    init(xlmr, tmp_path / "out", NUM_HEADS, layers=("0 3", "0,1 0,1 3,2"))
    whole, model = load_model(tmp_path / "all"), load_model(tmp_path / "out")
    assert (model.config.num_encoder_layers, model.config.num_decoder_blocks) == (2, 3)
    for i, j in ((0, 0), (1, 3)):
        theirs = whole.encoder.layers[j].state_dict()
        assert all(torch.equal(theirs[name], w) for name, w in model.encoder.layers[i].state_dict().items())
    third = model.decoder.blocks[2]
    for made, origin in ((third.ffn_1, 3), (third.ffn_2, 2)):
        theirs = whole.encoder.layers[origin].ffn.state_dict()
        assert all(torch.equal(theirs[name], weight) for name, weight in made.state_dict().items())


# --- the decoder that the paper compares with ---


def vanilla_decoder(xlmr, out, cross_attention, **options):
    """The report of an initialisation, and the blocks that it made."""
    report = init(xlmr, out, NUM_HEADS, layers=(None, None, "official", "vanilla", cross_attention), **options)
    return report, load_model(out).decoder.blocks


def test_a_vanilla_decoder_starts_from_the_lowest_layers(xlmr, tmp_path):
    """Self-attention and FFN of block i are those of encoder layer i; so is the cross-attention where it is copied."""
    theirs = XLMRobertaModel.from_pretrained(xlmr).encoder.layer
    report, blocks = vanilla_decoder(xlmr, tmp_path / "copied", "copied")
    _, partly_random = vanilla_decoder(xlmr, tmp_path / "random", "random")
    assert report["decoder"] == "vanilla" and len(blocks) == len(theirs) // 2
    for layer, *both in zip(theirs, blocks, partly_random, strict=False):
        attention, output = layer.attention.self, layer.attention.output
        for block in both:
            qkv = torch.cat([attention.query.weight, attention.key.weight, attention.value.weight])
            assert torch.equal(block.self_attention.query_key_value.weight, qkv)
            assert torch.equal(block.self_attention.norm.bias, output.LayerNorm.bias)
            assert torch.equal(block.ffn.input.weight, layer.intermediate.dense.weight)
            assert torch.equal(block.ffn.norm.weight, layer.output.LayerNorm.weight)
        cross = both[0].cross_attention
        assert torch.equal(cross.query.weight, attention.query.weight)
        assert torch.equal(cross.key_value.bias, torch.cat([attention.key.bias, attention.value.bias]))
        assert torch.equal(cross.output.weight, output.dense.weight)
        assert torch.equal(cross.norm.weight, output.LayerNorm.weight)


def test_random_cross_attention_is_that_of_a_fresh_model(xlmr, tmp_path):
    """Xavier-uniform within its bound, drawn by seed and name alone; zero biases, and a norm that does nothing."""
    report, blocks = vanilla_decoder(xlmr, tmp_path / "a", "random", seed=5)
    _, again = vanilla_decoder(xlmr, tmp_path / "b", "random", seed=5)
    _, other = vanilla_decoder(xlmr, tmp_path / "c", "random", seed=6)
    numbers = []
    for name, weight in blocks.named_parameters():
        assert torch.equal(weight, again.get_parameter(name))
        fresh = ".cross_attention." in name
        assert (report["tensors"][f"decoder.blocks.{name}"] == "nothing: as in a fresh model, by seed 5") == fresh
        if fresh and weight.dim() == 2:
            assert not torch.equal(weight, other.get_parameter(name))
            numbers.append(weight.flatten() / (6 / sum(weight.shape)) ** 0.5)
        elif fresh:
            assert torch.all(weight == (1 if name.endswith("norm.weight") else 0))
    numbers = torch.cat(numbers)  # uniform in [-1, 1]
    assert numbers.abs().max() <= 1 and abs(numbers.std() - 3**-0.5) < 0.03 and abs(numbers.mean()) < 0.05
    assert len(numbers.unique()) > 0.95 * len(numbers)  # no two matrices are the same


def test_an_encoder_over_a_vocabulary_of_ours(tmp_path):
    """Trained by transformers on our ids, tags and sentinels included, with the vocabulary beside it: all rows stay."""
    Vocabulary.from_dict(write_dictionary(tmp_path, 90), num_sentinels=3, languages=["en", "de"]).save(
        tmp_path / "xlmr"
    )
    theirs = xlm_roberta(2)  # 4 special tokens, 90 pieces, 3 sentinels, 2 tags, and <mask>
    theirs.save_pretrained(tmp_path / "xlmr")
    report = init(tmp_path / "xlmr", tmp_path / "out", NUM_HEADS)
    assert report["rows"]["kept"] == 99 and report["rows"]["dropped"] == ["<mask>"] and not report["rows"]["new"]
    assert Vocabulary.load(tmp_path / "out").hash == Vocabulary.load(tmp_path / "xlmr").hash
    table = load_model(tmp_path / "out").token_embedding.weight
    assert torch.equal(table[:99], theirs.roberta.embeddings.word_embeddings.weight[:99])


def test_blocks_of_a_deltalm_can_be_chosen(fixtures, tmp_path):
    dictionary = write_dictionary(tmp_path, 996)
    arguments = fixtures / "official_base.pt", tmp_path / "out", OFFICIAL_HEADS
    report = init(*arguments, layers=(None, "1 0,3 0"), dictionary=dictionary)
    whole = unchanged_initialisation(recognise(fixtures / "official_base.pt"), OFFICIAL_HEADS).model()
    made = load_model(tmp_path / "out")
    for i, j in ((0, 1), (2, 0)):
        theirs = whole.decoder.blocks[j].state_dict()
        assert all(torch.equal(theirs[name], w) for name, w in made.decoder.blocks[i].state_dict().items())
    fused = whole.encoder.layers[3].self_attention.query_key_value.weight
    assert torch.equal(made.decoder.blocks[1].cross_attention.query.weight, fused[:64])
    assert torch.equal(made.decoder.blocks[1].cross_attention.key_value.weight, fused[64:])
    assert torch.equal(made.decoder.embedding.positions, whole.decoder.embedding.positions)
    assert report["layer_map"] == [1, [0, 3], 0]


# --- the report ---


@pytest.mark.parametrize("layers", [(), ("3 1", "0,1"), (None, "1"), ("0", "0,0 1")])
def test_every_tensor_is_in_the_report(layers, released, tmp_path):
    """Each of ours has an origin that exists; each of theirs makes one of ours, or is named with the reason."""
    path = save(tmp_path / "m" / "m.pt", finetuned_names(released), "model")
    write_dictionary(path.parent, 996)
    report = init(path, tmp_path / "out", OFFICIAL_HEADS, layers=layers)
    model = load_model(tmp_path / "out")
    assert report["tensors"].keys() == dict(model.named_parameters()).keys()
    used = set()
    for text in report["tensors"].values():
        name = re.sub(r"\[\d+:\d*\]$", "", text)
        start, _, rest = name.partition("{")
        middle, _, end = rest.partition("}")
        used |= {f"{start}{part}{end}" for part in middle.split(",")}
    theirs = finetuned_names(released).keys()
    assert used <= theirs
    assert report["unused"].keys() == theirs - used
    assert set(report["unused"].values()) <= {
        "left out by the layer map",
        "a copy of the token table",
        "DeltaLM has no use for it",
    }
    provenance = read_json(tmp_path / "out" / "config.json")["provenance"]
    assert provenance["made_by"] == "deltalm init" and provenance["kind"] == "deltalm-finetuned"
    short = json.loads(json.dumps(summary(report)))
    assert {**short, **provenance} == {**provenance, **short}
    assert len(json.dumps(short["tensors"])) < len(json.dumps(report["tensors"]))


def test_a_table_that_differs_is_reported(released, tmp_path):
    released["src_embedding.embed_tokens.weight"] = released["src_embedding.embed_tokens.weight"] + 1
    path = save(tmp_path / "m" / "m.pt", released)
    write_dictionary(path.parent, 996)
    report = init(path, tmp_path / "out", OFFICIAL_HEADS)
    reason = "a token table that differs from the one taken"
    assert report["unused"] == {"src_embedding.embed_tokens.weight": reason}


# --- failures while it is written ---


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system", "out"),
        PermissionError(errno.EACCES, "Permission denied", "out"),
        KeyboardInterrupt(),
        MemoryError(),
    ],
    ids=repr,
)
def test_an_interrupted_conversion_leaves_nothing(error, xlmr, tmp_path, monkeypatch):
    read, number = TensorFile.__getitem__, iter(range(1000))

    def fail_after_some(self, name):
        if next(number) == 20:
            raise error
        return read(self, name)

    monkeypatch.setattr(TensorFile, "__getitem__", fail_after_some)
    with pytest.raises(type(error)):
        init(xlmr, tmp_path / "out", NUM_HEADS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["xlmr"]


def test_an_existing_directory_is_left_alone(xlmr, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        init(xlmr, tmp_path / "out", NUM_HEADS)
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["precious"]


def test_a_source_without_a_vocabulary(xlmr, tmp_path):
    (xlmr / "dict.txt").unlink()
    with pytest.raises(InputError, match="There is no vocabulary beside"):
        init(xlmr, tmp_path / "out", NUM_HEADS)


def test_a_source_with_a_wrong_tensor_leaves_nothing(released, tmp_path):
    released["decoder.layers.1.ffn_1.fc2.bias"] = torch.zeros(3)
    path = save(tmp_path / "m" / "m.pt", released)
    with pytest.raises(DataError, match=r"decoder\.layers\.1\.ffn_1\.fc2\.bias in .* has shape \(3,\)"):
        init(path, tmp_path / "out", OFFICIAL_HEADS)
    assert not (tmp_path / "out").exists()


# --- weights that are no numbers ---


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("decoder.layers.1.ffn_1.fc2.bias", "decoder.layers.1.ffn_1.fc2.bias"),
        ("encoder.layers.3.self_attn.k_proj.weight", "encoder.layers.3.self_attn.{q,k,v}_proj.weight"),
        ("tgt_embedding.embed_tokens.weight", "tgt_embedding.embed_tokens.weight"),
    ],
)
def test_weights_that_are_not_finite_are_named(name, shown, value, released, tmp_path):
    released[name] = released[name].clone()
    released[name].view(-1)[-1] = float(value)
    path = save(tmp_path / "m" / "m.pt", released)
    write_dictionary(path.parent, 996)
    with pytest.raises(DataError, match=re.escape(f"{shown} in {path} holds NaN or infinite numbers")):
        init(path, tmp_path / "out", OFFICIAL_HEADS)
    assert not (tmp_path / "out").exists()


def test_rows_that_are_dropped_may_hold_anything(released, tmp_path):
    released["tgt_embedding.embed_tokens.weight"] = released["tgt_embedding.embed_tokens.weight"].clone()
    released["tgt_embedding.embed_tokens.weight"][-1] = float("nan")
    del released["src_embedding.embed_tokens.weight"]
    path = save(tmp_path / "m" / "m.pt", released)
    write_dictionary(path.parent, 986)
    init(path, tmp_path / "out", OFFICIAL_HEADS)
    assert all(weight.isfinite().all() for weight in load_model(tmp_path / "out").state_dict().values())

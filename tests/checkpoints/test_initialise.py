"""A new model from each kind of source: weights, rows, positions, the report, and that a failure leaves nothing."""

import errno
import json
import re

import pytest
import torch
from foreign import (
    NUM_HEADS,
    NUM_PIECES,
    NUM_POSITIONS,
    NUM_ROWS,
    finetuned_names,
    hugging_face_names,
    write_dictionary,
    xlm_roberta,
)

from deltalm_ds.checkpoints.directory import load_model
from deltalm_ds.checkpoints.initialise import (
    initialise,
    own_vocabulary,
    source_tokens,
    summary,
    unchanged_initialisation,
)
from deltalm_ds.checkpoints.layer_map import make_layer_map
from deltalm_ds.checkpoints.sources import recognise
from deltalm_ds.checkpoints.tensor_files import TensorFile
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.files import read_json
from deltalm_ds.vocabulary import Vocabulary

OFFICIAL_HEADS = 4


@pytest.fixture
def released(fixtures):
    return dict(torch.load(fixtures / "official_base.pt", weights_only=True)["weights"])


@pytest.fixture
def xlmr(tmp_path):
    """An XLM-R directory with its dictionary; the test may ask for its tensors by `recognise`."""
    directory = tmp_path / "xlmr"
    xlm_roberta(4).save_pretrained(directory)
    write_dictionary(directory)
    return directory


def save(path, state, key="weights"):
    path.parent.mkdir(exist_ok=True)
    torch.save({key: state} if key else state, path)
    return path


def init(path, out, num_heads=None, vocabulary=None, layers=(), dictionary=None, **options):
    source = recognise(path)
    layer_map = make_layer_map(source.sizes, *layers)
    own = own_vocabulary(source, dictionary)
    return initialise(source, out, layer_map, own, vocabulary, num_heads=num_heads, **options)


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


# --- vocabulary and positions ---


def make_vocabulary(directory, num_pieces, **blocks):
    directory.mkdir()
    return Vocabulary.from_dict(write_dictionary(directory, num_pieces), **blocks)


def test_new_tokens_never_inherit_a_row(xlmr, tmp_path):
    """Tags and sentinels where the source has pieces: none takes the row of that number."""
    vocabulary = make_vocabulary(tmp_path / "v", 50, num_sentinels=20, languages=("de", "tr"))
    report = init(xlmr, tmp_path / "out", NUM_HEADS, vocabulary, copies={"__tr__": "piece7"})
    table, theirs = load_model(tmp_path / "out").token_embedding.weight, recognise(xlmr).read("token_embedding.weight")
    assert torch.equal(table[:54], theirs[:54])
    assert torch.equal(table[vocabulary.language_id("tr")], theirs[4 + 7])
    new = [*vocabulary.sentinel_ids, vocabulary.language_id("de")]
    distances = torch.cdist(table[new], theirs)
    assert distances.min() > 0.01
    assert not table[vocabulary.num_tokens :].any()
    rows = report["rows"]
    assert rows["kept"] == 54 and rows["copied"] == ["__tr__"]
    assert rows["new"] == [*(f"<extra_id_{i}>" for i in range(20)), "__de__"]
    assert rows["dropped"] == [*(f"piece{i}" for i in range(50, NUM_PIECES)), "<mask>"]


def test_the_mask_is_a_named_row(xlmr, tmp_path):
    vocabulary = make_vocabulary(tmp_path / "v", NUM_PIECES, num_sentinels=0, tasks=("<mask>",))
    report = init(xlmr, tmp_path / "out", NUM_HEADS, vocabulary)
    assert report["rows"]["kept"] == NUM_ROWS and report["rows"]["dropped"] == []
    table = load_model(tmp_path / "out").token_embedding.weight
    assert torch.equal(table[:NUM_ROWS], recognise(xlmr).read("token_embedding.weight"))


def test_an_own_model_gets_language_tags(xlmr, tmp_path):
    init(xlmr, tmp_path / "first", NUM_HEADS)
    vocabulary = make_vocabulary(tmp_path / "v", NUM_PIECES, num_sentinels=0, languages=("de",))
    report = init(tmp_path / "first", tmp_path / "second", vocabulary=vocabulary)
    assert report["rows"] == {
        "source": 128,
        "kept": 99,
        "copied": [],
        "new": ["__de__"],
        "dropped": [],
        "unnamed_dropped": 0,
    }
    first, second = (load_model(tmp_path / name).state_dict() for name in ("first", "second"))
    for name, weight in second.items():
        rows = 99 if name == "token_embedding.weight" else None
        assert torch.equal(weight[:rows], first[name][:rows]), name
    again = init(tmp_path / "second", tmp_path / "third")
    assert again["rows"]["new"] == [] and Vocabulary.load(tmp_path / "third").hash == vocabulary.hash


def test_the_settings_of_an_own_model_stay(xlmr, tmp_path):
    init(xlmr, tmp_path / "first", NUM_HEADS)
    config = read_json(tmp_path / "first" / "config.json")
    config["model"]["dropout"] = 0.25
    (tmp_path / "first" / "config.json").write_text(json.dumps(config))
    init(tmp_path / "first", tmp_path / "second", layers=("0", "0"))
    assert load_model(tmp_path / "second").config.dropout == 0.25


@pytest.mark.parametrize("num_pieces", [NUM_PIECES - 1, NUM_PIECES + 2, 20])
def test_a_dictionary_that_is_not_the_checkpoints(num_pieces, xlmr, tmp_path):
    """XLM-R's table has a row for each token and the mask, no more and no less."""
    write_dictionary(xlmr, num_pieces)
    names = num_pieces + 4 + (num_pieces + 4 < NUM_ROWS)
    with pytest.raises(InputError, match=f"has 100 embedding rows, its dictionary {names} tokens: wrong dict"):
        init(xlmr, tmp_path / "out", NUM_HEADS)
    assert not (tmp_path / "out").exists()


def test_without_a_mask(xlmr):
    write_dictionary(xlmr, NUM_PIECES + 1)
    source = recognise(xlmr)
    assert source_tokens(source, own_vocabulary(source))[-1] == f"piece{NUM_PIECES}"


@pytest.mark.parametrize(("wanted", "fit"), [(20, "truncate"), (70, "extend"), (NUM_POSITIONS, None)])
def test_positions(wanted, fit, xlmr, tmp_path):
    init(xlmr, tmp_path / "out", NUM_HEADS, max_positions=wanted, fit=fit)
    model, theirs = load_model(tmp_path / "out"), recognise(xlmr).read("encoder.embedding.positions")
    for positions in (model.encoder.embedding.positions, model.decoder.embedding.positions):
        assert len(positions) == wanted
        assert torch.equal(positions[:NUM_POSITIONS], theirs[:wanted])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_positions": 20}, "The source has 30 positions and 20 are wanted"),
        ({"max_positions": 40, "fit": "truncate"}, "The source has 30 positions and 40 are wanted"),
        ({"num_heads": 4}, "has 2 heads, not 4: leave out --heads"),
        ({"copies": {"__xx__": "piece1"}}, "no token '__xx__' in the new vocabulary"),
        ({"copies": {"piece2": "piece1"}}, "'piece2' keeps its own row"),
    ],
)
def test_options_that_do_not_fit(options, message, xlmr, tmp_path):
    with pytest.raises(InputError, match=re.escape(message)):
        init(xlmr, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("num_heads", "message"),
    [(None, "64 wide, which no official size is: give the number of heads (--heads)"), (5, "does not divide")],
)
def test_heads_that_nothing_states(num_heads, message, fixtures):
    with pytest.raises(InputError, match=re.escape(message)):
        unchanged_initialisation(recognise(fixtures / "official_base.pt"), num_heads)


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

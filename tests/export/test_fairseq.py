"""Back to fairseq: the file has what fairseq's trainer writes, and our own reader gets the same model from it.

Microsoft's code itself, which needs an old Python, is no dependency; what it needs of `cfg` was found by loading such
files with it strictly.
"""

import argparse
import ast
import errno
import json

import pytest
import torch

from deltalm_ds.checkpoints.initialise import unchanged_initialisation
from deltalm_ds.checkpoints.names import POSITION_OFFSET
from deltalm_ds.checkpoints.sources import recognise
from deltalm_ds.errors import InputError
from deltalm_ds.export.formats.fairseq import write_fairseq
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.token_ids import SPECIAL_TOKENS
from deltalm_ds.vocabulary import Vocabulary

SIZES = {"vocabulary_size": 20, "hidden_size": 16, "ffn_size": 32, "num_heads": 2, "max_positions": 6}


def make_model(**changes):
    torch.manual_seed(0)
    model = DeltaLM(DeltaLMConfig.preset("tiny", **{**SIZES, **changes}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    with torch.no_grad():
        model.token_embedding.weight[model.config.vocabulary_size :] = 0
    return model.eval()


def load(path):
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path / "finetuned.pt", weights_only=True)


def read_back(path):
    """As `deltalm init` reads it."""
    return unchanged_initialisation(recognise(path / "finetuned.pt")).model()


def vocabulary(tmp_path):
    dictionary = tmp_path / "pieces.txt"
    dictionary.write_text("".join(f"piece{i} 1\n" for i in range(11)))
    return Vocabulary.from_dict(dictionary, num_sentinels=2, languages=["de", "en"], tasks=["[S]"])


@pytest.mark.parametrize("changes", [{}, {"embedding_norm": False}, {"num_decoder_blocks": 3, "num_encoder_layers": 1}])
def test_our_reader_gets_the_same_model(changes, tmp_path):
    model = make_model(**changes)
    write_fairseq(model, None, tmp_path, "float32")
    found = read_back(tmp_path)
    assert found.config == model.config
    weights = found.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())


def test_fairseqs_own_file_comes_back(reference, tmp_path):
    """Every tensor that fairseq's trainer wrote, but the rows that nothing reads."""
    official = load(reference / "base")
    write_fairseq(read_back(reference / "base"), None, tmp_path, "float32")
    found = load(tmp_path)["model"]
    assert found.keys() == official["model"].keys()
    for name, tensor in official["model"].items():
        first_read = POSITION_OFFSET if "embed_positions" in name else 0
        assert torch.equal(found[name][first_read:], tensor[first_read:]), name


def test_form_is_that_of_fairseqs_own_file(fixtures, tmp_path):
    """Keys, types and shapes as fairseq's trainer wrote them for this model; of the settings those that we write."""
    official = json.loads((fixtures / "fairseq_finetuned.json").read_text())
    sizes = {"vocabulary_size": 1000, "hidden_size": 64, "ffn_size": 128, "num_heads": 4, "max_positions": 64}
    model = make_model(**sizes, num_encoder_layers=4, num_decoder_blocks=2, dropout=0.0)
    write_fairseq(model, None, tmp_path, "float32")
    found = load(tmp_path)
    assert list(found) == official["keys"]
    tensors = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in found["model"].items()}
    assert tensors == official["tensors"]
    settings, task = vars(found["cfg"]["model"]), found["cfg"]["task"]
    ours = settings | {"_name": "deltalm_tiny_base", "arch": "deltalm_tiny_base"}  # registered for the reference
    assert {name: official["model"][name] for name in ours} == ours
    assert {name: official["task"][name] for name in task} == task


def test_the_table_is_stored_once_and_without_padding_rows(tmp_path):
    model = make_model(vocabulary_size=10_000)
    write_fairseq(model, None, tmp_path, "float32")
    content = load(tmp_path)["model"]
    tables = [content[f"{name}.weight"] for name in ("encoder.embed_tokens", "decoder.embed_tokens")]
    tables.append(content["decoder.output_projection.weight"])
    assert {len(table) for table in tables} == {10_000}
    assert len({table.data_ptr() for table in tables}) == 1
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert (tmp_path / "finetuned.pt").stat().st_size < weights + 100_000


def test_half_precision(tmp_path):
    model = make_model()
    write_fairseq(model, None, tmp_path, "float16")
    found = read_back(tmp_path).state_dict()
    assert all(torch.equal(found[name], weight.half().float()) for name, weight in model.state_dict().items())


def test_every_token_is_a_line_of_dict_txt(tmp_path):
    """fairseq appends no tags by itself: line i is id 4 + i, up to the last token."""
    words = vocabulary(tmp_path)
    write_fairseq(make_model(), words, tmp_path, "float32")
    lines = (tmp_path / "dict.txt").read_bytes().decode().split("\n")
    assert lines.pop() == ""
    assert lines == [f"{words.token(4 + i)} 1" for i in range(words.num_tokens - 4)]
    assert lines[-5:] == ["<extra_id_0> 1", "<extra_id_1> 1", "__de__ 1", "__en__ 1", "[S] 1"]
    assert Vocabulary.from_dict(tmp_path / "dict.txt", num_sentinels=0).num_tokens == words.num_tokens


@pytest.mark.parametrize(
    ("preset", "changes", "architecture"),
    [
        ("base", {}, "deltalm_base"),
        ("base", {"max_positions": 9, "dropout": 0.3}, "deltalm_base"),
        ("large", {}, "deltalm_large"),
        ("base", {"embedding_norm": False}, "deltalm_any"),
        ("large", {"num_heads": 8}, "deltalm_any"),
        ("tiny", {}, "deltalm_any"),
    ],
)
def test_architecture(preset, changes, architecture, tmp_path, monkeypatch):
    """Microsoft's code takes all sizes but the positions from the architecture's name."""
    config = DeltaLMConfig.preset(preset, vocabulary_size=20, **changes)
    model = make_model()
    model.config = config
    monkeypatch.setattr(
        "deltalm_ds.export.formats.fairseq._fairseq_state", lambda *_: {}
    )  # large has no need to be made
    write_fairseq(model, None, tmp_path, "float32")
    settings = load(tmp_path)["cfg"]["model"]
    assert settings._name == settings.arch == architecture
    assert settings.max_source_positions == settings.max_target_positions == config.max_positions
    plug_in = tmp_path / "deltalm_any" / "__init__.py"
    assert plug_in.exists() == (architecture == "deltalm_any")
    if plug_in.exists():
        assert "deltalm_any" in {node.value for node in ast.walk(ast.parse(plug_in.read_text())) if is_text(node)}


def is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": "vanilla"}, "interleaved blocks only: this model's decoder is vanilla"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-05, this model's 1e-06"),
    ],
)
def test_what_fairseq_has_not(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        write_fairseq(make_model(**changes), None, tmp_path, "float32")
    assert list(tmp_path.iterdir()) == []


def test_a_token_that_no_dict_txt_can_hold(tmp_path):
    pieces = ("a\rb", *(f"piece{i}" for i in range(15)))
    blocks = {"special": SPECIAL_TOKENS, "pieces": pieces, "sentinels": (), "languages": (), "tasks": ()}
    words = Vocabulary({**blocks, "padding": tuple(f"<padding_{i}>" for i in range(44))})
    with pytest.raises(InputError, match=r"'a\\rb' cannot stand in a dict\.txt"):
        write_fairseq(make_model(), words, tmp_path, "float32")


def test_a_full_disk_is_an_operating_systems_error(tmp_path):
    (tmp_path / "finetuned.pt").symlink_to("/dev/full")
    with pytest.raises(OSError) as caught:
        write_fairseq(make_model(), None, tmp_path, "float32")
    assert caught.value.errno == errno.ENOSPC

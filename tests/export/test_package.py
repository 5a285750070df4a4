"""What all formats share: files, model card and its example, refusals, and nothing left behind by a failure."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from toys import random_model, save
from typer.testing import CliRunner

from deltalm_ds.cli import app
from deltalm_ds.errors import CheckError, DataError, InputError
from deltalm_ds.export import package
from deltalm_ds.export.formats import FORMATS, load_format
from deltalm_ds.export.package import export
from deltalm_ds.files import read_json
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.generation.loading import load_engine
from deltalm_ds.generation.translate import encoder_for, generate
from deltalm_ds.vocabulary import Vocabulary


@pytest.fixture
def run_example(monkeypatch, capsys):
    """Runs the model card's program, as printed, beside the export; gives what it prints."""

    def run(out):
        card = (out / "README.md").read_text(encoding="utf-8")
        (program,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        monkeypatch.chdir(out.parent)
        capsys.readouterr()
        exec(program, {"__name__": "__main__"})
        return capsys.readouterr().out.strip()

    return run


@pytest.mark.parametrize("to", FORMATS)
def test_an_export_of_a_model_with_text(to, request, tmp_path, run_example):
    """Float32 is exact in every format, and the example prints what our own search finds."""
    with_text = request.getfixturevalue("large_with_text" if to == "marian" else "with_text")
    vocabulary = Vocabulary.load(with_text)
    source = encoder_for(vocabulary, "de")("A dog is running.")
    report = export(with_text, tmp_path / "out", to, check_sources=[source, source[:3]])
    assert report.is_exact and report.holds and report.max_error <= 2e-5
    assert Vocabulary.load(tmp_path / "out").hash == vocabulary.hash
    about = read_json(tmp_path / "out/deltalm.json")
    assert (about["format"], about["precision"], about["languages"]) == (to, "float32", ["en", "de"])
    assert about["parity"] == report.as_dict() and about["provenance"] == {"made_by": "a test"}
    assert (about["vocabulary_size"], about["max_positions"]) == (vocabulary.num_tokens, 64)
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert str(report) in card and 'language: ["en", "de"]' in card and "a test" in card
    ((best,),) = generate(load_engine(with_text), [source], SearchOptions())
    assert 3 <= len(best.ids) < 50
    printed = run_example(tmp_path / "out")
    assert printed.startswith("deltalm_any ") if to == "fairseq" else printed == vocabulary.decode(best.ids)


@pytest.mark.parametrize("to", ["ctranslate2", "huggingface", "onnx"])
def test_an_export_of_a_model_for_ids(to, trained, tmp_path, run_example):
    export(trained[0], tmp_path / "out", to, check_sources=trained[1][:5])
    assert not list((tmp_path / "out").glob("*tokenizer*")) and not (tmp_path / "out/vocabulary.json").exists()
    ((best,),) = generate(load_engine(trained[0]), [[4, 5, 6]], SearchOptions())
    assert list(map(int, re.findall(r"\d+", run_example(tmp_path / "out")))) in (list(best.ids), [2, *best.ids, 2])


@pytest.mark.parametrize("to", FORMATS)
def test_what_is_not_read_back_exactly_is_refused(to, trained, tmp_path, monkeypatch):
    """Whatever a writer gets wrong: here one weight, and for lossy precisions before they could hide it."""
    export_format = load_format(to)
    directory, sources = trained
    if to == "marian":
        directory, sources = save(random_model(embedding_norm=False), tmp_path / "large"), [[5, 6, 7, 8], [9]]

    def write_wrong(model, *arguments):
        model.decoder.blocks[0].cross_attention.output.bias.data[:5] += 0.5
        export_format.write(model, *arguments)
        model.decoder.blocks[0].cross_attention.output.bias.data[:5] -= 0.5

    monkeypatch.setattr(f"deltalm_ds.export.formats.{to}.FORMAT", replace(export_format, write=write_wrong))
    for precision in export_format.precisions[:2]:
        with pytest.raises(CheckError, match="nothing was written"):
            export(directory, tmp_path / "out", to, precision, sources)
    assert not (tmp_path / "out").exists()


def test_a_lossy_precision_has_its_own_limits(trained, tmp_path, monkeypatch):
    report = export(trained[0], tmp_path / "out", "ctranslate2", "int8", trained[1])
    assert not report.is_exact and report.max_error > 1e-4
    assert not replace(report, is_exact=True).holds
    assert not replace(report, score_loss=0.2).holds
    about = read_json(tmp_path / "out/deltalm.json")
    assert about["computed_as"] == "int8"
    no_int8 = replace(load_format("ctranslate2"), computed_as=lambda _: "float32")
    monkeypatch.setattr("deltalm_ds.export.formats.ctranslate2.FORMAT", no_int8)
    export(trained[0], tmp_path / "out2", "ctranslate2", "int8", trained[1])
    assert "int8 (checked on a CPU that has no int8: computed as float32)" in (tmp_path / "out2/README.md").read_text()


def test_bad_requests_are_refused(trained, tmp_path):
    with pytest.raises(InputError, match="'tensorrt' to export to: choose one of ctranslate2, huggingface"):
        export(trained[0], tmp_path / "out", "tensorrt")
    with pytest.raises(InputError, match="the nearest is 'ctranslate2'"):
        export(trained[0], tmp_path / "out", "ctranslate")
    with pytest.raises(InputError, match="BART has no precision 'int8': choose one of float32, float16"):
        export(trained[0], tmp_path / "out", "bart", "int8")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    with pytest.raises(InputError, match="exists already"):
        export(trained[0], tmp_path / "full")


@pytest.mark.parametrize("value", ["nan", "-inf"])
def test_a_model_whose_weights_are_not_finite_is_refused(value, tmp_path):
    model = random_model()
    model.decoder.blocks[1].cross_attention.key_value.weight.data[3, 4] = float(value)
    save(model, tmp_path / "model")
    message = r"decoder\.blocks\.1\.cross_attention\.key_value\.weight in .*model holds NaN or infinite numbers"
    with pytest.raises(DataError, match=message):
        export(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_help_names_every_format():
    help_text = CliRunner().invoke(app, ["export", "--help"]).output
    assert ", ".join(FORMATS) in re.sub(r"[\s│]+", " ", help_text)


def test_the_guide_lists_every_format():
    """Its table: name (the first is the default), title and precisions."""
    guide = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`(?: \(default\))? \| ([^|]+) \| ([^|]+) \|", guide, re.MULTILINE)
    formats = {name: load_format(name) for name in FORMATS}
    assert rows == [(name, row.title, ", ".join(row.precisions)) for name, row in formats.items()]


def test_a_missing_package_is_named(trained, tmp_path, monkeypatch):
    for module in [name for name in sys.modules if name.startswith("deltalm_ds.export.hugging_face_files")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"needs the package transformers: pip install 'deltalm-ds\[export\]'"):
        export(trained[0], tmp_path / "out", "huggingface")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_leaves_nothing(trained, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(package, "model_card", fail)
    with pytest.raises(KeyboardInterrupt):
        export(trained[0], tmp_path / "out", check_sources=trained[1][:2])
    assert list(tmp_path.iterdir()) == []


def test_random_sentences_do_for_a_check(tmp_path):
    report = export(save(random_model(), tmp_path / "model"), tmp_path / "out", "huggingface")
    assert report.num_sentences == 32 and report.num_tokens > 300

"""COMET and COMETKiwi: the scores of unbabel-comet, on tiny checkpoints in the published layout."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from comet_checkpoints import OUTPUTS, REFERENCES, SOURCES, VARIANTS, write_checkpoint, write_tokenizer
from typer.testing import CliRunner

from deltalm_ds.cli import app
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.evaluation.metrics.comet import COMET_MODEL, COMETKIWI_MODEL
from deltalm_ds.evaluation.metrics.comet_network import sparsemax
from deltalm_ds.evaluation.metrics.interface import References

GIVEN = References(REFERENCES, "en", sources=SOURCES)
# names the python of an environment with unbabel-comet 2.2.7, "setuptools<81" and "sentencepiece<0.2.1"
UNBABEL = "COMET_PYTHON"
PROGRAM = """
import json, sys
from comet import load_from_checkpoint
samples, paths = json.load(sys.stdin)
for path in paths:
    model = load_from_checkpoint(path, local_files_only=True)
    print("scores", model.predict(samples, batch_size=2, gpus=0, progress_bar=False, num_workers=0)["scores"])
"""
# what unbabel-comet 2.2.7 gives; test_unbabel_comet_gives_the_recorded_scores makes them again
RECORDED = {
    "sparsemax": [1.1470816, 1.2782027, 1.3471887, 0.6077211, 1.393239],
    "softmax": [0.7394946, 0.6981614, 0.6680894, 0.7019572, 0.6779902],
    "layer": [-0.3438879, -0.3197267, -0.37354, -0.2572661, -0.3819524],
    "kiwi": [-0.2962526, -0.1881406, -0.2661425, -0.3042583, -0.1234287],
    "patched": [0.0772445, 0.082048, 0.2168854, 0.0721813, 0.175954],
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The directory of each variant."""
    base = tmp_path_factory.mktemp("comet")
    return {name: write_checkpoint(base / name, kind, **settings) for name, (kind, settings) in VARIANTS.items()}


@pytest.fixture
def scorer(checkpoints, monkeypatch):
    """The scorer of a variant for references."""

    def make(variant="sparsemax", references=GIVEN):
        name = "comet" if VARIANTS[variant][0] == "regression_metric" else "cometkiwi"
        monkeypatch.setenv(COMET_MODEL if name == "comet" else COMETKIWI_MODEL, str(checkpoints[variant]))
        return METRICS[name].scorer(references)

    return make


def values(score):
    """Of each sentence, as unbabel-comet writes it."""
    return score.statistics.rows[:, 0] / 100


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_are_those_of_unbabel_comet(variant, scorer):
    found = scorer(variant).score(OUTPUTS)
    assert values(found) == pytest.approx(RECORDED[variant], abs=1e-5)
    assert found.value == pytest.approx(100 * np.mean(RECORDED[variant]), abs=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(UNBABEL not in os.environ, reason=f"{UNBABEL} names no python that has unbabel-comet")
def test_unbabel_comet_gives_the_recorded_scores(checkpoints, scorer):
    samples = [{"src": s, "mt": mt, "ref": r} for s, mt, r in zip(SOURCES, OUTPUTS, REFERENCES, strict=True)]
    paths = [str(path / "checkpoints" / "model.ckpt") for path in checkpoints.values()]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        [os.environ[UNBABEL], "-c", PROGRAM],
        input=json.dumps([samples, paths]),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    found = [json.loads(line) for line in re.findall(r"^scores (.*)$", process.stdout, re.MULTILINE)]
    for variant, scores in zip(checkpoints, found, strict=True):
        assert scores == pytest.approx(RECORDED[variant], abs=1e-5), (variant, scores)
        assert values(scorer(variant).score(OUTPUTS)) == pytest.approx(scores, abs=1e-5)


def test_a_sentence_scores_the_same_alone(scorer):
    for variant in ("sparsemax", "kiwi"):
        together = values(scorer(variant).score(OUTPUTS))
        for number, output in enumerate(OUTPUTS):
            alone = References([REFERENCES[number]], "en", sources=[SOURCES[number]])
            assert values(scorer(variant, alone).score([output])) == pytest.approx(together[number], abs=1e-6)


def test_of_several_references_the_best_counts(scorer):
    others = REFERENCES[1:] + REFERENCES[:1]
    further = [(), *((text,) for text in others[1:])]
    found = scorer(references=replace(GIVEN, further=further)).score(OUTPUTS)
    single = [values(scorer(references=replace(GIVEN, texts=texts)).score(OUTPUTS)) for texts in (REFERENCES, others)]
    best = np.maximum(*single)
    assert values(found) == pytest.approx([single[0][0], *best[1:]], abs=1e-6)
    assert 0 < sum(single[1][1:] > single[0][1:]) < len(best) - 1  # either has the best one somewhere
    assert found.signature.startswith("nrefs:var|model:")


def test_signatures_tell_checkpoints_apart(scorer):
    signatures = {scorer(variant).score(OUTPUTS).signature for variant in VARIANTS}
    assert len(signatures) == len(VARIANTS)
    assert scorer("kiwi", References(sources=SOURCES)).score(OUTPUTS).signature in signatures


def test_two_outputs_are_compared_on_the_command_line(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setenv(COMET_MODEL, str(checkpoints["sparsemax"]))
    monkeypatch.setenv(COMETKIWI_MODEL, str(checkpoints["kiwi"]))
    texts = {"a": OUTPUTS, "b": REFERENCES[::-1], "reference": REFERENCES, "source": SOURCES}
    for name, lines in texts.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    given = [f"--{name}={tmp_path / name}" for name in ("reference", "source")]
    outputs = [str(tmp_path / name) for name in ("a", "b")]
    found = CliRunner().invoke(app, ["compare", *outputs, *given, "--metrics=comet,cometkiwi", "--json"])
    assert found.exit_code == 0, found.output
    comet, kiwi = json.loads(found.stdout)["metrics"]
    assert (comet["first"], kiwi["first"]) == pytest.approx([100 * np.mean(RECORDED[x]) for x in ("sparsemax", "kiwi")])
    assert 48 < comet["agreement"] < 96.3


def test_sparsemax_is_the_nearest_point_of_the_simplex():
    x = torch.tensor(np.random.default_rng(0).normal(size=6)).float()
    low, high = x.min() - 1, x.max()
    for _ in range(60):  # the threshold above which the rest sums up to 1
        middle = (low + high) / 2
        low, high = (middle, high) if (x - middle).clamp(min=0).sum() > 1 else (low, middle)
    expected = (x - low).clamp(min=0)
    assert 0 < int((expected > 0).sum()) < 6
    assert sparsemax(x).tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def damage(directory, change):
    """Rewrite the checkpoint's file after a change of its content."""
    path = directory / "checkpoints" / "model.ckpt"
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def without(name):
    return lambda content: content["state_dict"].pop(name)


def setting(**settings):
    return lambda content: content["hyper_parameters"].update(settings)


class Other:
    """What no reader of tensors knows."""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("layerwise_attention.gamma"), r"model.ckpt lacks the tensor layerwise_attention.gamma: it is not"),
        (without("estimator.ff.3.weight"), r"model.ckpt has an estimator that does not fit its encoder"),
        (without("encoder.model.encoder.layer.1.output.dense.bias"), r"has no tensor for encoder.layers.1.fc2.bias"),
        (setting(encoder_model="RemBERT"), r"has encoder_model='RemBERT', which is not supported: known are XLM"),
        (setting(pool="max"), r"has pool='max', which is not supported: known are avg, cls"),
        (setting(layer=4), r"has layer=4: mix, or a number below 4"),
        (lambda content: content.update(other=Other()), r"needs the class or function .*Other.*save its tensors alone"),
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_one_sentence(change, message, checkpoints, tmp_path, monkeypatch):
    directory = shutil.copytree(checkpoints["sparsemax"], tmp_path / "comet")
    damage(directory, change)
    monkeypatch.setenv(COMET_MODEL, str(directory))
    with pytest.raises(InputError, match=message):
        METRICS["comet"].scorer(GIVEN)


def test_what_is_missing_or_wrong_is_one_sentence(checkpoints, tmp_path, monkeypatch):
    def refuses(metric, directory, message):
        monkeypatch.setenv(COMET_MODEL if metric == "comet" else COMETKIWI_MODEL, str(directory))
        with pytest.raises(InputError, match=message) as refusal:
            METRICS[metric].scorer(GIVEN)
        return refusal.value

    refuses("comet", "", "comet needs a checkpoint such as Unbabel/wmt22-comet-da: name its directory as COMET_MODEL")
    refuses("comet", tmp_path, r"lacks hparams.yaml, checkpoints/model.ckpt, sentencepiece.bpe.model: a checkpoint")
    refuses("comet", checkpoints["kiwi"], r"has class_identifier='unified_metric' where 'regression_metric' is needed")
    refuses("cometkiwi", checkpoints["sparsemax"], r"cometkiwi Unbabel/wmt22-cometkiwi-da\.")
    unite = write_checkpoint(tmp_path / "unite", "unified_metric", input_segments=["mt", "src", "ref"])
    refuses("cometkiwi", unite, r"reads \['mt', 'src', 'ref'\]: cometkiwi takes a model that reads mt and src alone")

    copies = [shutil.copytree(checkpoints["sparsemax"], tmp_path / str(number)) for number in range(5)]
    (copies[0] / "hparams.yaml").write_text("a: [")
    assert isinstance(refuses("comet", copies[0], r"hparams.yaml is not valid YAML"), DataError)
    (copies[1] / "hparams.yaml").write_text("[]")
    refuses("comet", copies[1], r"hparams.yaml has no settings by name")
    whole = (copies[2] / "checkpoints" / "model.ckpt").read_bytes()
    (copies[2] / "checkpoints" / "model.ckpt").write_bytes(whole[: len(whole) // 2])
    refuses("comet", copies[2], r"model.ckpt cannot be read as a PyTorch file of tensors: it is truncated or damaged")
    (copies[3] / "config.json").unlink()
    refuses("comet", copies[3], r"does not say how many heads its encoder has: put its config.json there")
    write_tokenizer(copies[4] / "sentencepiece.bpe.model", 70)
    refuses("comet", copies[4], r"makes a vocabulary of \d+ tokens, the encoder beside it has \d+: take the file of")


def test_settings_may_stand_in_hparams_alone(checkpoints, tmp_path, monkeypatch):
    """Where a file of tensors was made of the published one."""
    directory = shutil.copytree(checkpoints["softmax"], tmp_path / "comet")
    content = torch.load(directory / "checkpoints" / "model.ckpt", weights_only=True)
    stated = yaml.safe_load((directory / "hparams.yaml").read_text())
    (directory / "hparams.yaml").write_text(yaml.safe_dump(content["hyper_parameters"] | stated))
    torch.save({"state_dict": content["state_dict"]}, directory / "checkpoints" / "model.ckpt")
    monkeypatch.setenv(COMET_MODEL, str(directory))
    found = METRICS["comet"].scorer(GIVEN).score(OUTPUTS)
    assert values(found) == pytest.approx(RECORDED["softmax"], abs=1e-5)

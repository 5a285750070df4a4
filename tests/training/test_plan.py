"""`deltalm plan`: sampling, steps, sizes and checkpoints of a recipe, by hand and beside what training makes of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deltalm_ds.data.manifest import CorpusManifest, Manifest, token_type
from deltalm_ds.data.shards import ragged_batch, write_corpus
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.training import plan
from deltalm_ds.training.inputs import open_inputs
from deltalm_ds.training.out_of_memory import out_of_memory_told
from deltalm_ds.training.plan import make_plan
from deltalm_ds.vocabulary import BLOCK_NAMES, Vocabulary


def write_inputs(directory: Path) -> dict[str, Any]:
    """A recipe over pairs en-de (300 rows) and en-fr (100 rows), every sentence of 10 tokens."""
    blocks: dict[str, tuple[str, ...]] = dict.fromkeys(BLOCK_NAMES, ())
    blocks["special"] = ("<s>", "<pad>", "</s>", "<unk>")
    blocks["pieces"] = tuple(f"p{i}" for i in range(993))
    blocks["languages"] = ("__de__", "__en__", "__fr__")  # 1,000 tokens; 1,024 rows
    vocabulary = Vocabulary(blocks)
    (directory / "vocabulary").mkdir(parents=True)
    vocabulary.save(directory / "vocabulary")
    (directory / "train").mkdir()
    corpora = []
    for name, rows in (("en-de", 300), ("en-fr", 100)):
        side = np.full(rows * 10, 7), np.full(rows, 10)
        batch = ragged_batch({"source": side, "target": side}, token_type(1000))
        corpus = CorpusManifest(name, "parallel", tuple(name.split("-")))
        manifest = Manifest(vocabulary.hash, 1000)
        corpora.append(write_corpus(directory / "train", manifest, corpus, [batch], 1000))
    Manifest(vocabulary.hash, 1000, tuple(corpora)).write(directory / "train")
    return {
        "name": "plan",
        "vocabulary": str(directory / "vocabulary"),
        "model": {"preset": "tiny"},
        "data": {"train": [{"path": str(directory / "train")}], "max_source_tokens": 20, "max_target_tokens": 20},
        "sampling": {"temperature_end": 1.0},
        "batch": {"tokens_per_step": 230, "micro_batch_tokens": 60},
        "schedule": {"peak_lr": 1e-3, "warmup_steps": 20},
        "training": {"max_steps": 80, "save_every": 40, "keep_last": 3},
    }


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_inputs(tmp_path_factory.mktemp("plan"))


def recipe_of(content: dict[str, Any], **changes: Any) -> Recipe:
    return Recipe.model_validate(content | changes)


def test_sampling_and_passes(content: dict[str, Any]) -> None:
    # a pair gives 12 + 11 tokens (tag and </s>, </s>), so a step has 10 sequences; at T = 1, p = rows / 800
    components = {component["component"]: component for component in make_plan(recipe_of(content), 1)["components"]}
    assert list(components) == [f"seq2seq:{n}" for n in ("en-de:en-de", "en-de:de-en", "en-fr:en-fr", "en-fr:fr-en")]
    german, french = components["seq2seq:en-de:de-en"], components["seq2seq:en-fr:en-fr"]
    assert german["probability"] == pytest.approx({"first": 0.375, "middle": 0.375, "last": 0.375})
    assert (german["rows"], french["rows"]) == (300, 100)
    # 80 steps of 10 sequences are 800: each of the four components has passed over its rows once
    assert german["sequences"] == pytest.approx(300) and french["sequences"] == pytest.approx(100)
    assert german["passes"] == pytest.approx(1) and french["passes"] == pytest.approx(1)
    assert german["steps_per_pass_at_end"] == pytest.approx(80) == french["steps_per_pass_at_end"]


def test_sequences_are_those_that_are_drawn_under_a_rising_temperature(content: dict[str, Any]) -> None:
    recipe = recipe_of(content, sampling={"temperature_start": 1.0, "temperature_end": 5.0, "change_steps": 60})
    components = make_plan(recipe, 1)["components"]
    stream = open_inputs(recipe).stream
    drawn = np.sum([np.bincount(stream.global_batch(step).component_index, minlength=4) for step in range(80)], axis=0)
    assert all(abs(component["sequences"] - count) <= 1 for component, count in zip(components, drawn, strict=True))
    share = 3 ** (1 / 5) / (3 ** (1 / 5) + 1) / 2
    assert components[0]["probability"] == pytest.approx(
        {"first": 0.375, "middle": components[0]["probability"]["middle"], "last": share}
    )
    assert share < components[0]["probability"]["middle"] < 0.375


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_steps_are_those_that_training_makes(content: dict[str, Any], num_ranks: int) -> None:
    recipe = recipe_of(content)
    steps = make_plan(recipe, num_ranks)["steps"]
    assert [step["step"] for step in steps] == [0, 20, 40, 60, 79]
    # linear over 20 steps, then 1e-3 · sqrt(20 / n)
    expected = [0.0, 1e-3, 1e-3 * 0.5**0.5, 1e-3 * 3**-0.5, 1e-3 * (20 / 79) ** 0.5]
    assert [step["learning_rate"] for step in steps] == pytest.approx(expected)
    stream = open_inputs(recipe).stream
    for step in steps:
        made = [stream.micro_batches(step["step"], rank, num_ranks) for rank in range(num_ranks)]
        assert {len(one.micro_batches) for one in made} == {step["micro_batches_per_rank"]}
        assert step["sequences"] == made[0].num_sequences and step["sampling"] == {"temperature": 1.0}
        assert (step["source_tokens"], step["target_tokens"]) == (12 * step["sequences"], 11 * step["sequences"])
        assert step["target_tokens"] == made[0].num_target_tokens
        sizes = [len(b.source.tokens) + len(b.labels) for one in made for b in one.micro_batches if b.weight]
        assert step["largest_micro_batch_tokens"] == max(sizes) <= 60
        assert (step["truncated"], step["dropped"]) == (0, 0)


def test_truncated_and_dropped_sequences_are_counted(content: dict[str, Any]) -> None:
    data = content["data"] | {"max_source_tokens": 11}
    step = make_plan(recipe_of(content, data=data), 1)["steps"][0]
    assert step["truncated"] == step["sequences"] > 0
    with pytest.raises(InputError, match="64 of 64 steps looked at have no sequence to learn from"):
        make_plan(recipe_of(content, data=data | {"overlong": "drop"}), 1)


def test_parameters_and_checkpoints(content: dict[str, Any]) -> None:
    result = make_plan(recipe_of(content), 2)
    m, f = 128, 512
    attention, feed_forward = 4 * (m * m + m) + 2 * m, 2 * m * f + f + m + 2 * m
    encoder, decoder = 2 * (attention + feed_forward), 2 * attention + 2 * feed_forward
    positions = 2 * (256 * m + 2 * m)
    assert result["num_parameters"] == 1000 * m + positions + encoder + decoder
    assert result["num_parameters_with_padding_rows"] == result["num_parameters"] + 24 * m
    assert result["checkpoint_bytes"] == 12 * result["num_parameters_with_padding_rows"]
    assert result["checkpoints_bytes"] == 5 * result["checkpoint_bytes"]  # 3 kept, the best, the one being written
    keeps = {"max_steps": 80, "save_every": 20, "keep_last": 3, "keep_every": 40, "keep_best": {"count": 2}}
    more = make_plan(recipe_of(content, training=keeps), 2)
    assert more["checkpoints_bytes"] == 8 * result["checkpoint_bytes"]  # 3, the 2 best, of steps 40 and 80, and one
    memory = result["memory_bytes_per_rank"]
    assert memory["weights"] == 4 * result["num_parameters_with_padding_rows"]
    kept = 0 if torch.cuda.is_available() else 2  # the flat gradients of one of two ranks, on a CPU
    assert memory["gradients"] == (4 + kept) * result["num_parameters_with_padding_rows"]
    assert memory["optimizer"] == 4 * result["num_parameters_with_padding_rows"]  # two moments on one of two ranks
    assert memory["gradient_norm"] == 8 * 1024 * m  # of the token embedding
    states = ("weights", "gathered_weights", "gradients", "optimizer", "reduce_buckets")
    of_micro_batch = memory["activations"] + memory["loss"]
    beside = sum(memory[name] for name in states) + memory.get("libraries", 0)
    share = result["checkpoint_copy_bytes_per_rank"]
    assert share == 6 * result["num_parameters_with_padding_rows"]  # half of all, more than the embedding
    beside += memory.get("checkpoint_copy", 0)
    assert memory.get("checkpoint_copy", share) == share
    # what is sent is flattened once more, a whole bucket at most; on a CPU gloo gathers all weights into a copy
    assert memory["sent_gradients"] == 4 * result["num_parameters_with_padding_rows"]
    copies = 0 if torch.cuda.is_available() else memory["weights"]
    assert memory["copies_of_exchanges"] == copies
    largest = max(of_micro_batch, memory["gradient_norm"], memory["sent_gradients"])
    assert memory["total"] == beside + copies + largest


def test_graphs_keep_gradients_and_the_memory_of_a_micro_batch(
    content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(content, batch={"tokens_per_step": 5000, "micro_batch_tokens": 2500})
    without = make_plan(recipe, 2)
    monkeypatch.setattr(plan, "reason_against_graphs", lambda *_: None)
    with_graphs = make_plan(recipe, 2)
    assert (without["cuda_graphs"], with_graphs["cuda_graphs"]) == ("off: there is no GPU", "on")
    before, after = without["memory_bytes_per_rank"], with_graphs["memory_bytes_per_rank"]
    assert after["activations"] > before["activations"]  # of a micro-batch that is padded more
    added = 4 * without["num_parameters_with_padding_rows"] + after["activations"] + after["loss"]
    assert after["cuda_graphs"] == added
    assert after["total"] - added >= before["total"]


def test_what_is_frozen_and_what_is_averaged_in_memory_and_checkpoints(content: dict[str, Any]) -> None:
    plain = make_plan(recipe_of(content), 2)
    num_parameters, frozen = plain["num_parameters_with_padding_rows"], 1024 * 128
    training = content["training"] | {"average": {"decay": 0.9}}
    modes = make_plan(recipe_of(content, optimizer={"freeze": ["token_embedding.*"]}, training=training), 2)
    trained = num_parameters - frozen
    assert modes["num_trained_parameters"] == trained and plain["num_trained_parameters"] == num_parameters
    assert modes["checkpoint_bytes"] == 4 * num_parameters + 12 * trained
    before, after = plain["memory_bytes_per_rank"], modes["memory_bytes_per_rank"]
    assert after["weights"] == before["weights"]
    assert after["gradients"] * num_parameters == before["gradients"] * trained
    assert after["optimizer"] == 8 * trained // 2 and after["average"] == 4 * trained // 2
    ffn = 128 * 512  # the largest that is trained
    assert after["gradient_norm"] == 8 * ffn
    narrow = {"preset": "tiny", "hidden_size": 64, "ffn_size": 64, "max_positions": 64}
    many = make_plan(recipe_of(content, optimizer={"freeze": ["token_embedding.*"]}, model=narrow), 64)
    assert many["checkpoint_copy_bytes_per_rank"] == 4 * 1024 * 64  # one has the whole table, without moments


def test_an_average_lies_where_the_optimizer_does(content: dict[str, Any]) -> None:
    """And a run that is out of memory was planned with it."""
    training, offload = content["training"] | {"average": {"decay": 0.9}}, "fp32_zero2_offload_cpu"
    recipe = recipe_of(content, training=training, deepspeed=offload)
    plain, kept = make_plan(recipe_of(content, deepspeed=offload), 2), make_plan(recipe, 2)
    added = 4 * plain["num_parameters_with_padding_rows"] // 2
    memory = kept["memory_bytes_per_rank"]
    assert memory["offloaded"] == plain["memory_bytes_per_rank"]["offloaded"] + added and "average" not in memory
    config = DeltaLMConfig.model_validate(kept["model"])
    with (
        pytest.raises(InputError, match=r"optimizer 0\.00, .* average 0\.00, "),
        out_of_memory_told(recipe_of(content, training=training), config, 2),
    ):
        raise MemoryError


def test_r_drop_takes_two_passes_in_memory(content: dict[str, Any]) -> None:
    once, training = make_plan(recipe_of(content), 1)["memory_bytes_per_rank"], content["training"] | {"r_drop": 1.0}
    twice = make_plan(recipe_of(content, training=training), 1)["memory_bytes_per_rank"]
    assert twice["activations"] == pytest.approx(2 * once["activations"], rel=1e-6)
    assert twice["loss"] > once["loss"]


def test_a_plan_is_ready_for_json(content: dict[str, Any]) -> None:
    result = make_plan(recipe_of(content), 2)
    assert json.loads(json.dumps(result)) == result


def test_what_does_not_hold_is_refused_and_nothing_is_written(content: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nearest is 'fp32_zero"):
        make_plan(recipe_of(content, deepspeed="fp32_zero4"), 1)
    other = write_inputs(tmp_path)
    spoiled = tmp_path / "vocabulary" / "vocabulary.json"
    spoiled.write_text(spoiled.read_text().replace("__fr__", "__it__"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError):
        make_plan(recipe_of(other), 1)
    assert sorted(tmp_path.rglob("*")) == before

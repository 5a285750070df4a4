"""What N ranks would be given: against DeepSpeed's own launcher, against counting, and alike for every N."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from deepspeed.launcher import launch as deepspeed_launch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalm_ds.data.manifest import CorpusManifest, Manifest, token_type
from deltalm_ds.data.micro_batches import deal_micro_batches
from deltalm_ds.data.shards import ragged_batch, write_corpus
from deltalm_ds.errors import CheckError
from deltalm_ds.launch import dry_run as dry_run_module
from deltalm_ds.launch.dry_run import dry_run, faults_of_deal, faults_of_ranks, made_up_hosts, rank_environments
from deltalm_ds.launch.hostfile import Host, read_hostfile
from deltalm_ds.launch.ranks import launcher_command
from deltalm_ds.recipe.loading import load_recipe, recipe_path
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.vocabulary import Vocabulary

BUDGET = 100
HOSTS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True), min_size=1, max_size=5).map(
    lambda devices: [Host(f"n{number}", len(one), devices=tuple(one)) for number, one in enumerate(devices)]
)


Sides = dict[str, tuple[np.ndarray, np.ndarray]]


def make_shards(directory: Path, vocabulary: Vocabulary, kind: str, corpora: dict[tuple[str, ...], Sides]) -> Path:
    """A data set of such corpora by their languages; a side is tokens and lengths."""
    directory.mkdir(parents=True)
    manifest, written = Manifest(vocabulary.hash, vocabulary.num_tokens), []
    for languages, sides in corpora.items():
        corpus = CorpusManifest("-".join(languages), kind, languages)
        batch = ragged_batch(sides, token_type(vocabulary.num_tokens))
        written.append(write_corpus(directory, manifest, corpus, [batch]))
    Manifest(vocabulary.hash, vocabulary.num_tokens, tuple(written)).write(directory)
    return directory


def make_vocabulary(directory: Path, num_sentinels: int) -> Vocabulary:
    (directory / "dict.txt").write_text("".join(f"piece{number} 1\n" for number in range(60)))
    vocabulary = Vocabulary.from_dict(directory / "dict.txt", num_sentinels=num_sentinels, languages=("de", "en", "fr"))
    vocabulary.save(directory / "vocabulary")
    return vocabulary


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Pairs of 1 to 12 tokens, some 60 a step; its engine is none that this machine could train with."""
    directory = tmp_path_factory.mktemp("data")
    vocabulary = make_vocabulary(directory, 10)
    generator = np.random.default_rng(1)
    lengths = generator.integers(1, 12, 500)
    side = generator.integers(4, 60, lengths.sum()), lengths
    make_shards(directory / "train", vocabulary, "parallel", {("en", "de"): {"source": side, "target": side}})
    return Recipe.model_validate(
        {
            "name": "test",
            "deepspeed": "fp16_zero1",
            "vocabulary": directory / "vocabulary",
            "model": {"preset": "tiny"},
            "data": {"train": [{"path": directory / "train"}], "max_source_tokens": 32, "max_target_tokens": 32},
            "batch": {"tokens_per_step": 1000, "micro_batch_tokens": BUDGET},
            "schedule": {"peak_lr": 1e-3, "warmup_steps": 5},
            "training": {"max_steps": 40, "save_every": 10},
        }
    )


@given(HOSTS)
@settings(max_examples=50)
def test_environments_against_deepspeed(hosts: list[Host]) -> None:
    """What its launcher gives to the processes that it starts, on hosts of any sizes."""
    world = {str(number): [str(device) for device in host.devices] for number, host in enumerate(hosts)}
    found = []
    for number in range(len(hosts)):
        command = launcher_command(world, number, "n0", 29500, ["program", "argument"])
        started: list[dict[str, str]] = []

        class Process:
            pid, returncode = 1, 0

            def __init__(self, _command: list[str], env: dict[str, str], started: list = started) -> None:
                started.append(dict(env))

            def poll(self) -> int:
                return 0

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", command[2:])
            patch.setattr(deepspeed_launch, "subprocess", SimpleNamespace(Popen=Process))
            patch.setattr(deepspeed_launch, "time", SimpleNamespace(sleep=lambda _seconds: None))
            patch.setattr(deepspeed_launch.signal, "signal", lambda *_: None)
            deepspeed_launch.main()
        ours = rank_environments(command)
        assert [{name: one.get(name) for name in ours[0]} for one in started] == ours
        found += ours
    assert list(faults_of_ranks(found, hosts)) == []


@given(HOSTS, st.data())
def test_contradicting_ranks_are_found(hosts: list[Host], data: st.DataObject) -> None:
    """Whichever value of whichever rank is another, the rank is named."""
    world = {str(number): [str(device) for device in host.devices] for number, host in enumerate(hosts)}
    commands = [launcher_command(world, number, "n0", 29500, ["program"]) for number in range(len(hosts))]
    ranks = [dict(environment) for command in commands for environment in rank_environments(command)]
    rank = data.draw(st.integers(0, len(ranks) - 1))
    name = data.draw(st.sampled_from([name for name in ranks[rank] if len(ranks) > 1 or name != "LOCAL_RANK"]))
    if name == "LOCAL_RANK":  # that of a neighbour, or of nobody
        ranks[rank][name] = str((int(ranks[rank][name]) + 1) % (int(ranks[rank]["LOCAL_SIZE"]) + 1))
    else:
        ranks[rank][name] += "9"
    faults = list(faults_of_ranks(ranks, hosts))
    assert faults and (name == "LOCAL_RANK" or any(f"rank {rank} " in fault for fault in faults))
    assert list(faults_of_ranks(ranks[:-1], hosts))


def counted_faults(deal: list[list[np.ndarray]], tokens: np.ndarray) -> bool:
    """Whether a deal is wrong, by counting on one's fingers."""
    places = [(rank, turn) for number in range(len(tokens)) for rank, runs in enumerate(deal) for turn, run in
              enumerate(runs) if number in run.tolist()]  # fmt: skip
    once = len(places) == len(tokens) == sum(len(run) for runs in deal for run in runs)
    alike = all(len(runs) == len(deal[0]) for runs in deal)
    fits = all(sum(tokens[number] for number in run.tolist()) <= BUDGET for runs in deal for run in runs)
    return not (once and alike and fits)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 6), st.data())
@settings(max_examples=150)
def test_deals_against_counting(recipe: Recipe, lengths: list[int], num_ranks: int, data: st.DataObject) -> None:
    """A deal holds; one with a sequence lost, dealt twice or moved holds if counting says so."""
    tokens = 2 * np.array(lengths)
    deal = deal_micro_batches(tokens // 2, tokens // 2, num_ranks, BUDGET)
    assert not counted_faults(deal, tokens)
    assert list(faults_of_deal(deal, tokens, recipe)) == []
    rank, to = (data.draw(st.integers(0, num_ranks - 1)) for _ in range(2))
    turn = data.draw(st.integers(0, len(deal[0]) - 1))
    kind = data.draw(st.sampled_from(["lost", "twice", "moved", "shorter"]))
    run = deal[rank][turn]
    if kind == "shorter":
        del deal[rank][turn]
    elif len(run):
        if kind != "twice":
            deal[rank][turn] = run[1:]
        if kind != "lost":
            deal[to][0] = np.append(deal[to][0], run[0])
    assert bool(list(faults_of_deal(deal, tokens, recipe))) == counted_faults(deal, tokens)


def test_the_same_global_batches_on_any_number_of_ranks(recipe: Recipe) -> None:
    results = {num_ranks: dry_run(recipe, num_ranks) for num_ranks in (1, 3, 32)}
    batches = [[step["global_batch"] for step in result["steps"]] for result in results.values()]
    assert batches[1:] == batches[:-1]
    assert len(set(batches[0])) == len(batches[0])
    for num_ranks, result in results.items():
        assert [int(one["RANK"]) for one in result["ranks"]] == list(range(num_ranks))
        assert all(step["tokens"] <= num_ranks * step["micro_batches_per_rank"] * BUDGET for step in result["steps"])
        assert all(step["largest_micro_batch_tokens"] <= BUDGET for step in result["steps"])


def test_a_thousand_ranks(recipe: Recipe) -> None:
    """More ranks than sequences: those that have none are told."""
    result = dry_run(recipe, 1024)
    assert [host["name"] for host in result["hosts"]][::127] == ["host001", "host128"]
    assert result["ranks"][1023]["LOCAL_RANK"] == "7" and result["ranks"][1023]["MASTER_ADDR"] == "host001"
    for step in result["steps"]:
        assert step["idle_ranks"] == 1024 - step["sequences"]
    assert result["took"]["seconds"] > 0 and result["took"]["peak_bytes"] > 1 << 20


def test_the_pretraining_of_the_paper(tmp_path: Path) -> None:
    """The recipe on made-up text: windows of documents, a tenth of them shorter, and pairs of some 60 tokens."""
    vocabulary, generator = make_vocabulary(tmp_path, 300), np.random.default_rng(1)

    def side(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return generator.integers(4, 60, lengths.sum()), lengths

    def document_lengths(count: int) -> np.ndarray:
        return np.where(generator.random(count) < 0.9, 568, generator.integers(20, 568, count))

    lengths = np.clip(generator.lognormal(3.4, 0.7, 3000), 2, 250).astype(np.int64)
    pairs: dict[tuple[str, ...], Sides] = {("en", "de"): {"source": side(lengths), "target": side(lengths)}}
    text: dict[tuple[str, ...], Sides] = {(lang,): {"source": side(document_lengths(500))} for lang in ("de", "fr")}
    paths = {
        "data.train.0.path": make_shards(tmp_path / "mono", vocabulary, "mono", text),
        "data.train.1.path": make_shards(tmp_path / "pairs", vocabulary, "parallel", pairs),
        "vocabulary": tmp_path / "vocabulary",
    }
    changes = [f"{key}={path}" for key, path in paths.items()]
    changes += ["initial_model=", "model.preset=tiny", "model.max_positions=512", "validation="]
    recipe = load_recipe(recipe_path("pretrain_base_32xV100"), changes)
    hosts = read_hostfile(Path(dry_run_module.__file__).parent / "examples" / "hostfile.32xV100")
    of_32, of_1024 = dry_run(recipe, hosts)["steps"], dry_run(recipe, 1024)["steps"]
    assert [step["global_batch"] for step in of_32] == [step["global_batch"] for step in of_1024]
    for step in of_32:
        assert abs(step["tokens"] / recipe.batch.tokens_per_step - 1) < 0.02
        assert step["micro_batches_per_rank"] == 2
        assert step["most_tokens_of_a_rank"] < 1.15 * step["fewest_tokens_of_a_rank"]
    assert all(step["micro_batches_per_rank"] == 1 and not step["idle_ranks"] for step in of_1024)


def test_hosts_of_a_hostfile(recipe: Recipe) -> None:
    hosts = [Host("a", 2, devices=(1, 3)), Host("spare", 2, is_spare=True), Host("b", 1)]
    ranks = dry_run(recipe, hosts)["ranks"]
    assert [(one["MASTER_ADDR"], one["CUDA_VISIBLE_DEVICES"], one["CROSS_RANK"]) for one in ranks] == [
        ("a", "1,3", "0"),
        ("a", "1,3", "0"),
        ("a", "0", "1"),
    ]


def test_what_does_not_hold_is_told(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def short_of_one(*arguments: Any) -> list[list[np.ndarray]]:
        deal = deal_micro_batches(*arguments)
        deal[1][0] = deal[1][0][1:]
        return deal

    monkeypatch.setattr(dry_run_module, "deal_micro_batches", short_of_one)
    with pytest.raises(
        CheckError, match=r"A launch on 2 ranks would not hold together:\n  step 0: sequence .* 0 times"
    ):
        dry_run(recipe, 2)


def test_made_up_hosts() -> None:
    assert [(host.name, host.slots) for host in made_up_hosts(20)] == [("host1", 8), ("host2", 8), ("host3", 4)]

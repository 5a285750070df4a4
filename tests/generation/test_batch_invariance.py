"""On a CPU in float32 an engine of frozen weights gives a sentence, to the last bit, what it gives it alone."""

import random

import pytest
import torch

from deltalm_ds.generation.engines.pytorch import engine_of_frozen
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.kernels.torch_internals import has_onednn_packing
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM

pytestmark = pytest.mark.skipif(not has_onednn_packing(torch.float32), reason="PyTorch is built without oneDNN")

VOCABULARY = 300


@pytest.fixture(autouse=True, scope="module")
def _libraries_are_chosen():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DELTALM_LINEAR", "auto")
        yield


@pytest.fixture(scope="module", params=["interleaved", "vanilla"])
def engine(request):
    """Sizes that are no multiples of vectors, and an FFN long enough for its products to be cut up."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "num_heads": 3, "ffn_size": 1544, "num_encoder_layers": 2, "num_decoder_blocks": 1}
    config = DeltaLMConfig(**sizes, vocabulary_size=VOCABULARY, max_positions=90, decoder=request.param)
    model = DeltaLM(config)
    model.token_embedding.weight.data *= 6  # outputs that differ
    return engine_of_frozen(model)


@pytest.fixture(params=[1, 2])
def _threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def sequences(seed, lengths):
    draw = random.Random(seed)
    return [[draw.randrange(4, VOCABULARY) for _ in range(length)] for length in lengths]


SOURCES = sequences(1, (3, 40, 7, 15, 16, 16, 1, 29, 3, 70, 33, 48))
TARGETS = sequences(5, (5, 1, 30, 16, 9, 60, 2, 21, 21, 3, 8, 17))


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize(
    "options",
    [
        SearchOptions(beam=1, max_length=20),
        SearchOptions(beam=4, n_best=4, max_length=20),
        SearchOptions(beam=3, max_length=12, min_length_ratio=0.3, no_repeat_ngram_size=2, prefix=(9, 5)),
        SearchOptions(n_best=3, max_length=12, temperature=1.3, top_k=40, seed=3),
    ],
    ids=["greedy", "beam", "bounds", "samples"],
)
def test_hypotheses_do_not_depend_on_the_batch(engine, options):
    alone = [engine.generate([source], options)[0] for source in SOURCES]
    assert len({hypotheses[0].score for hypotheses in alone}) > len(SOURCES) // 2
    assert engine.generate(SOURCES, options) == alone
    few, order = [4, 9, 1, 11], random.Random(2).sample(range(len(SOURCES)), len(SOURCES))
    assert engine.generate([SOURCES[n] for n in few], options) == [alone[n] for n in few]
    assert engine.generate([SOURCES[n] for n in order], options) == [alone[n] for n in order]


@pytest.mark.usefixtures("_threads")
def test_scores_do_not_depend_on_the_batch(engine):
    scores = engine.score(SOURCES, TARGETS)
    assert [engine.score([source], [target])[0] for source, target in zip(SOURCES, TARGETS, strict=True)] == scores


@pytest.mark.usefixtures("_threads")
def test_attention_does_not_depend_on_the_batch(engine):
    found = engine.attention(SOURCES, TARGETS)
    for source, target, of_pair in zip(SOURCES, TARGETS, found, strict=True):
        (alone,) = engine.attention([source], [target])
        assert alone.shape == (len(target) + 1, len(source) + 1)
        assert alone.tolist() == of_pair.tolist()


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("beam", [1, 3])
def test_hypotheses_do_not_depend_on_what_runs_beside(engine, beam):
    """Sentences enter a running search alone, in pairs and in threes, one step or three apart."""
    options, search, found, entered = SearchOptions(beam, max_length=20), engine.start_search(), {}, {}
    waiting = [SOURCES[:1], SOURCES[1:3], SOURCES[3:6], SOURCES[6:7], SOURCES[7:9], SOURCES[9:]]
    for number, sources in enumerate(waiting):
        entered |= dict(zip(search.admit(sources, options), sources, strict=True))
        for _ in range(1 + number % 2 * 2):
            found |= search.step()
    while search.num_groups:
        found |= search.step()
    assert [found[number] for number in entered] == [
        engine.generate([source], options)[0] for source in entered.values()
    ]

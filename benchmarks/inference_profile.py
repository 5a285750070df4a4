"""Where the time of our search goes on a CPU, stage by stage, beside the roofline of the same stages."""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.inference_roofline import ATTENTION, ENCODER, OUTPUT, PRODUCTS
from benchmarks.stages import REST, StageClock
from deltalm_ds.generation import beam_search
from deltalm_ds.kernels import feed_forward
from deltalm_ds.model import cache, layers
from deltalm_ds.model.deltalm import DeltaLM

CACHE, NORMS, TOP_K, BOOKKEEPING = "cache", "norms and embeddings", "top-k", "bookkeeping"
FUNCTIONS: tuple[tuple[Any, str, str], ...] = (
    (DeltaLM, "start_decoding", ENCODER),
    (DeltaLM, "logits", OUTPUT),
    (layers, "linear", PRODUCTS),
    (feed_forward, "linear", PRODUCTS),
    (feed_forward, "linear_gelu", PRODUCTS),
    (cache, "decode_attention", ATTENTION),
    (cache.SelfAttentionCache, "_append", CACHE),
    (cache.DecoderCache, "reserve", CACHE),
    (cache.DecoderCache, "begin_step", CACHE),
    (cache.DecoderCache, "end_step", CACHE),
    (cache.DecoderCache, "select_rows", CACHE),
    (layers.PostNorm, "forward", NORMS),
    (layers.Embedding, "forward", NORMS),
    (beam_search, "top_k", TOP_K),
    (beam_search.Search, "take", BOOKKEEPING),
    (beam_search.Search, "unfinished", BOOKKEEPING),
)
WHOLE = (ENCODER, OUTPUT)  # with the products that they call
STAGES = (ENCODER, PRODUCTS, OUTPUT, ATTENTION, CACHE, NORMS, TOP_K, BOOKKEEPING, REST)


def profile(search: Callable[[], object], times: int) -> dict[str, float]:
    """Seconds of each stage of a search of ours, which was made before; they sum up to the whole."""
    clock = StageClock()
    for owner, name, stage in FUNCTIONS:
        clock.time(owner, name, stage, whole=stage in WHOLE)
    clock.go_to(REST)
    clock.seconds.clear()
    for _ in range(times):
        search()
    clock.go_to(REST)
    return {stage: clock.seconds[stage] / times for stage in STAGES}


def rows_of_stages(seconds: Mapping[str, float], roofline: Mapping[str, float], num_steps: int) -> list[dict[str, Any]]:
    """A table's rows, the whole last. seconds: of a search; roofline: seconds a step."""
    whole = sum(seconds.values())
    parts = [(stage, took, roofline.get(stage)) for stage, took in seconds.items()]
    return [
        {
            "stage": stage,
            "ms a step": took / num_steps * 1e3,
            "of all": took / whole,
            **({} if least is None else {"roofline ms a step": least * 1e3, "x roofline": took / num_steps / least}),
        }
        for stage, took, least in [*parts, ("all", whole, sum(roofline.values()))]
    ]

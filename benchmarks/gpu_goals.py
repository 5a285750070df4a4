"""The goals of the GPU path: what is measured for each, from rows of `benchmarks.gpu` on a GPU, and what is asked.

Ratios are of times or rates measured side by side in one run; more is better unless the goal says `at most`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

Row = dict[str, Any]
Rows = Sequence[Row]

OURS = "ours"
PEERS_OF_ATTENTION = ("FlashAttention-2", "memory-efficient", "cuDNN, dense", "padded SDPA")
RAGGED = ("mixed", "dropout 0.1")  # in the name of a setting
OUR_ENGINE = "pytorch-bfloat16"


@dataclass(frozen=True)
class Goal:
    """What is asked: of which part's rows, how much, and by whom; `measure` gives None where there are no such rows."""

    name: str
    part: str
    limit: float
    measure: Callable[[Rows], float | None]
    at_most: bool = False
    source: str = "the project's goal"

    def judge(self, rows: Rows) -> tuple[float | None, str]:
        """The value, and `passed`, `short` or `not measured`."""
        of_part = [row for row in rows if row["part"] == self.part and row["on"] == "cuda"]
        # what failed has no numbers; where something is checked, it was not right either
        of_part = [row for row in of_part if "failed" not in row or "ok" in row]
        value = self.measure(of_part)
        if value is None:
            return None, "not measured"
        is_met = value <= self.limit if self.at_most else value >= self.limit  # neither with nan
        return value, "passed" if is_met else "short"


def _lowest(values: Sequence[float]) -> float | None:
    return min(values) if values else None


def _by_setting(rows: Rows, op: str) -> list[dict[str, Row]]:
    """The contenders of every setting of an op."""
    settings: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["op"] == op:
            settings.setdefault(row["setting"], {})[row["contender"]] = row
    return [contenders for contenders in settings.values() if OURS in contenders]


def _against_best(milliseconds: Callable[[Row], float], wanted: Sequence[str], rows: Rows) -> float | None:
    """Attention's: the time of the best peer over ours, in the setting (of all these words) where that is the least."""
    ratios = []
    for contenders in _by_setting(rows, "attention"):
        peers = [milliseconds(contenders[name]) for name in PEERS_OF_ATTENTION if name in contenders]
        if peers and all(word in contenders[OURS]["setting"] for word in wanted):
            ratios.append(min(peers) / milliseconds(contenders[OURS]))
    return _lowest(ratios)


def _loss(column: str, peer: str, rows: Rows) -> float | None:
    """The worst ratio of a peer's number and ours."""
    ratios = [
        row[column] / contenders[OURS][column]
        for contenders in _by_setting(rows, "linear_cross_entropy")
        for name, row in contenders.items()
        if name.startswith(peer)
    ]
    return _lowest(ratios)


def _norm(rows: Rows) -> float | None:
    """Of the largest number of tokens, which fills the GPU."""
    shares = {c[OURS]["setting"]: c[OURS] for c in _by_setting(rows, "layer_norm")}
    sizes = {setting: int(setting.split()[0]) for setting in shares}
    largest = max(sizes.values(), default=0)
    return _lowest([shares[setting]["of the ceiling"] for setting, size in sizes.items() if size == largest])


def _step(column: str, name: str, rows: Rows) -> float | None:
    values = [row[column] for row in rows if row["row"] == name and row.get(column) is not None]
    return values[-1] if values else None


def _step_ratio(scale: int, rows: Rows) -> float | None:
    ours, peer = (_step("tokens/s", f"{kind}-bf16 x{scale}", rows) for kind in ("trainer", "mbart"))
    return ours / peer if ours and peer else None


def _generation(engine: str, rows: Rows) -> float | None:
    rates = [row["tokens/s"] for row in rows if row["engine"] == engine and row["beam"] == 5]
    return rates[-1] if rates else None


def _generation_ratio(peer: str, rows: Rows) -> float | None:
    ours, theirs = _generation(OUR_ENGINE, rows), _generation(peer, rows)
    return ours / theirs if ours and theirs else None


def _findings(tool: str, rows: Rows) -> float | None:
    """Failed tests, and errors that a sanitizer saw; None of a run that was stopped before there was any."""
    found = [row for row in rows if row["what"] == tool]
    if not found:
        return None
    bad = found[-1]["failed tests"] + found[-1].get("errors of the tool", 0)
    return float(bad) if bad or found[-1]["ended"] else None


def _not_ok(rows: Rows) -> float | None:
    return float(sum(not row["ok"] for row in rows if "ok" in row)) if rows else None


def _forward(row: Row) -> float:
    return row["forward ms"]


def _backward(row: Row) -> float:
    return row["ms"] - row["forward ms"]


def _both(row: Row) -> float:
    return row["ms"]


GOALS = (
    Goal("failed tests of the kernel table, in three dtypes", "tests", 0, partial(_findings, "native"), True),
    Goal("findings of memcheck", "tests", 0, partial(_findings, "memcheck"), True),
    Goal("findings of racecheck", "tests", 0, partial(_findings, "racecheck"), True),
    Goal("ops wrong at real sizes", "large", 0, _not_ok, True, "limits of gpu_parts/large.py"),
    Goal("attention forward × the best peer", "kernels", 0.9, partial(_against_best, _forward, ())),
    Goal("attention backward × the best peer", "kernels", 0.9, partial(_against_best, _backward, ())),
    Goal("attention × the best peer, ragged with dropout", "kernels", 1.0, partial(_against_best, _both, RAGGED)),
    Goal("loss × plain logits", "kernels", 1.2, partial(_loss, "ms", "logits")),
    Goal("memory of plain logits ÷ the loss's", "kernels", 10, partial(_loss, "peak extra MB", "logits")),
    Goal("loss × Liger", "kernels", 1.0, partial(_loss, "ms", "Liger")),
    Goal("norm, share of copy bandwidth", "kernels", 0.8, _norm),
    Goal("MFU at 64 x (512 + 114) tokens, on an H100", "step", 0.45, partial(_step, "MFU", "trainer-bf16 x64")),
    Goal("MFU at 13 x (512 + 114) tokens, on an H100", "step", 0.25, partial(_step, "MFU", "trainer-bf16 x13")),
    Goal("step × transformers' mBART, 64 sequences", "step", 1.5, partial(_step_ratio, 64)),
    Goal("tokens/s, beam 5, 64 sentences", "generation", 5000, partial(_generation, OUR_ENGINE)),
    Goal("generation × transformers", "generation", 1.0, partial(_generation_ratio, "huggingface-bfloat16")),
    Goal("generation × CTranslate2 float16", "generation", 1.0, partial(_generation_ratio, "ctranslate2-float16")),
    Goal("training runs off the CPU's losses", "quality", 0, _not_ok, True, "band of gpu_parts/quality.py"),
)

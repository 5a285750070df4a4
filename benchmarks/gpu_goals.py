"""The goals of the GPU path: what is measured for each, from rows of `benchmarks.gpu` on a GPU, and what is asked.

Ratios are of times or rates measured side by side in one run; more is better unless the goal says `at most`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Rows = Sequence[Row]

OURS = "ours"
PEERS_OF_ATTENTION = ("FlashAttention-2", "memory-efficient", "cuDNN, dense", "padded SDPA")
ISSUE = "the project's goal"
COPY = "the project's goal, against the copy of the same run"


@dataclass(frozen=True)
class Goal:
    """What is asked, of which part's rows, how much, and why; `measure` gives None where there are no such rows."""

    name: str
    part: str
    limit: float
    source: str
    measure: Callable[[Rows], float | None]
    at_most: bool = False

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


def _against_best(rows: Rows, milliseconds: Callable[[Row], float], wanted: Sequence[str] = ()) -> float | None:
    """Attention's: the time of the best peer over ours, in the setting (of all these words) where that is the least."""
    ratios = []
    for contenders in _by_setting(rows, "attention"):
        peers = [milliseconds(contenders[name]) for name in PEERS_OF_ATTENTION if name in contenders]
        if peers and all(word in contenders[OURS]["setting"] for word in wanted):
            ratios.append(min(peers) / milliseconds(contenders[OURS]))
    return _lowest(ratios)


def _loss(rows: Rows, column: str, peer: str) -> float | None:
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


def _step(rows: Rows, name: str, column: str) -> float | None:
    values = [row[column] for row in rows if row["row"] == name and row.get(column) is not None]
    return values[-1] if values else None


def _step_ratio(rows: Rows, scale: int) -> float | None:
    ours, peer = (_step(rows, f"{kind}-bf16 x{scale}", "tokens/s") for kind in ("trainer", "mbart"))
    return ours / peer if ours and peer else None


def _generation(rows: Rows, engine: str) -> float | None:
    rates = [row["tokens/s"] for row in rows if row["engine"] == engine and row["beam"] == 5]
    return rates[-1] if rates else None


def _generation_ratio(rows: Rows, peer: str) -> float | None:
    ours, theirs = _generation(rows, "pytorch-bfloat16"), _generation(rows, peer)
    return ours / theirs if ours and theirs else None


def _bad_tests(tool: str, column: str) -> Callable[[Rows], float | None]:
    """Failed tests, and what the tool found; None of a run that was stopped before it found anything."""

    def measure(rows: Rows) -> float | None:
        found = [row for row in rows if row["what"] == tool]
        if not found:
            return None
        bad = found[-1].get("failed tests", 0) + found[-1].get(column, 0)
        return float(bad) if bad or found[-1]["ended"] else None

    return measure


def _not_ok(rows: Rows) -> float | None:
    return float(sum(not row["ok"] for row in rows if "ok" in row)) if rows else None


def _forward(row: Row) -> float:
    return row["forward ms"]


def _backward(row: Row) -> float:
    return row["ms"] - row["forward ms"]


def _both(row: Row) -> float:
    return row["ms"]


GOALS = (
    Goal(
        "failed tests of the kernel table, float32, float16, bfloat16",
        "tests",
        0,
        ISSUE,
        _bad_tests("native", "errors"),
        True,
    ),
    Goal("findings of memcheck", "tests", 0, ISSUE, _bad_tests("memcheck", "errors of the tool"), True),
    Goal("findings of racecheck", "tests", 0, ISSUE, _bad_tests("racecheck", "errors of the tool"), True),
    Goal("ops wrong at real sizes", "large", 0, "the definitions, in float64 or float32", _not_ok, True),
    Goal("attention forward × the best peer", "kernels", 0.9, ISSUE, lambda rows: _against_best(rows, _forward)),
    Goal("attention backward × the best peer", "kernels", 0.9, ISSUE, lambda rows: _against_best(rows, _backward)),
    Goal(
        "attention × the best peer, dropout, ragged",
        "kernels",
        1.0,
        ISSUE,
        lambda r: _against_best(r, _both, ("mixed", "dropout 0.1")),
    ),
    Goal("loss × plain logits", "kernels", 1.2, ISSUE, lambda rows: _loss(rows, "ms", "logits")),
    Goal("memory of plain logits ÷ the loss's", "kernels", 10, ISSUE, lambda r: _loss(r, "peak extra MB", "logits")),
    Goal("loss × Liger", "kernels", 1.0, ISSUE, lambda rows: _loss(rows, "ms", "Liger")),
    Goal("norm, share of copy bandwidth", "kernels", 0.8, COPY, _norm),
    Goal("MFU at 64 x (512 + 114) tokens", "step", 0.45, ISSUE, lambda rows: _step(rows, "trainer-bf16 x64", "MFU")),
    Goal("MFU at 13 x (512 + 114) = 8,138 tokens", "step", 0.25, ISSUE, lambda r: _step(r, "trainer-bf16 x13", "MFU")),
    Goal("tokens/s × transformers' mBART, 64 sequences", "step", 1.5, ISSUE, lambda rows: _step_ratio(rows, 64)),
    Goal(
        "tokens/s, beam 5, bfloat16, 64 sentences",
        "generation",
        5000,
        ISSUE,
        lambda r: _generation(r, "pytorch-bfloat16"),
    ),
    Goal(
        "tokens/s × transformers",
        "generation",
        1.0,
        ISSUE,
        lambda rows: _generation_ratio(rows, "huggingface-bfloat16"),
    ),
    Goal(
        "tokens/s × CTranslate2 float16",
        "generation",
        1.0,
        ISSUE,
        lambda r: _generation_ratio(r, "ctranslate2-float16"),
    ),
    Goal("training runs off the CPU's curve", "quality", 0, "the band of quality.py", _not_ok, True),
)

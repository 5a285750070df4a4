"""Scoring many lines by every metric that needs no model, and how sure the scores are: `make bench-scoring`.

References are lines of invented words whose frequencies fall as 1 / rank; an output has every tenth word replaced, some
left out, and a run of words moved. Time is the processor's in this process, without making scorers ready; the last row
is a suite's second run with BLEU and chrF. Slow metrics are measured where --metrics names them.
"""

import random
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.recording import parser, report
from deltalm_ds.data_tools.workers import Workers
from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.evaluation.metrics.interface import References
from deltalm_ds.evaluation.scores import DirectionScorer
from deltalm_ds.evaluation.suites import run_suite
from deltalm_ds.evaluation.systems import find_systems
from deltalm_ds.evaluation.test_sets import TestSet
from deltalm_ds.generation.interface import SearchOptions

SLOW = ("ter", "meteor_1.5", "comet", "cometkiwi")
METRICS_OF_SUITE = ("bleu", "chrf")
WORDS, LENGTH = 20_000, 24
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def main() -> None:
    """Score once by each metric and show the table."""
    options = parser(__doc__)
    options.add_argument("--lines", type=int, default=100_000)
    options.add_argument("--metrics", default=",".join(name for name in METRICS if name not in SLOW))
    arguments = options.parse_args()
    texts, outputs = corpus(arguments.lines)
    rows = []
    for name in arguments.metrics.split(","):
        references = References(texts, "en", sources=texts, languages=("en", "de", "fr"))
        scorer = DirectionScorer("en", references, [name])
        start = time.process_time()
        score = scorer.score(outputs)
        scored = time.process_time()
        assert score.intervals is not None  # computed when it is asked for
        rows.append(
            {
                "what": name,
                "seconds": scored - start,
                "interval, s": time.process_time() - scored,
                "lines/s": arguments.lines / (scored - start),
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    rows.append({"what": "second run of a suite", "seconds": _second_run(texts, outputs)})
    title = f"Scoring {arguments.lines:,} lines of {LENGTH} words"
    report(arguments, title, " ".join(["python -m benchmarks.scoring", *sys.argv[1:]]), rows, [])


def corpus(num_lines: int) -> tuple[list[str], list[str]]:
    """References and outputs."""
    draw = random.Random(1)
    words = ["".join(draw.choices(LETTERS, k=draw.randint(2, 9))) for _ in range(WORDS)]
    weights = [1 / rank for rank in range(1, WORDS + 1)]
    texts, outputs = [], []
    for _ in range(num_lines):
        line = draw.choices(words, weights, k=draw.randint(LENGTH // 2, LENGTH * 3 // 2))
        other = [draw.choice(words) if draw.random() < 0.1 else word for word in line if draw.random() > 0.05]
        start = draw.randrange(len(line))
        other = other[:start] + other[start + 4 :] + other[start : start + 4]
        texts.append(" ".join(line).capitalize() + ".")
        outputs.append(" ".join(other).capitalize() + ".")
    return texts, outputs


def _second_run(texts: list[str], outputs: list[str]) -> float:
    """Seconds of a suite whose slow system has its outputs kept already."""

    test = TestSet("en-en", texts, texts)
    with tempfile.TemporaryDirectory() as directory:
        given = Path(directory) / "given"
        given.write_text("".join(f"{line}\n" for line in outputs))
        systems = find_systems([f"given={given}"])
        for _ in range(2):
            start = time.process_time()
            results = run_suite(systems, [test], SearchOptions(), METRICS_OF_SUITE, Path(directory), "given", Workers())
            assert results[0].score.intervals is not None
            seconds = time.process_time() - start
    return seconds


if __name__ == "__main__":
    main()
